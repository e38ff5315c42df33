"""The kinds of change to a layer, for n stacked jobs: outputs and gradients, written by hand and in place.

At this size memory traffic limits everything but the frozen product, and plain autograd was 10 % slower
(docs/performance.md). Each update is a small final class. Three methods make up a training step:

- `forward` gets the frozen product plus bias in `outputs`, turns it into the adapted layer's output in place, and
  returns the tensors that `gradients` needs;
- `gradients` returns the gradient of every trained part, and leaves in `grad` the gradient of the frozen product;
- `input_gradient` gets in `grad_hidden` the input's gradient through the frozen product, and adds the gradient through
  the parts.

Shapes: n jobs, B rows of a batch, I inputs and O outputs of the layer, R padded rank, r rank. A is [n, R, I]. B is
stored transposed, [n, R, O], so that the unpadded rows of both factors come first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lora_exp.numerics import add_stacked_product, rowwise_product, stacked_product

Tensors = tuple[Tensor, ...]
Gradients = tuple[Tensors, Tensors]
Weights = tuple[Tensor, Tensor]
Parts = Mapping[str, Tensor]


@dataclass(frozen=True)
class AdaptedLayer:
    """One layer of a group of stacked jobs: the frozen layer, the trained parts, and what else a step needs.

    `scaling` is [n, 1, 1]. `mask` [n, B, I] multiplies the input of A; None without dropout. `buffers` are memory, by
    name of the part, for gradients that are too large to allocate in each step.
    """

    weight: Tensor
    bias: Tensor
    parts: Parts
    scaling: Tensor
    mask: Tensor | None
    buffers: Parts


class Update(Protocol):
    """One kind of change; see the top of this file. The classes below only document what is special about them."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the trained tensors (A, B, ...), in the order of their gradients."""
        ...

    def merged(self, weight: Tensor, bias: Tensor, parts: Parts, scaling: float) -> Weights:
        """Return weight [O, I] and bias [O] with one job's update merged into them; its A is [r, I], its B [O, r]."""
        ...

    def forward(self, layer: AdaptedLayer, hidden: Tensor, outputs: Tensor) -> Tensors:
        """Change outputs [n, B, O] of hidden [n, B, I] in place; return what `gradients` needs."""
        ...

    def gradients(self, layer: AdaptedLayer, hidden: Tensor, grad: Tensor, saved: Tensors) -> Gradients:
        """Return the parts' gradients and what `input_gradient` needs; may change grad [n, B, O] in place."""
        ...

    def input_gradient(self, layer: AdaptedLayer, grad: Tensor, carried: Tensors, grad_hidden: Tensor) -> None:
        """Add to grad_hidden [n, B, I] in place."""


class LowRank:
    """W + scaling B A (Hu et al. 2021, section 4.1)."""

    parts = ("A", "B")

    def merged(self, weight: Tensor, bias: Tensor, parts: Parts, scaling: float) -> Weights:
        return weight + scaling * (parts["B"] @ parts["A"]), bias

    def forward(self, layer: AdaptedLayer, hidden: Tensor, outputs: Tensor) -> Tensors:
        """outputs + scaling (hidden A') B'."""
        dropped = hidden if layer.mask is None else hidden * layer.mask
        inner = stacked_product(dropped, layer.parts["A"].transpose(1, 2)).mul_(layer.scaling)
        add_stacked_product(outputs, inner, layer.parts["B"])
        return inner, dropped

    def gradients(self, layer: AdaptedLayer, hidden: Tensor, grad: Tensor, saved: Tensors) -> Gradients:
        inner, dropped = saved
        grad_inner = stacked_product(grad, layer.parts["B"].transpose(1, 2)).mul_(layer.scaling)
        return (torch.bmm(grad_inner.transpose(1, 2), dropped), torch.bmm(inner.transpose(1, 2), grad)), (grad_inner,)

    def input_gradient(self, layer: AdaptedLayer, grad: Tensor, carried: Tensors, grad_hidden: Tensor) -> None:
        """Add the gradient through A and the dropout before it."""
        (grad_inner,) = carried
        if layer.mask is None:
            add_stacked_product(grad_hidden, grad_inner, layer.parts["A"])
        else:
            grad_hidden += stacked_product(grad_inner, layer.parts["A"]).mul_(layer.mask)


LOW_RANK = LowRank()


class Dora:
    """m V / |V| with V = W + scaling B A and |V| the norm of each output's row (Liu et al. 2024, equation 5).

    |V| is a constant in the gradient (section 4.3). It is computed without forming V for every job:
    |w + s b A|^2 = |w|^2 + 2 s b (A w') + s^2 b (A A') b'.
    """

    parts = ("A", "B", "magnitude")

    def merged(self, weight: Tensor, bias: Tensor, parts: Parts, scaling: float) -> Weights:
        """m V / |V|."""
        direction, _ = LOW_RANK.merged(weight, bias, parts, scaling)
        return direction * (parts["magnitude"] / direction.norm(dim=1))[:, None], bias

    def forward(self, layer: AdaptedLayer, hidden: Tensor, outputs: Tensor) -> Tensors:
        """Apply the low-rank update, then multiply each output without its bias by m / |V|."""
        a, b = layer.parts["A"], layer.parts["B"]
        cross = (b * rowwise_product(a, layer.weight.t())).sum(1)
        square = (b * torch.bmm(torch.bmm(a, a.transpose(1, 2)), b)).sum(1)
        scaling = layer.scaling[:, :, 0]
        norm = (row_squares(layer.weight) + scaling * (2 * cross + scaling * square)).clamp_min_(TINY).sqrt_()
        ratio = (layer.parts["magnitude"] / norm)[:, None]
        low_rank = LOW_RANK.forward(layer, hidden, outputs)
        without_bias = outputs - layer.bias
        outputs.addcmul_(ratio - 1, without_bias)
        return *low_rank, without_bias, ratio, norm

    def gradients(self, layer: AdaptedLayer, hidden: Tensor, grad: Tensor, saved: Tensors) -> Gradients:
        inner, dropped, without_bias, ratio, norm = saved
        grad_magnitude = (grad * without_bias).sum(1) / norm
        grad *= ratio
        grads, carried = LOW_RANK.gradients(layer, hidden, grad, (inner, dropped))
        return (*grads, grad_magnitude), carried

    def input_gradient(self, layer: AdaptedLayer, grad: Tensor, carried: Tensors, grad_hidden: Tensor) -> None:
        LOW_RANK.input_gradient(layer, grad, carried, grad_hidden)


class Bias:
    """The bias alone is trained (Ben Zaken et al. 2021, section 3)."""

    parts = ("bias",)

    def merged(self, weight: Tensor, bias: Tensor, parts: Parts, scaling: float) -> Weights:
        return weight, parts["bias"]

    def forward(self, layer: AdaptedLayer, hidden: Tensor, outputs: Tensor) -> Tensors:
        """Add the difference between the two biases: exactly zero before training."""
        outputs += (layer.parts["bias"] - layer.bias)[:, None]
        return ()

    def gradients(self, layer: AdaptedLayer, hidden: Tensor, grad: Tensor, saved: Tensors) -> Gradients:
        return (grad.sum(1),), ()

    def input_gradient(self, layer: AdaptedLayer, grad: Tensor, carried: Tensors, grad_hidden: Tensor) -> None:
        """Nothing to add: the whole gradient goes through the frozen product."""


@dataclass(frozen=True)
class Dense:
    """The weight is trained, and the bias if there is one. Jobs share no product, so each has products of its own."""

    parts: tuple[str, ...] = ("weight", "bias")

    def merged(self, weight: Tensor, bias: Tensor, parts: Parts, scaling: float) -> Weights:
        return parts["weight"], parts.get("bias", bias)

    def forward(self, layer: AdaptedLayer, hidden: Tensor, outputs: Tensor) -> Tensors:
        """Overwrite the outputs of the frozen layer."""
        biases = layer.parts.get("bias", layer.bias.expand(len(outputs), -1))
        for own, rows, weight, bias in zip(outputs, hidden, layer.parts["weight"], biases, strict=True):
            torch.addmm(bias, rows, weight.t(), out=own)
        return ()

    def gradients(self, layer: AdaptedLayer, hidden: Tensor, grad: Tensor, saved: Tensors) -> Gradients:
        """Those of weight and bias, in memory that all steps share."""
        for own, rows, into in zip(grad, hidden, layer.buffers["weight"], strict=True):
            torch.mm(own.t(), rows, out=into)
        return (layer.buffers["weight"], grad.sum(1))[: len(self.parts)], ()

    def input_gradient(self, layer: AdaptedLayer, grad: Tensor, carried: Tensors, grad_hidden: Tensor) -> None:
        """Overwrite the gradient through the frozen layer."""
        for own, weight, into in zip(grad, layer.parts["weight"], grad_hidden, strict=True):
            torch.mm(own, weight, out=into)


@functools.lru_cache(maxsize=16)  # keyed by the identity of the weight
def row_squares(weight: Tensor) -> Tensor:
    """Square of the norm of each row of a weight [O, I]."""
    return weight.square().sum(1)


UPDATES: dict[str, Update] = {
    "low_rank": LOW_RANK,
    "dora": Dora(),
    "bias": Bias(),
    "dense": Dense(),
    "dense_weight": Dense(("weight",)),
}
KEEPS_GRADIENT = ("low_rank", "bias", "dense", "dense_weight")  # updates whose `gradients` leave `grad` as it is
OWN_PRODUCTS = ("dense", "dense_weight")  # updates of layers whose frozen product the job does not use
# How a part other than A and B starts, from the layer's weight [O, I] and bias [O].
INITIAL: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "weight": lambda weight, bias: weight,
    "bias": lambda weight, bias: bias,
    "magnitude": lambda weight, bias: row_squares(weight).sqrt(),
}
TINY = 1e-20  # smallest square of a norm


def part_shapes(update: str, rank: int, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
    """The shape of each part of one job that `update` trains, without padding: those of its adapter file."""
    matrices = {"A": (rank, inputs), "B": (outputs, rank), "weight": (outputs, inputs)}
    return {part: matrices.get(part, (outputs,)) for part in (() if update == "none" else UPDATES[update].parts)}
