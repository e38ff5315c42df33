"""The stacked adapters of a pack: P jobs over one frozen base.

Shapes: P jobs of the pack, n jobs of one group, B rows of a batch, C classes, I inputs and O outputs of a layer, R rank
padded with zeros to a multiple of RANK_MULTIPLE. Padded rows have zero gradients, so padding is exact.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import torch

from lora_exp.adapters.initialisation import Factors, initial_factors
from lora_exp.adapters.layer import AdaptedLayerFunction, Span
from lora_exp.adapters.plan import AdapterPlan, LayerPlan
from lora_exp.adapters.updates import OWN_PRODUCTS, UPDATES
from lora_exp.model.architecture import Constants, Layer, LayerShape
from lora_exp.model.base import BaseModel
from lora_exp.numerics import generator

Stacks = dict[str, torch.Tensor]


class Trained(NamedTuple):
    """A view of the trained rows of one part (A, B, ...) of one job in layer number `layer`."""

    layer: int
    part: str
    rows: torch.Tensor


@dataclass(frozen=True)
class Group:
    """Neighbouring jobs of a pack whose plans have the same shape, stacked."""

    jobs: tuple[int, ...]  # positions in the whole pack
    plans: tuple[AdapterPlan, ...]  # per job
    parts: tuple[Stacks, ...]  # per layer, [n, ...]: see updates.py
    scaling: tuple[torch.Tensor, ...]  # per layer, [n, 1, 1]
    buffers: tuple[Stacks, ...]  # per layer
    dropout: tuple[tuple[torch.Generator, ...], ...]  # per job, one generator a layer; empty without dropout

    def first(self, count: int) -> Group:
        """Return the first `count` jobs, as views of the same memory."""

        def cut(stacks: tuple[Stacks, ...]) -> tuple[Stacks, ...]:
            return tuple({part: stack[:count].detach() for part, stack in parts.items()} for parts in stacks)

        scaling = tuple(own[:count] for own in self.scaling)
        kept = cut(self.parts), scaling, cut(self.buffers), self.dropout[:count]
        return Group(self.jobs[:count], self.plans[:count], *kept)

    def update(self, at: int) -> str:
        """The kind of update of layer `at`."""
        return self.plans[0].layers[at].update

    def mask(self, at: int, rows_BI: torch.Tensor) -> torch.Tensor | None:
        """Draw the dropout mask of layer `at`, job by job: [n, B, I] of 0 or 1 / (1 - p); None without dropout."""
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
        """Build a pack of untrained adapters; `plans` of equal shape must be neighbours."""
        return AdapterPack.of(plans, [initial_factors(plan, base) for plan in plans], base)

    @staticmethod
    def of(plans: Sequence[AdapterPlan], factors: Sequence[Factors], base: BaseModel) -> AdapterPack:
        """Build a pack from the factors of each job; names and shapes are those of `initialisation.initial_factors`."""
        groups = []
        for _, members in groupby(enumerate(plans), key=lambda item: item[1].shape):
            jobs, own = zip(*members, strict=True)
            given = [factors[job] for job in jobs]
            stacked, scaling, buffers = [], [], []
            for at, layer in enumerate(base.layers):
                layer_plans = [plan.layers[at] for plan in own]
                parts = _stack(layer_plans, given, layer)
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
        """Positions in the whole pack of the jobs in this one, in order."""
        return [job for group in self.groups for job in group.jobs]

    def first(self, counts: Sequence[int]) -> AdapterPack:
        """Return the first `counts[g]` jobs of each group g, as views of the same memory."""
        kept = (group.first(count) for group, count in zip(self.groups, counts, strict=True) if count)
        return AdapterPack(tuple(kept))

    def stacks(self) -> list[torch.Tensor]:
        """List every part of every layer of every group, in a fixed order."""
        return [stack for group in self.groups for parts in group.parts for stack in parts.values()]

    def trained(self, like_stacks: Sequence[torch.Tensor]) -> list[list[Trained]]:
        """Return, for each job, views of its trained rows in tensors that are shaped like `stacks()`."""
        by_job: list[list[Trained]] = []
        tensors = iter(like_stacks)
        for group in self.groups:
            taken = [(at, part, next(tensors)) for at, parts in enumerate(group.parts) for part in parts]
            for row, plan in enumerate(group.plans):
                by_job.append(
                    [Trained(at, part, rows) for at, part, t in taken for rows in _rows(part, t[row], plan.layers[at])]
                )
        return by_job

    def generators(self) -> list[tuple[torch.Generator, ...]]:
        """Return the dropout generators of each job, one a layer; none without dropout."""
        return [own for group in self.groups for own in group.dropout or ((),) * len(group.jobs)]

    def factors(self, layers: Sequence[LayerShape]) -> list[Factors]:
        """Copy the factors of each job to the CPU, without padding, named as in `initial_factors`."""
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
        """Whether any job uses the frozen product of layer `at`."""
        return not self.groups or any(group.update(at) not in OWN_PRODUCTS for group in self.groups)

    def logits(
        self, base: BaseModel, images_PBI: torch.Tensor, constants: Constants | None = None, training: bool = False
    ) -> torch.Tensor:
        """Compute the logits [P, B, C] of every adapted classifier.

        `constants` are what the frozen part of the base computes of these images, if known; their memory is
        overwritten. Dropout applies while `training` only.
        """
        return base.forward(images_PBI, functools.partial(self.layer, training=training), constants)

    def layer(
        self,
        at: int | None,
        layer: Layer,
        hidden_PBI: torch.Tensor,
        rectify: bool = False,
        frozen_PBO: torch.Tensor | None = None,
        *,
        training: bool = False,
    ) -> torch.Tensor:
        """Compute the outputs [P, B, O] of layer `at`: the frozen product, then each job's update, then ReLU.

        A layer whose number is None is frozen for every job. `frozen_PBO` is the frozen product, if known; its memory
        holds the outputs afterwards.
        """
        spans, stacks = [], []
        start = 0
        shares = at is None or self.shares(at)
        for group in self.groups:
            if at is None:
                break
            stop = start + len(group.jobs)
            if (update := group.update(at)) != "none":
                mask = group.mask(at, hidden_PBI[0]) if training else None
                spans.append(Span(start, stop, update, group.scaling[at], mask, group.buffers[at]))
                stacks += [group.parts[at][part] for part in UPDATES[update].parts]
            start = stop
        if frozen_PBO is None and not shares:
            frozen_PBO = hidden_PBI.new_empty(*hidden_PBI.shape[:2], len(layer.weight))
        outputs: torch.Tensor = AdaptedLayerFunction.apply(
            hidden_PBI, frozen_PBO, layer.weight, layer.bias, rectify, shares, spans, *stacks
        )
        return outputs


def _rows(part: str, own: torch.Tensor, plan: LayerPlan) -> list[torch.Tensor]:
    """Return views of the trained rows of a part of one job."""
    if part in "AB":
        return [own[: plan.rank]]
    return [own] if plan.outputs is None else [own[at : at + 1] for at in plan.outputs]


def _stack(plans: Sequence[LayerPlan], factors: Sequence[Factors], layer: Layer) -> Stacks:
    """Stack the parts of one layer: A [n, R, I] and B [n, R, O] padded with zeros, others [n, ...] unpadded."""
    stacked: Stacks = {}
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
