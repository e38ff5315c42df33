"""The fine-tuning loop: a pack of adapters over one frozen base, trained as one batched computation.

A single run is a pack of one. A pack trains on one thread, and several packs train side by side. With the kernels that
`numerics.py` requests, the bits of a job depend neither on the other jobs of its pack nor on the number of threads.

Shapes: P jobs of the pack, B images of a batch, T steps, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from lora_exp.adapters.pack import AdapterPack, Trained
from lora_exp.adapters.plan import AdapterPlan
from lora_exp.config.spec import FinetuneSpec
from lora_exp.model.architecture import Constants
from lora_exp.model.base import BaseModel
from lora_exp.model.data import Images
from lora_exp.numerics import adam_step, generator
from lora_exp.training.checkpoint import Checkpoint, common_steps

# Called with the number of job-steps made since the last call.
Progress = Callable[[int], object]
Moments = list[list[Trained]]  # first or second moments of every trained part of every job, without padding


@dataclass(frozen=True)
class TrainingImages:
    """The images a pack may draw: N of I values, labels [N], and what the frozen part of the base computes of them.

    The latter is computed once, by `frozen_constants`; None where nothing is worth keeping.
    """

    images: Images
    labels: torch.Tensor
    constants: Constants | None


@dataclass(frozen=True)
class Job:
    """One adapter of a pack and how to train it; `order` [T, B] int64 indexes the training images."""

    plan: AdapterPlan
    learning_rate: float
    order: torch.Tensor


@dataclass(frozen=True)
class FineTuned:
    """The trained pack, with its jobs in the given order, each job's losses [T] float32, and Adam's moments."""

    pack: AdapterPack
    losses: list[torch.Tensor]
    moments: tuple[list[torch.Tensor], list[torch.Tensor]]  # first and second, shaped like `pack.stacks()`

    def checkpoints(self) -> list[Checkpoint]:
        """Return a checkpoint of each job."""
        checkpoints = []
        parts = (self.pack.trained(tensors) for tensors in (self.pack.stacks(), *self.moments))
        for own, losses, generators in zip(zip(*parts, strict=True), self.losses, self.pack.generators(), strict=True):
            values, first, second = ([part.rows.detach().cpu().clone() for part in of] for of in own)
            checkpoints.append(Checkpoint(values, first, second, [one.get_state() for one in generators], losses))
        return checkpoints


def step_count(how: FinetuneSpec, target_images: int) -> int:
    """Return the steps of a run: `finetune.steps`, or the steps of `finetune.epochs` passes over the target images."""
    if how.epochs is None:
        return how.steps
    shown = how.epochs * target_images / (1 - how.replay)
    return max(1, -(-int(shown) // how.batch_size))


def batch_order(
    how: FinetuneSpec, steps: int, labels: tuple[int, ...], target: torch.Tensor, other: torch.Tensor
) -> torch.Tensor:
    """Draw the indices [T, B] int64 of the images of all batches, from those of target and other classes.

    `labels` are those of the target.

    Target images come in shuffled passes; a share `replay` of all places, evenly spread, holds images of other classes.
    The draw depends on seed and labels only, so runs that differ in rank or alpha see the same images.
    """
    places = steps * how.batch_size
    numbers = torch.arange(places + 1, dtype=torch.float64).mul_(how.replay).floor_()
    is_replay = numbers[1:] > numbers[:-1]
    order = torch.empty(places, dtype=torch.int64)
    for purpose, images, chosen in (("target", target, ~is_replay), ("replay", other, is_replay)):
        count = int(chosen.sum())
        random = generator(f"{purpose} order", how.seed, list(labels))
        passes = -(-count // max(1, len(images)))
        shuffled = [images[torch.randperm(len(images), generator=random)] for _ in range(passes)]
        if count:
            order[chosen] = torch.cat(shuffled)[:count]
    return order.view(steps, how.batch_size)


def fine_tune(
    base: BaseModel,
    jobs: Sequence[Job],
    data: TrainingImages,
    progress: Progress | None = None,
    checkpoints: Sequence[Checkpoint] = (),
) -> FineTuned:
    """Train every job of the pack for its own number of steps; call `progress` with the number of job-steps done.

    `checkpoints`, one per job and all at the same step, continue earlier training. Jobs with plans of equal shape must
    be neighbours, longer ones first: a finished job leaves the pack while the others continue. A job whose loss is not
    finite continues with NaN; no operation mixes rows of different jobs, so the bits of the other jobs don't change.
    """
    whole = AdapterPack.initial([job.plan for job in jobs], base)
    losses = [torch.empty(len(job.order)) for job in jobs]
    moments = tuple([torch.zeros_like(stack) for stack in whole.stacks()] for _ in range(2))
    first, second = (whole.trained(moment) for moment in moments)
    start = common_steps(checkpoints)
    if checkpoints:
        _restore(whole, first, second, losses, checkpoints)
    for stop in sorted({len(job.order) for job in jobs}):
        counts = [sum(len(jobs[job].order) >= stop for job in group.jobs) for group in whole.groups]
        active = whole.first(counts)
        order_TPB = torch.stack([jobs[job].order[start:stop] for job in active.jobs], dim=1).to(data.labels.device)
        curves = _train_stage(base, active, _Adam(active, jobs, first, second), order_TPB, data, start, progress)
        for row, job in enumerate(active.jobs):
            losses[job][start:stop] = curves[:, row]
        start = stop
    return FineTuned(whole, losses, (moments[0], moments[1]))


def _restore(
    pack: AdapterPack, first: Moments, second: Moments, losses: list[torch.Tensor], checkpoints: Sequence[Checkpoint]
) -> None:
    """Copy the checkpoint of every job into the pack, Adam's moments and the losses."""
    values = pack.trained([stack.detach() for stack in pack.stacks()])
    for job, (checkpoint, generators) in enumerate(zip(checkpoints, pack.generators(), strict=True)):
        parts = [*values[job], *first[job], *second[job]]
        for part, value in zip(parts, [*checkpoint.values, *checkpoint.first, *checkpoint.second], strict=True):
            part.rows.copy_(value)
        for random, random_state in zip(generators, checkpoint.dropout, strict=True):
            random.set_state(random_state)
        losses[job][: checkpoint.steps] = checkpoint.losses


def _train_stage(
    base: BaseModel,
    active: AdapterPack,
    adam: _Adam,
    order_TPB: torch.Tensor,
    data: TrainingImages,
    steps_before: int,
    progress: Progress | None,
) -> torch.Tensor:
    """Train the active jobs for the steps of `order_TPB`; return their losses [T, P] on the CPU."""
    steps, jobs, batch = order_TPB.shape
    stacks = [stack.requires_grad_() for stack in active.stacks()]
    curves = torch.empty(steps, jobs, device=order_TPB.device)
    for step in range(steps):
        chosen_PB = order_TPB[step]
        known = None if data.constants is None else data.constants.of(chosen_PB)
        logits_PBC = active.logits(base, data.images[chosen_PB], known, training=True)
        losses = functional.cross_entropy(logits_PBC.flatten(0, 1), data.labels[chosen_PB].flatten(), reduction="none")
        loss_P = losses.view(jobs, batch).mean(1)
        curves[step] = loss_P.detach()
        if stacks:
            adam.step(torch.autograd.grad(loss_P.sum(), stacks, materialize_grads=True), steps_before + step + 1)
        if progress is not None:
            progress(jobs)
    return curves.cpu()


class _Adam:
    """Adam on the trained rows of a pack, without padding (Kingma & Ba 2014, Algorithm 1)."""

    def __init__(self, active: AdapterPack, jobs: Sequence[Job], first: Moments, second: Moments) -> None:
        self.active = active
        # By learning rate: the (row of the pack, number of the part) of each tensor, and its value and moments.
        self.by_rate: dict[float, list[tuple[int, int]]] = {}
        self.tensors: dict[float, tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]] = {}
        values = active.trained([stack.detach() for stack in active.stacks()])
        for row, (job, parts) in enumerate(zip(active.jobs, values, strict=True)):
            for at, own in enumerate(zip(parts, first[job], second[job], strict=True)):
                rate = jobs[job].learning_rate * jobs[job].plan.rate_ratio(own[0].part)
                self.by_rate.setdefault(rate, []).append((row, at))
                for tensors, part in zip(self.tensors.setdefault(rate, ([], [], [])), own, strict=True):
                    tensors.append(part.rows)

    def step(self, grads: Sequence[torch.Tensor], number: int) -> None:
        """Make step `number` (from 1) with gradients shaped like the pack's stacks."""
        by_job = self.active.trained(grads)
        for rate, places in self.by_rate.items():
            values, first, second = self.tensors[rate]
            grads_of_rate = [by_job[row][at].rows for row, at in places]
            adam_step(values, grads_of_rate, first, second, rate, number)
