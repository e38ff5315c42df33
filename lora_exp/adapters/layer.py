"""One layer of a whole pack, as one autograd function.

Shapes: P jobs of the pack, n jobs of one span, B rows of a batch, I inputs and O outputs of the layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from lora_exp.adapters.updates import KEEPS_GRADIENT, UPDATES, AdaptedLayer, Parts, Update
from lora_exp.numerics import frozen_product, rowwise_product


class Span(NamedTuple):
    """The jobs `start:stop` of a pack, to which the same kind of update applies; see `updates.AdaptedLayer`."""

    start: int
    stop: int
    update: str
    scaling: torch.Tensor
    mask: torch.Tensor | None
    buffers: Parts


class AdaptedLayerFunction(torch.autograd.Function):
    """One layer of a pack, with the gradients of its input and of every trained part, never of the frozen weight.

    One function, so that every pass over [P, B, O] happens in place.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        frozen: torch.Tensor | None,
        weight: torch.Tensor,
        bias: torch.Tensor,
        rectify: bool,
        shares: bool,
        spans: list[Span],
        *stacks: torch.Tensor,
    ) -> torch.Tensor:
        """Compute outputs [P, B, O] of hidden [P, B, I].

        `frozen` is the frozen product, if known, and becomes the output; `shares` tells whether any job needs the
        frozen weight; `stacks` are the trained parts of all spans, one span after another.
        """
        if frozen is not None:
            ctx.mark_dirty(frozen)
        outputs = frozen_product(hidden, weight, bias) if frozen is None else frozen
        saved = [
            update.forward(layer, hidden[jobs], outputs[jobs])
            for jobs, update, layer in _updates(spans, weight, bias, stacks)
        ]
        if rectify:
            outputs.clamp_min_(0)
        # Of a layer that no job adapts, the input is not kept.
        kept = hidden if spans else None, weight, bias, outputs if rectify else None
        ctx.save_for_backward(*kept, *stacks, *(t for own in saved for t in own))
        ctx.spans, ctx.shares, ctx.saved_counts = spans, shares, [len(own) for own in saved]
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Compute the gradients of `hidden` and of every stack from `grad` [P, B, O]."""
        hidden, weight, bias, rectified, *rest = ctx.saved_tensors
        count = len(rest) - sum(ctx.saved_counts)
        stacks, saved = rest[:count], iter(rest[count:])
        grad = grad.contiguous()
        if rectified is not None:
            # In place: only the layer above produced this gradient, and nothing else refers to it.
            torch.ops.aten.threshold_backward.grad_input(grad, rectified, 0, grad_input=grad)
        elif any(span.update not in KEEPS_GRADIENT for span in ctx.spans):
            grad = grad.clone()  # a skip connection may have the same gradient
        updates = list(_updates(ctx.spans, weight, bias, stacks))
        part_grads: list[torch.Tensor] = []
        carried = []
        for (jobs, update, layer), saved_count in zip(updates, ctx.saved_counts, strict=True):
            own = tuple(next(saved) for _ in range(saved_count))
            grads, for_input = update.gradients(layer, hidden[jobs], grad[jobs], own)
            part_grads += grads
            carried.append(for_input)
        grad_hidden = None
        if ctx.needs_input_grad[0]:
            grad_hidden = rowwise_product(grad, weight) if ctx.shares else torch.empty_like(hidden)
            for (jobs, update, layer), for_input in zip(updates, carried, strict=True):
                update.input_gradient(layer, grad[jobs], for_input, grad_hidden[jobs])
        return (grad_hidden, None, None, None, None, None, None, *part_grads)


def _updates(
    spans: list[Span], weight: torch.Tensor, bias: torch.Tensor, stacks: Sequence[torch.Tensor]
) -> Iterator[tuple[slice, Update, AdaptedLayer]]:
    """Yield the jobs, the update and the layer of every span."""
    left = iter(stacks)
    for span in spans:
        update = UPDATES[span.update]
        parts = {part: next(left) for part in update.parts}
        layer = AdaptedLayer(weight, bias, parts, span.scaling, span.mask, span.buffers)
        yield slice(span.start, span.stop), update, layer
