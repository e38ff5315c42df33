"""The low-rank updates of a whole pack, stacked: W + scaling * B A for P adapters over one frozen base.

Source: Hu et al. 2021, "LoRA", section 4.1 (arXiv:2106.09685): B starts at zero, A is Gaussian, and the
update is scaled by alpha / rank.

Shapes: P jobs of the pack, n jobs of one group, B images of a batch, I inputs and O outputs of a layer,
R rank padded with zeros to a multiple of 8. B is kept transposed, [R, O], so that the real rows of both
factors come first. Padded rows have zero gradients, so padding is exact; it keeps every product out of
matrix-vector kernels, whose bits differ, and makes a job's products the same in every pack it may be in.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from lora_exp.numerics import LEAST_ROWS
from lora_exp.seeding import generator
from lora_exp.spec import AdapterSpec, SpecError

RANK_MULTIPLE = 8


@dataclass(frozen=True)
class AdapterPlan:
    """One adapter before it is trained: rank per layer (0: not adapted), scaling and initialisation."""

    ranks: tuple[int, ...]
    scaling: float
    init_std: float
    seed: int

    @property
    def padded(self) -> tuple[int, ...]:
        """Rank per layer rounded up to a multiple of 8."""
        return tuple(-(-rank // RANK_MULTIPLE) * RANK_MULTIPLE for rank in self.ranks)


def adapter_plan(spec: AdapterSpec, layer_names: Sequence[str], seed: int) -> AdapterPlan:
    """Apply the patterns of `spec.layers` to the layers of a model.

    Raises SpecError when a pattern matches no layer.
    """
    for pattern in spec.layers:
        if not fnmatch.filter(layer_names, pattern):
            raise SpecError(f"adapter.layers={pattern}: matches no layer; there are {', '.join(layer_names)}")
    chosen = [any(fnmatch.fnmatch(name, pattern) for pattern in spec.layers) for name in layer_names]
    ranks = tuple(spec.rank if yes else 0 for yes in chosen)
    return AdapterPlan(ranks, spec.scaling, spec.init_std, seed)


def adapter_parameters(shapes: Sequence[tuple[int, ...]], ranks: Sequence[int]) -> list[int]:
    """Trainable parameters per layer: rank * (I + O), for weights of shape [O, I]."""
    return [rank * (shape[0] + shape[1]) for shape, rank in zip(shapes, ranks, strict=True)]


@dataclass(frozen=True)
class RankGroup:
    """Neighbouring jobs of a pack that share their padded ranks; factors per layer, None where not adapted."""

    jobs: tuple[int, ...]  # positions in the whole pack
    plans: tuple[AdapterPlan, ...]
    down: tuple[torch.Tensor | None, ...]  # A: [n, R, I]
    up: tuple[torch.Tensor | None, ...]  # B transposed: [n, R, O]
    scaling: torch.Tensor  # [n, 1, 1]

    def first(self, count: int) -> RankGroup:
        """The first `count` jobs, as views on the same memory."""
        return RankGroup(
            self.jobs[:count],
            self.plans[:count],
            tuple(None if a is None else a[:count].detach() for a in self.down),
            tuple(None if b is None else b[:count].detach() for b in self.up),
            self.scaling[:count],
        )

    def stacks(self) -> list[tuple[int, torch.Tensor]]:
        """(layer, factor [n, R, I or O]) of every adapted layer."""
        factors = (self.down, self.up)
        return [(at, f[at]) for at in range(len(self.down)) for f in factors if f[at] is not None]  # type: ignore[misc]


@dataclass(frozen=True)
class AdapterPack:
    """The adapters of P jobs, as groups of equal padded rank in pack order."""

    groups: tuple[RankGroup, ...]

    @staticmethod
    def initial(plans: Sequence[AdapterPlan], shapes: Sequence[tuple[int, ...]], device: torch.device) -> AdapterPack:
        """A ~ N(0, init_std), B = 0; `plans` must come in an order that puts equal padded ranks side by side.

        A of layer k is drawn from a generator of (seed, k) row by row, so that adapters of different rank
        share their first rows.
        """
        groups = []
        for padded, members in groupby(enumerate(plans), key=lambda item: item[1].padded):
            jobs, own = zip(*members, strict=True)
            down: list[torch.Tensor | None] = []
            up: list[torch.Tensor | None] = []
            for at, (rank, (outputs, inputs)) in enumerate(zip(padded, shapes, strict=True)):
                if rank == 0:
                    down.append(None)
                    up.append(None)
                    continue
                a_nRI = torch.zeros(len(jobs), rank, inputs)
                for row, plan in enumerate(own):
                    random = generator("adapter initialisation", plan.seed, at)
                    drawn = torch.randn(plan.ranks[at], inputs, generator=random)
                    a_nRI[row, : plan.ranks[at]] = drawn * plan.init_std
                down.append(a_nRI.to(device))
                up.append(torch.zeros(len(jobs), rank, outputs, device=device))
            scaling = torch.tensor([plan.scaling for plan in own], device=device).view(-1, 1, 1)
            groups.append(RankGroup(jobs, own, tuple(down), tuple(up), scaling))
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
        """Every factor of every group, in a fixed order."""
        return [tensor for group in self.groups for _, tensor in group.stacks()]

    def real_rows(self, like_stacks: Sequence[torch.Tensor]) -> list[list[torch.Tensor]]:
        """For each job the views on its rows, without padding, of tensors that are shaped as `stacks()` is."""
        by_job: list[list[torch.Tensor]] = []
        tensors = iter(like_stacks)
        for group in self.groups:
            taken = [(at, next(tensors)) for at, _ in group.stacks()]
            by_job += [[t[row, : plan.ranks[at]] for at, t in taken] for row, plan in enumerate(group.plans)]
        return by_job

    def factors(self, layer_names: Sequence[str]) -> list[dict[str, torch.Tensor]]:
        """For each job its real factors on the CPU, `<layer>.A` [rank, I] and `<layer>.B` [O, rank]."""
        named = []
        for group in self.groups:
            for row, plan in enumerate(group.plans):
                own = {}
                for name, rank, a, b in zip(layer_names, plan.ranks, group.down, group.up, strict=True):
                    if a is not None and b is not None:
                        own[f"{name}.A"] = a[row, :rank].detach().cpu().clone()
                        own[f"{name}.B"] = b[row, :rank].detach().cpu().T.contiguous()
                named.append(own)
        return named

    def linear(
        self,
        at: int,
        hidden_PBI: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        rectify: bool,
        frozen_PBO: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Outputs [P, B, O] of layer `at`: the frozen product and each job's own low-rank product, then ReLU.

        `frozen_PBO` is the frozen product where it is known already; its memory is taken for the outputs.
        """
        spans, factors = [], []
        start = 0
        for group in self.groups:
            stop = start + len(group.jobs)
            a, b = group.down[at], group.up[at]
            if a is not None and b is not None:
                spans.append((start, stop, group.scaling))
                factors += [a, b]
            start = stop
        outputs: torch.Tensor = _AdaptedLinear.apply(hidden_PBI, frozen_PBO, weight, bias, rectify, spans, *factors)
        return outputs


class _AdaptedLinear(torch.autograd.Function):
    """ReLU(h W' + bias + scaling * (h A') B'), with the gradients of h, A and B and never one of W.

    One function rather than several: every pass over [P, B, O] is made in place, since at this size memory,
    not arithmetic, sets the pace of everything but the frozen product.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        frozen: torch.Tensor | None,
        weight: torch.Tensor,
        bias: torch.Tensor,
        rectify: bool,
        spans: list[tuple[int, int, torch.Tensor]],
        *factors: torch.Tensor,
    ) -> torch.Tensor:
        if frozen is not None:
            ctx.mark_dirty(frozen)
        outputs = frozen_product(hidden, weight, bias) if frozen is None else frozen
        inner = []
        for (start, stop, scaling), a, b in zip(spans, factors[::2], factors[1::2], strict=True):
            scaled = torch.bmm(hidden[start:stop], a.transpose(1, 2)).mul_(scaling)
            part = outputs[start:stop]
            torch.baddbmm(part, scaled, b, out=part)
            inner.append(scaled)
        if rectify:
            outputs.clamp_min_(0)
        ctx.save_for_backward(hidden, weight, outputs if rectify else None, *factors, *inner)
        ctx.spans = spans
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, rectified, *rest = ctx.saved_tensors
        spans = ctx.spans
        factors, inner = rest[: 2 * len(spans)], rest[2 * len(spans) :]
        if rectified is not None:
            # In place: the gradient comes from the one layer above, and nothing else holds it.
            torch.ops.aten.threshold_backward.grad_input(grad, rectified, 0, grad_input=grad)
        grad_hidden = rowwise_product(grad, weight) if ctx.needs_input_grad[0] else None
        grads: list[torch.Tensor] = []
        for (start, stop, scaling), a, b, scaled in zip(spans, factors[::2], factors[1::2], inner, strict=True):
            own = grad[start:stop]
            grad_inner = torch.bmm(own, b.transpose(1, 2)).mul_(scaling)
            grads += [
                torch.bmm(grad_inner.transpose(1, 2), hidden[start:stop]),
                torch.bmm(scaled.transpose(1, 2), own),
            ]
            if grad_hidden is not None:
                part = grad_hidden[start:stop]
                torch.baddbmm(part, grad_inner, a, out=part)
        return (grad_hidden, None, None, None, None, None, *grads)


def frozen_product(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """hidden [..., I] times weight' plus bias: [..., O], one matrix product over the rows of all jobs."""
    rows = hidden.reshape(-1, hidden.shape[-1])
    outputs = hidden.new_empty(max(len(rows), LEAST_ROWS), len(weight))
    torch.addmm(bias, _enough(rows), weight.t(), out=outputs)
    return outputs[: len(rows)].view(*hidden.shape[:-1], -1)


def rowwise_product(grad: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """grad [..., O] times weight [O, I]: the gradient [..., I] of what went into a frozen layer."""
    rows = grad.reshape(-1, grad.shape[-1])
    return (_enough(rows) @ weight)[: len(rows)].view(*grad.shape[:-1], -1)


def _enough(rows: torch.Tensor) -> torch.Tensor:
    """Few rows would take other kernels, whose bits differ: repeat the first until there are LEAST_ROWS."""
    missing = LEAST_ROWS - len(rows)
    return torch.cat([rows, rows[:1].expand(missing, -1)]) if missing > 0 else rows
