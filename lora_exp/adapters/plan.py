"""The plan of one adapter: what its method does to each layer, and how many parameters that trains.

Shapes: I inputs and O outputs of a layer, r rank.
"""

from __future__ import annotations

import fnmatch
import functools
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

from lora_exp.adapters.updates import OWN_PRODUCTS, part_shapes
from lora_exp.config.methods import METHODS
from lora_exp.config.spec import AdapterSpec
from lora_exp.errors import LoraExpError
from lora_exp.model.architecture import LayerShape
from lora_exp.numerics import RANK_MULTIPLE

log = logging.getLogger(__name__)

SHOWN_LAYERS = 20  # in a message
# What a method does to a layer without a bias.
WITHOUT_BIAS = {"bias": "none", "dense": "dense_weight"}


@dataclass(frozen=True)
class LayerPlan:
    """The update of one layer. Its factors have `rank` trained rows, then `kept` frozen rows.

    Of a bias only the entries `outputs` are trained; None for all of them.
    """

    update: str = "none"
    rank: int = 0
    kept: int = 0
    scaling: float = 1.0
    outputs: tuple[int, ...] | None = None

    @property
    def padded(self) -> int:
        """Rows of the factors, including padding."""
        return -(-(self.rank + self.kept) // RANK_MULTIPLE) * RANK_MULTIPLE

    @property
    def owns_product(self) -> bool:
        """Whether the weight itself is trained, so that the layer has a product of its own."""
        return self.update in OWN_PRODUCTS

    def parameters(self, outputs: int, inputs: int) -> int:
        """Count the trained parameters of a layer with weight [O, I] and bias [O]."""
        if self.outputs is not None:
            return len(self.outputs)
        return sum(map(math.prod, part_shapes(self.update, self.rank, outputs, inputs).values()))


@dataclass(frozen=True)
class AdapterPlan:
    """The updates of all layers, and how the factors start and learn.

    `start` is an initialisation or "principal". `faster` names a part and the ratio of its learning rate to the job's.
    """

    layers: tuple[LayerPlan, ...]
    start: str = "gaussian"
    init_std: float = 1.0
    seed: int = 0
    dropout: float = 0.0
    faster: tuple[str, float] | None = None

    @property
    def shape(self) -> tuple[tuple[str, int], ...]:
        """Update and padded rank per layer, and whether there is dropout. Jobs of equal shape can be stacked."""
        per_layer = tuple((layer.update, layer.padded) for layer in self.layers)
        return (*per_layer, ("dropout", int(self.dropout > 0)))

    @property
    def owns_weights(self) -> bool:
        """Whether the job trains weights below the last layer, so that it shares no frozen product with other jobs."""
        return any(layer.owns_product for layer in self.layers[:-1])

    def rate_ratio(self, part: str) -> float:
        """Return the ratio of the learning rate of a part (A, B, ...) to the job's."""
        return self.faster[1] if self.faster is not None and self.faster[0] == part else 1.0


def adapter_plan(spec: AdapterSpec, layers: Sequence[LayerShape], seed: int, target: tuple[int, ...]) -> AdapterPlan:
    """Apply the patterns of `spec` to the layers of a model; `target` are the classes to fine-tune on.

    Logs a warning for a rank above the smaller side of a layer's weight. Raises LoraExpError when a pattern matches no
    layer, and for a method that trains biases where the layers have none.
    """
    names = [layer.name for layer in layers]
    for key, patterns in (
        ("layers", spec.layers),
        ("rank_pattern", [pattern for pattern, _ in spec.rank_pattern]),
        ("alpha_pattern", [pattern for pattern, _ in spec.alpha_pattern]),
    ):
        for pattern in patterns:
            if not fnmatch.filter(names, pattern):
                raise LoraExpError(f"adapter.{key}={pattern}: matches no layer; the layers are {_listed(names)}")
    method = METHODS[spec.method]
    plans = tuple(_layer_plan(spec, layer, layer is layers[-1], target) for layer in layers)
    if method.update == "bias" and not any(plan.update == "bias" for plan in plans):
        raise LoraExpError(f"adapter.method={spec.method}: none of the layers that it trains has a bias")
    return AdapterPlan(
        plans,
        "principal" if method.principal else spec.init,
        spec.init_std,
        seed,
        spec.dropout,
        None if method.faster is None else (method.faster, spec.learning_rate_ratio),
    )


def _layer_plan(spec: AdapterSpec, layer: LayerShape, is_last: bool, target: tuple[int, ...]) -> LayerPlan:
    method = METHODS[spec.method]
    chosen = any(fnmatch.fnmatch(layer.name, pattern) for pattern in spec.layers)
    if not chosen or (method.last_layer_only and not is_last):
        return LayerPlan()
    if "rank" not in method.keys:
        update = method.update if layer.has_bias else WITHOUT_BIAS.get(method.update, method.update)
        return LayerPlan(update, outputs=target if method.target_only else None)
    rank, alpha = spec.rank, spec.alpha
    for pattern, own_rank in spec.rank_pattern:
        rank = own_rank if fnmatch.fnmatch(layer.name, pattern) else rank
    for pattern, own_alpha in spec.alpha_pattern:
        alpha = own_alpha if fnmatch.fnmatch(layer.name, pattern) else alpha
    scaling, side = spec.scaling_at(rank, alpha), min(layer.outputs, layer.inputs)
    if rank > side:
        _warn_of_rank(spec.method, rank, layer.name, side)
        # A weight has no more singular triples than that.
        rank = side if method.principal else rank
    return LayerPlan(method.update, rank, rank if method.principal else 0, scaling)


def _listed(names: Sequence[str]) -> str:
    """Names, of many only the first and the last."""
    many = len(names) > SHOWN_LAYERS
    return ", ".join([*names[: SHOWN_LAYERS - 1], "...", names[-1]] if many else names)


@functools.cache  # warns once per process for each layer and rank, not once per job
def _warn_of_rank(method: str, rank: int, layer: str, side: int) -> None:
    what = f"{method} uses {side}" if METHODS[method].principal else "more adds parameters but no expressiveness"
    log.warning("adapter.rank=%d is above the smaller side of %s (%d): %s", rank, layer, side, what)
