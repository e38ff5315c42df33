"""One adapted classifier, for use after an experiment: its adapter can be switched, merged, saved and loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch

from lora_exp.adapters.adapter_file import encoded, read_adapter
from lora_exp.adapters.pack import AdapterPack
from lora_exp.adapters.plan import AdapterPlan, LayerPlan
from lora_exp.adapters.updates import UPDATES
from lora_exp.model.base import BaseModel, Layer, plain_logits
from lora_exp.training.loop import pack_logits


class AdaptedClassifier:
    """A frozen base with one adapter: a pack of one, so that it answers as the pack did that trained it.

    `factors` are as in a run's `adapter.safetensors`. The base's own tensors are never written to, so `unmerge`
    gives back exactly the weights from before `merge`.
    """

    def __init__(self, base: BaseModel, factors: Mapping[str, torch.Tensor], scaling: Mapping[str, float]) -> None:
        """Raises ValueError when a factor fits no layer, or its shape, type or values are not right."""
        self._base = base
        self._factors = {name: factors[name] for name in sorted(factors)}
        self._scaling = dict(scaling)
        self._merged: BaseModel | None = None
        self.enabled = True
        self._pack = AdapterPack.of([plan_of(base, self._factors, scaling)], [self._factors], base)

    @property
    def factors(self) -> dict[str, torch.Tensor]:
        """The adapter's tensors, by name."""
        return dict(self._factors)

    @property
    def scaling(self) -> dict[str, float]:
        """The factor of each layer's low-rank product."""
        return dict(self._scaling)

    @property
    def merged(self) -> bool:
        """Whether the update is part of the weights now."""
        return self._merged is not None

    @property
    def pack(self) -> AdapterPack:
        """The adapter as a pack of one."""
        return self._pack

    def logits(self, images_NI: torch.Tensor) -> torch.Tensor:
        """Logits [N, C] for normalised images [N, I]; those of the base while the adapter is disabled."""
        with torch.no_grad():
            if not self.enabled:
                return plain_logits(self._base, images_NI)
            if self._merged is not None:
                return plain_logits(self._merged, images_NI)
            return pack_logits(self._base, self._pack, images_NI[None], None)[0]

    def enable(self) -> None:
        """Use the adapter."""
        self.enabled = True

    def disable(self) -> None:
        """Answer as the base does."""
        self.enabled = False

    def merge(self) -> BaseModel:
        """Make the update part of a copy of the weights, use that from now on, and return it."""
        layers = [
            adapted_layer(layer, self._factors, self._scaling.get(layer.name, 1.0)) for layer in self._base.layers
        ]
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


def adapted_layer(layer: Layer, factors: Mapping[str, torch.Tensor], scaling: float) -> Layer:
    """The layer with its update made part of weight and bias."""
    own = {name.rpartition(".")[2]: value for name, value in factors.items() if name.rpartition(".")[0] == layer.name}
    if not own:
        return layer
    weight, bias = UPDATES[UPDATE_OF[frozenset(own)]].merged(layer.weight, layer.bias, own, scaling)
    return dataclasses.replace(layer, weight=weight, bias=bias)


# The update that a layer with these parts has.
UPDATE_OF = {frozenset(update.parts): name for name, update in UPDATES.items()} | {frozenset(): "none"}
PARTS = tuple(dict.fromkeys(part for update in UPDATES.values() for part in update.parts))


def plan_of(base: BaseModel, factors: Mapping[str, torch.Tensor], scaling: Mapping[str, float]) -> AdapterPlan:
    """The plan that an adapter with these factors has.

    Raises ValueError, of one line, when a factor fits no layer, or its shape, type or values are not right.
    """
    found: dict[str, dict[str, torch.Tensor]] = {layer.name: {} for layer in base.layers}
    for name, tensor in factors.items():
        layer_name, _, part = name.rpartition(".")
        if layer_name not in found or part not in PARTS:
            raise ValueError(f"{name}: must be <layer>.<part> with layer {', '.join(found)}, part {', '.join(PARTS)}")
        if tensor.dtype != torch.float32 or not bool(tensor.isfinite().all()):
            raise ValueError(f"{name}: must be a float32 tensor of finite values")
        found[layer_name][part] = tensor
    plans = []
    for layer in base.layers:
        own = found[layer.name]
        update = UPDATE_OF.get(frozenset(own))
        if update is None:
            raise ValueError(f"{layer.name}.{min(own)}: no method has the parts {', '.join(sorted(own))} alone")
        outputs, inputs = layer.weight.shape
        rank = len(own["A"]) if own.get("A", torch.empty(0)).dim() == 2 else 0
        shapes = {"A": (rank, inputs), "B": (outputs, rank), "weight": (outputs, inputs)}
        for part, tensor in own.items():
            if tensor.shape != shapes.get(part, (outputs,)):
                expected = shapes.get(part, (outputs,))
                raise ValueError(f"{layer.name}.{part}: must have shape {expected}, has {tuple(tensor.shape)}")
        plans.append(LayerPlan(update, rank, scaling=scaling.get(layer.name, 1.0)))
    return AdapterPlan(tuple(plans))
