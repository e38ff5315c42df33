"""One adapted classifier, for use after an experiment: its adapter can be switched, merged, saved and loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch

from lora_exp.adapter_file import encoded, read_adapter
from lora_exp.base_model import BaseModel, is_rectified, plain_logits


class AdaptedClassifier:
    """A frozen base with one low-rank update W + scaling * B A on some of its layers.

    `factors` holds `<layer>.A` [rank, I] and `<layer>.B` [O, rank], as in a run's `adapter.safetensors`. The
    base's own tensors are never written to, so `unmerge` gives back exactly the weights from before `merge`.
    """

    def __init__(self, base: BaseModel, factors: Mapping[str, torch.Tensor], scaling: float) -> None:
        """Raises ValueError when a factor fits no layer, or its shape, type or values are not right."""
        self._base = base
        self._factors = {name: factors[name] for name in sorted(factors)}
        self._scaling = scaling
        self._merged: BaseModel | None = None
        self.enabled = True
        shapes = {layer.name: layer.weight.shape for layer in base.layers}
        for name, tensor in self._factors.items():
            layer, _, part = name.rpartition(".")
            other = self._factors.get(f"{layer}.{'B' if part == 'A' else 'A'}")
            if layer not in shapes or part not in ("A", "B") or other is None:
                raise ValueError(f"{name}: must be <layer>.A or <layer>.B of a pair; layers: {', '.join(shapes)}")
            outputs, inputs = shapes[layer]
            rank = len(tensor) if part == "A" else len(other)
            expected = (rank, inputs) if part == "A" else (outputs, rank)
            if tensor.shape != expected or tensor.dtype != torch.float32:
                raise ValueError(f"{name}: must be a float32 tensor of shape {expected}, is {tuple(tensor.shape)}")
            if not bool(tensor.isfinite().all()):
                raise ValueError(f"{name}: holds values that are not finite")

    @property
    def merged(self) -> bool:
        """Whether the update is part of the weights now."""
        return self._merged is not None

    def logits(self, images_NI: torch.Tensor) -> torch.Tensor:
        """Logits [N, C] for normalised images [N, I]; those of the base while the adapter is disabled."""
        with torch.no_grad():
            if not self.enabled:
                return plain_logits(self._base, images_NI)
            if self._merged is not None:
                return plain_logits(self._merged, images_NI)
            hidden = images_NI
            for at, layer in enumerate(self._base.layers):
                outputs = torch.nn.functional.linear(hidden, layer.weight, layer.bias)
                a, b = self._factors.get(f"{layer.name}.A"), self._factors.get(f"{layer.name}.B")
                if a is not None and b is not None:
                    outputs += (hidden @ a.T).mul_(self._scaling) @ b.T
                hidden = outputs.relu_() if is_rectified(self._base, at) else outputs
            return hidden

    def enable(self) -> None:
        """Use the adapter."""
        self.enabled = True

    def disable(self) -> None:
        """Answer as the base does."""
        self.enabled = False

    def merge(self) -> BaseModel:
        """Add the update to a copy of the weights, use that from now on, and return it."""
        layers = []
        for layer in self._base.layers:
            a, b = self._factors.get(f"{layer.name}.A"), self._factors.get(f"{layer.name}.B")
            update = 0.0 if a is None or b is None else self._scaling * (b @ a)
            layers.append(dataclasses.replace(layer, weight=layer.weight + update))
        self._merged = dataclasses.replace(self._base, layers=tuple(layers))
        return self._merged

    def unmerge(self) -> None:
        """Keep base and update apart again."""
        self._merged = None

    def save(self, path: Path) -> None:
        """Write the adapter as a run's `adapter.safetensors` has it."""
        path.write_bytes(encoded(self._factors, self._scaling, self._base.sha256()))

    @staticmethod
    def load(base: BaseModel, path: Path) -> AdaptedClassifier:
        """The adapter that `save`, or a run, wrote.

        Raises ValueError, of one line, when the file is damaged or was trained on another base.
        """
        stored = read_adapter(path)
        if stored.base_sha256 != base.sha256():
            raise ValueError(f"{path}: was trained on another base ({stored.base_sha256})")
        try:
            return AdaptedClassifier(base, stored.factors, stored.scaling)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
