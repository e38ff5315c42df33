"""The adapters of a whole pack, stacked: P jobs over one frozen base.

Shapes: P jobs of the pack, n jobs of one group, B rows of a batch, I inputs and O outputs of a layer, R rank padded
with zeros to a multiple of 8. Padded rows have zero gradients, so padding is exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from lora_exp.adapters.initialisation import Factors, initial_factors
from lora_exp.adapters.plan import AdapterPlan, LayerPlan
from lora_exp.adapters.updates import UPDATES, Adapted
from lora_exp.model.architecture import LayerShape
from lora_exp.model.base import BaseModel, Layer
from lora_exp.numerics import frozen_product, generator, rowwise_product

Parts = dict[str, torch.Tensor]


class Trained(NamedTuple):
    """A view on the trained rows of one part (A, B, ...) of one job, at layer number `layer`."""

    layer: int
    part: str
    rows: torch.Tensor


@dataclass(frozen=True)
class Group:
    """Neighbouring jobs of a pack with plans of equal shape, stacked; everything but `jobs` is per layer or job."""

    jobs: tuple[int, ...]  # positions in the whole pack
    plans: tuple[AdapterPlan, ...]
    parts: tuple[Parts, ...]  # of each layer, [n, ...]: see updates.py
    scaling: tuple[torch.Tensor, ...]  # of each layer, [n, 1, 1]
    buffers: tuple[Parts, ...]
    dropout: tuple[tuple[torch.Generator, ...], ...]  # of each job, one a layer; empty without dropout

    def first(self, count: int) -> Group:
        """The first `count` jobs, as views on the same memory."""

        def cut(stacks: tuple[Parts, ...]) -> tuple[Parts, ...]:
            return tuple({part: stack[:count].detach() for part, stack in parts.items()} for parts in stacks)

        scaling = tuple(own[:count] for own in self.scaling)
        kept = cut(self.parts), scaling, cut(self.buffers), self.dropout[:count]
        return Group(self.jobs[:count], self.plans[:count], *kept)

    def update(self, at: int) -> str:
        """What is done to layer `at`."""
        return self.plans[0].layers[at].update

    def mask(self, at: int, rows_BI: torch.Tensor) -> torch.Tensor | None:
        """What dropout leaves of the rows that enter layer `at`: [n, B, I] of 0 or 1 / (1 - p), drawn job by job."""
        if not self.dropout:
            return None
        masks = []
        for plan, generators in zip(self.plans, self.dropout, strict=True):
            kept = torch.rand(rows_BI.shape, generator=generators[at]) >= plan.dropout
            masks.append(kept.to(rows_BI.dtype).div_(1 - plan.dropout))
        return torch.stack(masks).to(rows_BI.device)


@dataclass(frozen=True)
class AdapterPack:
    """The adapters of P jobs, as groups of equal shape in pack order."""

    groups: tuple[Group, ...]

    @staticmethod
    def initial(plans: Sequence[AdapterPlan], base: BaseModel) -> AdapterPack:
        """Adapters as they start; `plans` must come in an order that puts equal shapes side by side."""
        return AdapterPack.of(plans, [initial_factors(plan, base) for plan in plans], base)

    @staticmethod
    def of(plans: Sequence[AdapterPlan], factors: Sequence[Factors], base: BaseModel) -> AdapterPack:
        """Adapters with given factors (`initialisation.initial_factors` has their names and shapes)."""
        groups = []
        for _, members in groupby(enumerate(plans), key=lambda item: item[1].shape):
            jobs, own = zip(*members, strict=True)
            given = [factors[job] for job in jobs]
            stacked, scaling, buffers = [], [], []
            for at, layer in enumerate(base.layers):
                layer_plans = [plan.layers[at] for plan in own]
                parts = _stacked(layer_plans, given, layer)
                stacked.append(parts)
                factor = layer.weight.new_tensor([plan.scaling for plan in layer_plans])
                scaling.append(factor[:, None, None])
                buffers.append({"weight": torch.empty_like(parts["weight"])} if "weight" in parts else {})
            dropout = tuple(
                tuple(generator("dropout", plan.seed, at) for at in range(len(base.layers)))
                for plan in own
                if plan.dropout > 0
            )
            groups.append(Group(jobs, own, tuple(stacked), tuple(scaling), tuple(buffers), dropout))
        return AdapterPack(tuple(groups))

    @property
    def jobs(self) -> list[int]:
        """Positions in the whole pack of the jobs that are here, in order."""
        return [job for group in self.groups for job in group.jobs]

    def first(self, counts: Sequence[int]) -> AdapterPack:
        """The first `counts[g]` jobs of each group g, as views on the same memory."""
        kept = (group.first(count) for group, count in zip(self.groups, counts, strict=True) if count)
        return AdapterPack(tuple(kept))

    def stacks(self) -> list[torch.Tensor]:
        """Every trained part of every layer of every group, in a fixed order."""
        return [stack for group in self.groups for parts in group.parts for stack in parts.values()]

    def trained(self, like_stacks: Sequence[torch.Tensor]) -> list[list[Trained]]:
        """For each job the views on its trained rows of tensors that are shaped as `stacks()` is."""
        by_job: list[list[Trained]] = []
        tensors = iter(like_stacks)
        for group in self.groups:
            taken = [(at, part, next(tensors)) for at, parts in enumerate(group.parts) for part in parts]
            for row, plan in enumerate(group.plans):
                ranks = [own.rank for own in plan.layers]
                by_job.append([Trained(at, p, t[row, : ranks[at]] if p in "AB" else t[row]) for at, p, t in taken])
        return by_job

    def generators(self) -> list[tuple[torch.Generator, ...]]:
        """For each job the generators of its dropout, one a layer; none without dropout."""
        return [own for group in self.groups for own in group.dropout or ((),) * len(group.jobs)]

    def factors(self, layers: Sequence[LayerShape]) -> list[Factors]:
        """For each job its factors on the CPU, without padding, named as `initial_factors` names them."""
        named = []
        for group in self.groups:
            for row, plan in enumerate(group.plans):
                own = {}
                for layer, layer_plan, parts in zip(layers, plan.layers, group.parts, strict=True):
                    rows = layer_plan.rank + layer_plan.kept
                    for part, stack in parts.items():
                        value = stack[row, :rows] if part in "AB" else stack[row]
                        value = value.T if part == "B" else value
                        own[f"{layer.name}.{part}"] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
                named.append(own)
        return named

    def shares(self, at: int) -> bool:
        """Whether any job needs the frozen product of layer `at`."""
        return not self.groups or any(group.update(at) != "dense" for group in self.groups)

    def layer(
        self,
        at: int,
        layer: Layer,
        hidden_PBI: torch.Tensor,
        rectify: bool,
        frozen_PBO: torch.Tensor | None = None,
        training: bool = False,
    ) -> torch.Tensor:
        """Outputs [P, B, O] of layer `at`: the frozen product, changed by each job's own update, then ReLU.

        `frozen_PBO` is the frozen product where it is known already; its memory is taken for the outputs. Dropout
        is drawn while `training` only.
        """
        spans, stacks = [], []
        start = 0
        for group in self.groups:
            stop = start + len(group.jobs)
            if (update := group.update(at)) != "none":
                mask = group.mask(at, hidden_PBI[0]) if training else None
                spans.append((start, stop, update, group.scaling[at], mask, group.buffers[at]))
                stacks += [group.parts[at][part] for part in UPDATES[update].parts]
            start = stop
        if frozen_PBO is None and not self.shares(at):
            frozen_PBO = hidden_PBI.new_empty(*hidden_PBI.shape[:2], len(layer.weight))
        outputs: torch.Tensor = _AdaptedLayer.apply(
            hidden_PBI, frozen_PBO, layer.weight, layer.bias, rectify, self.shares(at), spans, *stacks
        )
        return outputs


def _stacked(plans: Sequence[LayerPlan], factors: Sequence[Factors], layer: Layer) -> Parts:
    """The parts of one layer, [n, ...]: A [n, R, I] and B [n, R, O] padded with zeros, others as they are."""
    stacked: Parts = {}
    for part in () if plans[0].update == "none" else UPDATES[plans[0].update].parts:
        values = [own[f"{layer.name}.{part}"] for own in factors]
        if part not in "AB":
            stacked[part] = torch.stack(values).to(layer.weight.device)
            continue
        stack = torch.zeros(len(plans), plans[0].padded, layer.weight.shape[part == "A"], dtype=layer.weight.dtype)
        for row, value in zip(stack, values, strict=True):
            value = value.T if part == "B" else value
            row[: len(value)] = value
        stacked[part] = stack.to(layer.weight.device)
    return stacked


class _AdaptedLayer(torch.autograd.Function):
    """One layer of a whole pack, with the gradients of its input and of every trained part, never of the frozen weight.

    One function rather than several: every pass over [P, B, O] is made in place.
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
        spans: list[tuple[int, int, str, torch.Tensor, torch.Tensor | None, Parts]],
        *stacks: torch.Tensor,
    ) -> torch.Tensor:
        if frozen is not None:
            ctx.mark_dirty(frozen)
        outputs = frozen_product(hidden, weight, bias) if frozen is None else frozen
        saved = []
        for start, stop, update, layer in _adapted(spans, weight, bias, stacks):
            saved.append(UPDATES[update].forward(layer, hidden[start:stop], outputs[start:stop]))
        if rectify:
            outputs.clamp_min_(0)
        ctx.save_for_backward(
            hidden, weight, bias, outputs if rectify else None, *stacks, *(t for s in saved for t in s)
        )
        ctx.spans, ctx.shares, ctx.counts = spans, shares, [len(s) for s in saved]
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, bias, rectified, *rest = ctx.saved_tensors
        count = len(rest) - sum(ctx.counts)
        stacks, saved = rest[:count], iter(rest[count:])
        grad = grad.contiguous()
        if rectified is not None:
            # In place: the gradient comes from the one layer above, and nothing else holds it.
            torch.ops.aten.threshold_backward.grad_input(grad, rectified, 0, grad_input=grad)
        grads: list[torch.Tensor] = []
        carried = []
        layers = list(_adapted(ctx.spans, weight, bias, stacks))
        for (start, stop, update, layer), needs in zip(layers, ctx.counts, strict=True):
            own = tuple(next(saved) for _ in range(needs))
            parts, more = UPDATES[update].gradients(layer, hidden[start:stop], grad[start:stop], own)
            grads += parts
            carried.append(more)
        grad_hidden = None
        if ctx.needs_input_grad[0]:
            grad_hidden = rowwise_product(grad, weight) if ctx.shares else torch.empty_like(hidden)
            for (start, stop, update, layer), more in zip(layers, carried, strict=True):
                UPDATES[update].into_hidden(layer, grad[start:stop], more, grad_hidden[start:stop])
        return (grad_hidden, None, None, None, None, None, None, *grads)


def _adapted(spans: Any, weight: torch.Tensor, bias: torch.Tensor, stacks: Sequence[torch.Tensor]) -> Any:
    """(start, stop, update, layer) of every group that changes the layer."""
    left = iter(stacks)
    for start, stop, update, scaling, mask, buffers in spans:
        parts: Mapping[str, torch.Tensor] = {part: next(left) for part in UPDATES[update].parts}
        yield start, stop, update, Adapted(weight, bias, parts, scaling, mask, buffers)
