"""How a layer is changed for n stacked jobs: outputs and gradients by hand, in place.

By hand, because at this size memory, not arithmetic, sets the pace of everything but the frozen product: plain autograd
was a tenth slower (docs/performance.md). Each update is a small final class; these three make a step:

- `forward` finds the frozen product plus bias in `outputs`, turns it into the adapted layer's output, and returns what
  the gradients need;
- `gradients` gives the gradient of every trained part, and leaves in `grad` what reaches the frozen product;
- `into_hidden` finds in `grad_hidden` what came through the frozen product and adds what came past it.

Shapes: n jobs, B rows of a batch, I inputs and O outputs of the layer, R padded rank. A is [n, R, I]; B is kept
transposed, [n, R, O], so that the real rows of both factors come first.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from lora_exp.numerics import rowwise_product

Tensors = tuple[torch.Tensor, ...]
Gradients = tuple[Tensors, Tensors]
Weights = tuple[torch.Tensor, torch.Tensor]
Parts = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Adapted:
    """One layer of one group of stacked jobs: the frozen layer, the trained parts, and what else a step needs.

    `scaling` is [n, 1, 1]; `mask` (None without dropout) multiplies what goes into A: [n, B, I]; `buffers` are as the
    parts, memory for gradients that are too large to be made anew in each step.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    parts: Parts
    scaling: torch.Tensor
    mask: torch.Tensor | None
    buffers: Parts


class Update(Protocol):
    """See the top of this file; `parts` names the trained tensors in the order of their gradients."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Such as A and B."""
        ...

    def parameters(self, rank: int, outputs: int, inputs: int) -> int:
        """Trained parameters of one layer of one job."""
        ...

    def start(self, weight: torch.Tensor, bias: torch.Tensor) -> dict[str, torch.Tensor]:
        """The parts other than A and B as they start, for one job; A and B are those of `initialisation.py`."""
        ...

    def merged(self, weight: torch.Tensor, bias: torch.Tensor, parts: Parts, scaling: float) -> Weights:
        """Weight [O, I] and bias [O] with one job's update made part of them; its A is [r, I], its B [O, r]."""
        ...

    def forward(self, layer: Adapted, hidden: torch.Tensor, outputs: torch.Tensor) -> Tensors:
        """hidden [n, B, I]; outputs [n, B, O], changed in place."""
        ...

    def gradients(self, layer: Adapted, hidden: torch.Tensor, grad: torch.Tensor, saved: Tensors) -> Gradients:
        """The parts' gradients, and what `into_hidden` takes up; grad [n, B, O] may be changed in place."""
        ...

    def into_hidden(self, layer: Adapted, grad: torch.Tensor, carried: Tensors, grad_hidden: torch.Tensor) -> None:
        """grad_hidden [n, B, I], changed in place."""


class LowRank:
    """W + scaling B A (Hu et al. 2021, section 4.1)."""

    parts = ("A", "B")

    def parameters(self, rank: int, outputs: int, inputs: int) -> int:
        """A and B."""
        return rank * (outputs + inputs)

    def start(self, weight: torch.Tensor, bias: torch.Tensor) -> dict[str, torch.Tensor]:
        """Nothing besides A and B."""
        return {}

    def merged(self, weight: torch.Tensor, bias: torch.Tensor, parts: Parts, scaling: float) -> Weights:
        """W + scaling B A."""
        return weight + scaling * (parts["B"] @ parts["A"]), bias

    def forward(self, layer: Adapted, hidden: torch.Tensor, outputs: torch.Tensor) -> Tensors:
        """outputs + scaling (hidden A') B'."""
        shown = hidden if layer.mask is None else hidden * layer.mask
        inner = torch.bmm(shown, layer.parts["A"].transpose(1, 2)).mul_(layer.scaling)
        torch.baddbmm(outputs, inner, layer.parts["B"], out=outputs)
        return inner, shown

    def gradients(self, layer: Adapted, hidden: torch.Tensor, grad: torch.Tensor, saved: Tensors) -> Gradients:
        """Of A and B."""
        inner, shown = saved
        grad_inner = torch.bmm(grad, layer.parts["B"].transpose(1, 2)).mul_(layer.scaling)
        return (torch.bmm(grad_inner.transpose(1, 2), shown), torch.bmm(inner.transpose(1, 2), grad)), (grad_inner,)

    def into_hidden(self, layer: Adapted, grad: torch.Tensor, carried: Tensors, grad_hidden: torch.Tensor) -> None:
        """Adds what came through A, and through the dropout before it."""
        (grad_inner,) = carried
        if layer.mask is None:
            torch.baddbmm(grad_hidden, grad_inner, layer.parts["A"], out=grad_hidden)
        else:
            grad_hidden += torch.bmm(grad_inner, layer.parts["A"]).mul_(layer.mask)


LOW_RANK = LowRank()


class Dora:
    """m V / |V| with V = W + scaling B A and |V| the norm of each output's row (Liu et al. 2024, equation 5).

    |V| counts as a constant in the gradient (section 4.3). It is found without forming V of every job:
    |w + s b A|^2 = |w|^2 + 2 s b (A w') + s^2 b (A A') b'.
    """

    parts = ("A", "B", "magnitude")

    def parameters(self, rank: int, outputs: int, inputs: int) -> int:
        """A, B and one magnitude an output."""
        return rank * (outputs + inputs) + outputs

    def start(self, weight: torch.Tensor, bias: torch.Tensor) -> dict[str, torch.Tensor]:
        """The norm of each output's row."""
        return {"magnitude": _row_squares(weight).sqrt()}

    def merged(self, weight: torch.Tensor, bias: torch.Tensor, parts: Parts, scaling: float) -> Weights:
        """m V / |V|."""
        direction, _ = LOW_RANK.merged(weight, bias, parts, scaling)
        return direction * (parts["magnitude"] / direction.norm(dim=1))[:, None], bias

    def forward(self, layer: Adapted, hidden: torch.Tensor, outputs: torch.Tensor) -> Tensors:
        """The low-rank update, then each output times m / |V|; the bias stays as it is."""
        a, b = layer.parts["A"], layer.parts["B"]
        cross = (b * rowwise_product(a, layer.weight.t())).sum(1)
        square = (b * torch.bmm(torch.bmm(a, a.transpose(1, 2)), b)).sum(1)
        scaling = layer.scaling[:, :, 0]
        norm = (_row_squares(layer.weight) + scaling * (2 * cross + scaling * square)).clamp_min_(TINY).sqrt_()
        ratio = (layer.parts["magnitude"] / norm)[:, None]
        low_rank = LOW_RANK.forward(layer, hidden, outputs)
        without_bias = outputs - layer.bias
        outputs.addcmul_(ratio - 1, without_bias)
        return *low_rank, without_bias, ratio, norm

    def gradients(self, layer: Adapted, hidden: torch.Tensor, grad: torch.Tensor, saved: Tensors) -> Gradients:
        """Of A, B and the magnitude."""
        inner, shown, without_bias, ratio, norm = saved
        grad_magnitude = (grad * without_bias).sum(1) / norm
        grad *= ratio
        grads, carried = LOW_RANK.gradients(layer, hidden, grad, (inner, shown))
        return (*grads, grad_magnitude), carried

    def into_hidden(self, layer: Adapted, grad: torch.Tensor, carried: Tensors, grad_hidden: torch.Tensor) -> None:
        """As the low-rank update."""
        LOW_RANK.into_hidden(layer, grad, carried, grad_hidden)


class Bias:
    """The bias alone is trained (Ben Zaken et al. 2021, section 3)."""

    parts = ("bias",)

    def parameters(self, rank: int, outputs: int, inputs: int) -> int:
        """One an output."""
        return outputs

    def start(self, weight: torch.Tensor, bias: torch.Tensor) -> dict[str, torch.Tensor]:
        """The base's."""
        return {"bias": bias.clone()}

    def merged(self, weight: torch.Tensor, bias: torch.Tensor, parts: Parts, scaling: float) -> Weights:
        """The job's own bias."""
        return weight, parts["bias"]

    def forward(self, layer: Adapted, hidden: torch.Tensor, outputs: torch.Tensor) -> Tensors:
        """Exactly the base's outputs as long as the bias is the base's."""
        outputs += (layer.parts["bias"] - layer.bias)[:, None]
        return ()

    def gradients(self, layer: Adapted, hidden: torch.Tensor, grad: torch.Tensor, saved: Tensors) -> Gradients:
        """Of the bias."""
        return (grad.sum(1),), ()

    def into_hidden(self, layer: Adapted, grad: torch.Tensor, carried: Tensors, grad_hidden: torch.Tensor) -> None:
        """Nothing goes past the frozen product."""


class Dense:
    """Weight and bias of the layer are the job's own; nothing is shared, so its products are made job by job."""

    parts = ("weight", "bias")

    def parameters(self, rank: int, outputs: int, inputs: int) -> int:
        """All of the layer's."""
        return outputs * inputs + outputs

    def start(self, weight: torch.Tensor, bias: torch.Tensor) -> dict[str, torch.Tensor]:
        """The base's."""
        return {"weight": weight.clone(), "bias": bias.clone()}

    def merged(self, weight: torch.Tensor, bias: torch.Tensor, parts: Parts, scaling: float) -> Weights:
        """The job's own weight and bias."""
        return parts["weight"], parts["bias"]

    def forward(self, layer: Adapted, hidden: torch.Tensor, outputs: torch.Tensor) -> Tensors:
        """Takes the place of whatever the frozen layer gave."""
        for own, rows, weight, bias in zip(outputs, hidden, *layer.parts.values(), strict=True):
            torch.addmm(bias, rows, weight.t(), out=own)
        return ()

    def gradients(self, layer: Adapted, hidden: torch.Tensor, grad: torch.Tensor, saved: Tensors) -> Gradients:
        """Of weight and bias, in memory that every step uses again."""
        for own, rows, into in zip(grad, hidden, layer.buffers["weight"], strict=True):
            torch.mm(own.t(), rows, out=into)
        return (layer.buffers["weight"], grad.sum(1)), ()

    def into_hidden(self, layer: Adapted, grad: torch.Tensor, carried: Tensors, grad_hidden: torch.Tensor) -> None:
        """Takes the place of what came through the frozen layer."""
        for own, weight, into in zip(grad, layer.parts["weight"], grad_hidden, strict=True):
            torch.mm(own, weight, out=into)


UPDATES: dict[str, Update] = {"low_rank": LOW_RANK, "dora": Dora(), "bias": Bias(), "dense": Dense()}
TINY = 1e-20  # of the square of a norm


@functools.lru_cache(maxsize=16)  # by identity of the weight
def _row_squares(weight: torch.Tensor) -> torch.Tensor:
    return weight.square().sum(1)
