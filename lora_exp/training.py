"""The one fine-tuning loop: a pack of adapters over one frozen base, trained as one batched computation.

A single run is a pack of one. A pack trains on one thread and packs train side by side (`experiment.py`):
so each matrix product is done by a single thread, and with the row-independent kernels that `numerics.py`
asks for a job's bits depend neither on its pack-mates nor on the number of threads.

Shapes: P jobs of the pack, B images of a batch, T steps, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from lora_exp.adapters import AdapterPack, AdapterPlan
from lora_exp.base_model import BaseModel, is_rectified
from lora_exp.seeding import generator
from lora_exp.spec import FinetuneSpec

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # Adam's usual constants (Kingma & Ba 2014, Algorithm 1)


@dataclass(frozen=True)
class TrainingImages:
    """The images a pack may draw: pixels [N, I], labels [N], and the frozen product of the first layer [N, O].

    That product is a constant of the data and the base, so it is computed once (`frozen_first_layer`).
    """

    images: torch.Tensor
    labels: torch.Tensor
    first: torch.Tensor


@dataclass(frozen=True)
class Job:
    """One adapter of a pack and how it is trained; `order` [T, B] int64 indexes the training images."""

    plan: AdapterPlan
    learning_rate: float
    order: torch.Tensor


@dataclass(frozen=True)
class FineTuned:
    """The trained pack (its order of jobs is that of the jobs given) and each job's loss curve [T], float32."""

    pack: AdapterPack
    losses: list[torch.Tensor]


def step_count(how: FinetuneSpec, target_images: int) -> int:
    """Steps of a run: `finetune.steps`, or as many as `finetune.epochs` passes over the target images take."""
    if how.epochs is None:
        return how.steps
    shown = how.epochs * target_images / (1 - how.replay)
    return max(1, -(-int(shown) // how.batch_size))


def batch_order(how: FinetuneSpec, steps: int, target: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Which image stands where: [T, B] int64 indices, drawn ahead.

    Target images come in shuffled passes, without end; every 1/replay-th place holds an image of another
    class. The draw depends on seed and digits only, so runs that differ in rank or alpha see the same images.
    """
    places = steps * how.batch_size
    numbers = torch.arange(places + 1, dtype=torch.float64).mul_(how.replay).floor_()
    is_replay = numbers[1:] > numbers[:-1]
    order = torch.empty(places, dtype=torch.int64)
    for purpose, pool, chosen in (("target", target, ~is_replay), ("replay", other, is_replay)):
        wanted = int(chosen.sum())
        random = generator(f"{purpose} order", how.seed, list(how.digit))
        passes = [pool[torch.randperm(len(pool), generator=random)] for _ in range(-(-wanted // max(1, len(pool))))]
        if wanted:
            order[chosen] = torch.cat(passes)[:wanted]
    return order.view(steps, how.batch_size)


def pack_logits(
    base: BaseModel, adapters: AdapterPack, images_PBI: torch.Tensor, first_PBO: torch.Tensor
) -> torch.Tensor:
    """Logits [P, B, C] of every adapted classifier of a pack; the memory of `first_PBO` is used up."""
    hidden = images_PBI
    for at, layer in enumerate(base.layers):
        known = first_PBO if at == 0 else None
        hidden = adapters.linear(at, hidden, layer.weight, layer.bias, is_rectified(base, at), known)
    return hidden


def fine_tune(
    base: BaseModel,
    jobs: Sequence[Job],
    data: TrainingImages,
    progress: Callable[[int], object] | None = None,
) -> FineTuned:
    """Train every job of the pack for its own number of steps; `progress` is told of job-steps done.

    Jobs with equal padded ranks must be neighbours, longer ones first within them: a job that is done leaves
    the pack and the others go on. A job whose loss is not finite goes on alone with its NaN; rows of
    different jobs never meet in an operation, so its neighbours' bits are unchanged.
    """
    shapes = [tuple(layer.weight.shape) for layer in base.layers]
    whole = AdapterPack.initial([job.plan for job in jobs], shapes, data.images.device)
    losses = [torch.empty(len(job.order)) for job in jobs]
    moments = [(torch.zeros_like(stack), torch.zeros_like(stack)) for stack in whole.stacks()]
    state = _AdamState(whole, [m for m, _ in moments], [v for _, v in moments], [job.learning_rate for job in jobs])
    start = 0
    for stop in sorted({len(job.order) for job in jobs}):
        counts = [sum(len(jobs[job].order) >= stop for job in group.jobs) for group in whole.groups]
        active = whole.first(counts)
        order_TPB = torch.stack([jobs[job].order[start:stop] for job in active.jobs], dim=1).to(data.images.device)
        curves = _train_stage(base, active, state, order_TPB, data, start, progress)
        for row, job in enumerate(active.jobs):
            losses[job][start:stop] = curves[:, row]
        start = stop
    return FineTuned(whole, losses)


class _AdamState:
    """Adam's two moments for every job of a pack, as views without the padding, and its learning rates."""

    def __init__(
        self, pack: AdapterPack, first: list[torch.Tensor], second: list[torch.Tensor], rates: list[float]
    ) -> None:
        self.first = dict(zip(pack.jobs, pack.real_rows(first), strict=True))
        self.second = dict(zip(pack.jobs, pack.real_rows(second), strict=True))
        self.rates = rates


def _train_stage(
    base: BaseModel,
    active: AdapterPack,
    state: _AdamState,
    order_TPB: torch.Tensor,
    data: TrainingImages,
    steps_before: int,
    progress: Callable[[int], object] | None,
) -> torch.Tensor:
    """Steps during which the same jobs are active; returns their losses [T, P] on the CPU."""
    steps, jobs, batch = order_TPB.shape
    stacks = [stack.requires_grad_() for stack in active.stacks()]
    values = dict(zip(active.jobs, active.real_rows([stack.detach() for stack in stacks]), strict=True))
    by_rate: dict[float, list[int]] = {}
    for row, job in enumerate(active.jobs):
        by_rate.setdefault(state.rates[job], []).append(row)
    curves = torch.empty(steps, jobs, device=order_TPB.device)
    for step in range(steps):
        chosen_PB = order_TPB[step]
        logits_PBC = pack_logits(base, active, data.images[chosen_PB], data.first[chosen_PB])
        each = functional.cross_entropy(logits_PBC.flatten(0, 1), data.labels[chosen_PB].flatten(), reduction="none")
        loss_P = each.view(jobs, batch).mean(1)
        curves[step] = loss_P.detach()
        grads = active.real_rows(torch.autograd.grad(loss_P.sum(), stacks))
        for rate, rows in by_rate.items():
            _adam(active, state, values, grads, rows, rate, steps_before + step + 1)
        if progress is not None:
            progress(jobs)
    return curves.cpu()


def _adam(
    active: AdapterPack,
    state: _AdamState,
    values: dict[int, list[torch.Tensor]],
    grads: list[list[torch.Tensor]],
    rows: list[int],
    rate: float,
    step: int,
) -> None:
    """One Adam step of the jobs in `rows`, which share a learning rate; padding has no part in it."""
    jobs = [active.jobs[row] for row in rows]
    flat_grads = [grad for row in rows for grad in grads[row]]
    # The kernel behind torch.optim.Adam(fused=True), called on views of the stacks: the optimizer class can
    # hold neither views that shrink nor one step counter for many tensors.
    torch._fused_adam_(
        [value for job in jobs for value in values[job]],
        flat_grads,
        [m for job in jobs for m in state.first[job]],
        [v for job in jobs for v in state.second[job]],
        [],
        [torch.tensor(float(step), device=flat_grads[0].device)] * len(flat_grads),
        amsgrad=False,
        lr=rate,
        beta1=BETA1,
        beta2=BETA2,
        weight_decay=0.0,
        eps=EPSILON,
        maximize=False,
    )
