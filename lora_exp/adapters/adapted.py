"""One adapted classifier, for use after an experiment: classify images; switch, merge, save and load its adapter.

`adapter.safetensors` holds the factors of one adapter, their scaling, and the hash of the base it was trained on.

Shapes: N images, channels C, height H, width W, and I = C*H*W values of an image.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from lora_exp.adapters.initialisation import Factors
from lora_exp.adapters.pack import AdapterPack
from lora_exp.adapters.plan import AdapterPlan, LayerPlan
from lora_exp.adapters.updates import UPDATES, part_shapes
from lora_exp.config.images import ImageFacts
from lora_exp.model.architecture import Layer
from lora_exp.model.base import BaseModel
from lora_exp.model.data import Images

# One key holds all metadata: safetensors writes several keys in varying order, and equal adapters must be equal files.
METADATA = "lora_exp"
# Names of a layer's parts -> its update.
UPDATE_OF = {frozenset(update.parts): name for name, update in UPDATES.items()} | {frozenset(): "none"}
PARTS = tuple(dict.fromkeys(part for update in UPDATES.values() for part in update.parts))


@dataclasses.dataclass(frozen=True)
class StoredAdapter:
    """An adapter file: `factors` as in `initialisation.initial_factors`, and `scaling` by layer."""

    factors: Factors
    scaling: dict[str, float]
    base_sha256: str


class AdaptedClassifier:
    """A frozen base with one adapter. It computes with a pack of one, so its outputs equal those of the training pack.

    `factors` and `scaling` (by layer) are those of a run's `adapter.safetensors`, `facts` those of its images, which
    `predict` needs. Nothing writes to the tensors of the base, so `unmerge` restores exactly the weights from before
    `merge`.
    """

    _BATCH = 1000  # images that are classified at a time, as floats
    _FAR_OUT = 10  # a value so many times as far from zero as any normalised pixel is none

    def __init__(
        self,
        base: BaseModel,
        factors: Mapping[str, torch.Tensor],
        scaling: Mapping[str, float],
        facts: ImageFacts | None = None,
    ) -> None:
        """Raises ValueError when a factor fits no layer, or its shape, type or values are wrong."""
        self.base, self.facts = base, facts
        self.factors = {name: factors[name] for name in sorted(factors)}
        self.scaling = dict(scaling)
        self._merged: BaseModel | None = None
        self.enabled = True
        self._pack = AdapterPack.of([_plan_of(base, self.factors, scaling)], [self.factors], base)

    @property
    def merged(self) -> bool:
        """Whether the update is merged into the weights."""
        return self._merged is not None

    def __repr__(self) -> str:
        parameters = sum(factor.numel() for factor in self.factors.values())
        layers = len({name.rpartition(".")[0] for name in self.factors})
        state = "merged" if self.merged else "enabled" if self.enabled else "disabled"
        classes = "" if self.facts is None else f"{len(self.facts.classes)} classes, "
        on = f"{layers} layer{'s' if layers != 1 else ''}"
        return f"<AdaptedClassifier: {classes}adapter of {parameters:,} parameters on {on}, {state}>"

    def predict(self, images: Any) -> NDArray[np.str_]:
        """Return the name of each image's class, [N] text.

        Images are an array or a tensor: uint8 as they are in a file, or floats that are normalised as the run's were;
        [N, C, H, W] or [N, H, W, C], or [N, H, W] where they are grey. Raises ValueError for any other.
        """
        labels = self(images).argmax(dim=1).cpu().numpy()
        names: NDArray[np.str_] = np.array(self._known_facts().classes)[labels]
        return names

    def __call__(self, images: Any) -> torch.Tensor:
        """Compute logits [N, classes] of images, which `predict` describes."""
        facts, device = self._known_facts(), self.base.layers[0].weight.device
        rows = self._rows(images, facts).to(device)
        if not len(rows):
            return torch.empty(0, len(facts.classes), device=device)
        parts = torch.split(rows, self._BATCH)
        floats = (part if part.is_floating_point() else Images(part, facts)[:] for part in parts)
        return torch.cat([self.logits(part) for part in floats])

    def logits(self, images_NI: torch.Tensor) -> torch.Tensor:
        """Compute logits [N, C] of normalised images [N, I]; those of the base while the adapter is disabled."""
        with torch.no_grad():
            plain = self._merged if self.enabled else self.base
            if plain is not None:
                return plain.forward.logits(images_NI)
            return self._pack.logits(self.base, images_NI[None])[0]

    def enable(self) -> None:
        """Use the adapter."""
        self.enabled = True

    def disable(self) -> None:
        """Use the base alone."""
        self.enabled = False

    def merge(self) -> BaseModel:
        """Merge the update into a copy of the weights, use that copy from now on, and return it."""
        merged = (_merged(layer, self.factors, self.scaling.get(layer.name, 1.0)) for layer in self.base.layers)
        self._merged = self.base.with_layers(dict(own for own in merged if own is not None))
        return self._merged

    def unmerge(self) -> None:
        """Undo `merge`."""
        self._merged = None

    def save(self, path: Path) -> None:
        """Write the adapter in the format of a run's `adapter.safetensors`."""
        path.write_bytes(encode_adapter(self.factors, self.scaling, self.base.sha256()))

    @staticmethod
    def load(base: BaseModel, path: Path, facts: ImageFacts | None = None) -> AdaptedClassifier:
        """Load an adapter that `save`, or a run, wrote.

        Raises ValueError, in one line, when the file is damaged or the adapter was trained on another base.
        """
        stored = read_adapter(path)
        if stored.base_sha256 != base.sha256():
            raise ValueError(f"{path}: was trained on another base ({stored.base_sha256})")
        try:
            return AdaptedClassifier(base, stored.factors, stored.scaling, facts)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def _known_facts(self) -> ImageFacts:
        if self.facts is None:
            raise ValueError("facts: missing; lora_exp.load_run(FOLDER).classifier() knows shape and classes")
        return self.facts

    def _rows(self, images: Any, facts: ImageFacts) -> torch.Tensor:
        """Images as rows [N, I], uint8 or float32. Raises ValueError for those that are no images of this form."""
        given = images if isinstance(images, torch.Tensor) else torch.from_numpy(np.array(images))
        channels, height, width = facts.shape
        first, last = (channels, height, width), (height, width, channels)
        allowed, own = [first, last, *([(height, width)] if channels == 1 else [])], tuple(given.shape[1:])
        if own not in (*allowed, (facts.pixels,)):
            forms = " or ".join(f"[N, {', '.join(map(str, form))}]" for form in allowed)
            raise ValueError(f"images: have the shape {list(given.shape)}; must be {forms}; one image is image[None]")
        rows = (given.movedim(-1, 1) if own == last != first else given).detach().flatten(1)
        if rows.dtype == torch.uint8 or not len(rows):
            return rows
        if not rows.is_floating_point():
            kind = str(rows.dtype).removeprefix("torch.")
            raise ValueError(f"images: are {kind}; must be uint8, from 0 to 255, or floats that are normalised")
        most = max(max(mean, 1 - mean) / std for mean, std in zip(facts.mean, facts.std, strict=True))
        if not (found := float(rows.abs().max())) <= self._FAR_OUT * most:  # nor is NaN
            how = f"(pixel / 255 - mean) / deviation, with mean {facts.mean} and deviation {facts.std}"
            raise ValueError(f"images: have values of {found:g}; floats must be normalised, {how}; or give uint8")
        return rows.to(torch.float32)


def encode_adapter(factors: Mapping[str, torch.Tensor], scaling: Mapping[str, float], base_sha256: str) -> bytes:
    """Encode an adapter file; equal adapters give equal bytes."""
    metadata = json.dumps({"base_sha256": base_sha256, "scaling": dict(scaling)}, sort_keys=True)
    content: bytes = save({name: factors[name].contiguous() for name in sorted(factors)}, metadata={METADATA: metadata})
    return content


def read_adapter(path: Path) -> StoredAdapter:
    """Read an adapter file, without running code from it.

    Raises ValueError, in one line, when the file is damaged or holds no adapter.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {})[METADATA])
            factors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        scaling = {str(layer): float(factor) for layer, factor in metadata["scaling"].items()}
        if not all(map(math.isfinite, scaling.values())):
            raise ValueError("a scaling is not finite")
        return StoredAdapter(factors, scaling, str(metadata["base_sha256"]))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: is not a readable adapter file ({' '.join(str(error).split())})") from error


def _merged(layer: Layer, factors: Factors, scaling: float) -> tuple[str, tuple[torch.Tensor, torch.Tensor]] | None:
    """The name of an adapted layer, and its weight and bias with the update merged into them."""
    own = {name.rpartition(".")[2]: value for name, value in factors.items() if name.rpartition(".")[0] == layer.name}
    if not own:
        return None
    return layer.name, UPDATES[UPDATE_OF[frozenset(own)]].merged(layer.weight, layer.bias, own, scaling)


def _plan_of(base: BaseModel, factors: Factors, scaling: Mapping[str, float]) -> AdapterPlan:
    """Derive the plan of an adapter from its factors.

    Raises ValueError, in one line, when a factor fits no layer, or its shape, type or values are wrong.
    """
    by_layer: dict[str, Factors] = {layer.name: {} for layer in base.layers}
    for name, tensor in factors.items():
        layer_name, _, part = name.rpartition(".")
        if layer_name not in by_layer or part not in PARTS:
            allowed = f"layer {', '.join(by_layer)}, part {', '.join(PARTS)}"
            raise ValueError(f"{name}: must be <layer>.<part> with {allowed}")
        if tensor.dtype != torch.float32 or not bool(tensor.isfinite().all()):
            raise ValueError(f"{name}: must be a float32 tensor of finite values")
        by_layer[layer_name][part] = tensor
    plans = []
    for layer in base.layers:
        own = by_layer[layer.name]
        update = UPDATE_OF.get(frozenset(own))
        if update is None:
            raise ValueError(f"{layer.name}.{min(own)}: no method has only the parts {', '.join(sorted(own))}")
        outputs, inputs = layer.weight.shape
        rank = len(own["A"]) if own.get("A", torch.empty(0)).dim() == 2 else 0
        for part, expected in part_shapes(update, rank, outputs, inputs).items():
            if own[part].shape != expected:
                raise ValueError(f"{layer.name}.{part}: must have shape {expected}, has {tuple(own[part].shape)}")
        plans.append(LayerPlan(update, rank, scaling=scaling.get(layer.name, 1.0)))
    return AdapterPlan(tuple(plans))
