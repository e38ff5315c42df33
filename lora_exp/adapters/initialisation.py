"""The initial factors of one adapter. With every method, an untrained adapter leaves the base's outputs unchanged.

Shapes: I inputs and O outputs of a layer, r rank.
"""

from __future__ import annotations

import functools

import torch

from lora_exp.adapters.plan import AdapterPlan, LayerPlan
from lora_exp.adapters.updates import INITIAL, UPDATES
from lora_exp.model.architecture import Layer
from lora_exp.model.base import BaseModel
from lora_exp.numerics import generator

Factors = dict[str, torch.Tensor]


def initial_factors(plan: AdapterPlan, base: BaseModel) -> Factors:
    """Return the initial factors, named `<layer>.<part>`, on the CPU.

    Parts: A [r, I] and B [O, r] of a low-rank product; magnitude [O] of DoRA; weight [O, I] and bias [O] if those are
    trained. A of layer k is drawn row by row from a generator of (seed, k), so adapters of different rank share their
    first rows.
    """
    factors: Factors = {}
    for at, (own, layer) in enumerate(zip(plan.layers, base.layers, strict=True)):
        if own.update == "none":
            continue
        names = UPDATES[own.update].parts
        parts = {name: INITIAL[name](layer.weight, layer.bias) for name in names if name not in "AB"}
        if own.rank:
            parts["A"], parts["B"] = _principal(own, layer) if plan.start == "principal" else _random(plan, at, layer)
        factors |= {f"{layer.name}.{part}": parts[part].to("cpu", copy=True) for part in names}
    return factors


def _random(plan: AdapterPlan, at: int, layer: Layer) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw A and set B = 0 (Hu et al. 2021, section 4.1)."""
    outputs, inputs = layer.weight.shape
    rank = plan.layers[at].rank
    random = generator("adapter initialisation", plan.seed, at)
    if plan.start == "kaiming":  # uniform in +-1/sqrt(I), like PEFT
        a = torch.rand(rank, inputs, generator=random).mul_(2).sub_(1).mul_(inputs**-0.5)
    elif plan.start == "orthogonal":
        a = torch.cat([_orthonormal(rows) for rows in torch.split(_normal(rank, inputs, random), inputs)])
    else:
        a = _normal(rank, inputs, random) * plan.init_std
    return a, torch.zeros(outputs, rank)


def _normal(rank: int, inputs: int, random: torch.Generator) -> torch.Tensor:
    """Draw row by row: torch draws the last 16 numbers of a tensor differently, so they would depend on its size."""
    return torch.stack([torch.randn(inputs, generator=random) for _ in range(rank)])


def _orthonormal(rows: torch.Tensor) -> torch.Tensor:
    """Orthonormalise rows in order (Gram-Schmidt), so that the first rows don't depend on the number of rows."""
    q, r = torch.linalg.qr(rows.T)
    signed: torch.Tensor = q * r.diagonal().sign()
    return signed.T.contiguous()


def _principal(own: LayerPlan, layer: Layer) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the layer's largest singular triples twice: trained, and frozen with a negative sign (PiSSA).

    PiSSA removes these triples from the base and trains a copy of them (Meng et al. 2024, equations 2 to 4). Here the
    base stays unchanged, and the frozen negative copy removes them.
    """
    left, values, right = _singular(layer.weight)
    root = (values[: own.rank] / own.scaling).sqrt()
    a, b = root[:, None] * right[: own.rank], left[:, : own.rank] * root
    return torch.cat([a, a]), torch.cat([b, -b], dim=1)


@functools.lru_cache(maxsize=16)  # keyed by the identity of the weight
def _singular(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    left, values, right = torch.linalg.svd(weight.cpu(), full_matrices=False)
    return left, values, right
