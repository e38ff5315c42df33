"""Successive halving: at each rung the jobs with the lowest validation errors continue, and the others stop.

Jobs compete if they differ only in adapter, learning rate and batch size: same target, seed, base and data. At a rung
all jobs of a group have made the same number of steps. One in `eta` continues to the next rung, `eta` times as many
steps from the start (Jamieson & Talwalkar 2016, "Non-stochastic best arm identification and hyperparameter
optimization", Algorithm 1). A group is compared as a whole, so the choice does not depend on which pack is fastest, and
never on test images.

The store keeps each job's checkpoint and errors at each rung. An interrupted sweep continues from there and makes the
same choices.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_exp.config.settings import HalvingSettings
from lora_exp.config.spec import RunSpec
from lora_exp.measures.class_errors import error_of
from lora_exp.model.data import ImageData
from lora_exp.storage.store import Store
from lora_exp.storage.sweep_file import Stopped
from lora_exp.training.base import TrainedBase
from lora_exp.training.checkpoint import Checkpoint
from lora_exp.training.evaluation import class_errors
from lora_exp.training.executor import Files, Pack, PackTask, rung_key
from lora_exp.training.loop import Progress
from lora_exp.training.pack import PackTrainer, PlannedJob

CHECKPOINT, RUNG = "checkpoint.safetensors", "rung.json"


def rungs(first: int, eta: float, steps: int) -> list[int]:
    """List the steps of the rungs: `first`, then `eta` times as many each, below `steps`."""
    found = []
    step = float(first)
    while round(step) < steps:
        found.append(round(step))
        step *= eta
    return found


def survivors(errors: Mapping[RunSpec, float], eta: float) -> list[RunSpec]:
    """Return the jobs of a group that continue: one in `eta`, at least one; ties go to the earlier job.

    A job that diverged has error NaN and ranks last.
    """
    count = max(1, round(len(errors) / eta))
    order = {spec: at for at, spec in enumerate(errors)}
    ranked = sorted(errors, key=lambda spec: (math.isnan(errors[spec]), errors[spec], order[spec]))
    return sorted(ranked[:count], key=lambda spec: order[spec])


def select(
    errors: Mapping[RunSpec, float], eta: float, objective: str, step: int, steps: Mapping[RunSpec, int]
) -> tuple[list[RunSpec], dict[RunSpec, Stopped]]:
    """Split the jobs at a rung into those that continue and those that stop; `steps` are the full lengths."""
    groups: dict[tuple[Any, ...], dict[RunSpec, float]] = {}
    for spec, error in errors.items():
        groups.setdefault(_group(spec), {})[spec] = error
    continuing: list[RunSpec] = []
    stopped: dict[RunSpec, Stopped] = {}
    for group in groups.values():
        kept = survivors(group, eta)
        limit = max((group[spec] for spec in kept if not math.isnan(group[spec])), default=math.nan)
        continuing += kept
        for spec, error in group.items():
            if spec not in kept:
                stopped[spec] = Stopped(step, steps[spec], objective, error, limit, len(group))
    return continuing, stopped


def _group(spec: RunSpec) -> tuple[Any, ...]:
    """What competing jobs have in common."""
    how = spec.finetune
    return (spec.base_spec_key, how.target, how.seed, how.steps, how.epochs, how.replay)


def rung_files(
    trainer: PackTrainer,
    pack: Sequence[RunSpec],
    keys: Sequence[str],
    stop: int,
    checkpoints: Sequence[Checkpoint],
    progress: Progress | None,
) -> Iterator[tuple[str, Files]]:
    """Train a pack to the rung at step `stop`; yield its key and the files of each job, whose result has that key."""
    trained = trainer.train_to_step(pack, stop, progress, checkpoints)
    for key, (errors, checkpoint) in zip(keys, trained, strict=True):
        is_finite = math.isfinite(errors.loss) and bool(checkpoint.losses.isfinite().all())
        rung = {"step": stop, "error_rates": errors.error_rates if is_finite else None}
        yield rung_key(key, stop), {CHECKPOINT: checkpoint.encode(), RUNG: json.dumps(rung).encode()}


def keep_rung(store: Store, key: str, files: Files) -> None:
    """Store a job's checkpoint and errors at a rung.

    As two entries: errors of all jobs are read, checkpoints of survivors only. The errors mark the rung as done.
    """
    store.put("checkpoints", key, {CHECKPOINT: files[CHECKPOINT]})
    store.put("rungs", key, {RUNG: files[RUNG]})


def stored_checkpoints(store: Store, keys: Sequence[str], step: int) -> list[bytes]:
    """Read the checkpoints at a rung of the jobs whose results have these keys; none when one of them is missing."""
    found = []
    for key in keys if step else ():
        files = store.get("checkpoints", rung_key(key, step))
        if files is None:
            return []
        found.append(files[CHECKPOINT])
    return found


@dataclass(frozen=True)
class RungWork:
    """Train packs, whose jobs have made `begin` steps, to the rung at step `stop`; `describe` makes a pack's task."""

    trainer: Callable[[], PackTrainer]
    store: Store
    describe: Callable[[Pack], PackTask]
    begin: Mapping[RunSpec, int]
    stop: int

    def run(self, pack: Pack, progress: Progress) -> None:
        """Train a pack in this process and store what it makes."""
        task = self.task(pack)
        checkpoints = list(map(Checkpoint.decode, stored_checkpoints(self.store, task.keys, task.begin)))
        for key, files in rung_files(self.trainer(), pack, task.keys, self.stop, checkpoints, progress):
            self.keep(key, files)

    def task(self, pack: Pack) -> PackTask:
        """Describe a pack to a process that shares no memory with this one."""
        return dataclasses.replace(self.describe(pack), begin=self.begin[pack[0]], stop=self.stop)

    def keep(self, key: str, files: Files) -> None:
        """Store what one job made."""
        keep_rung(self.store, key, files)


@dataclass(frozen=True)
class HalvingTrainer:
    """Trains the jobs of one base from rung to rung.

    `key` hashes what determines a job's result. `packs` groups jobs into packs. `train_packs` trains them and yields
    each job with what the given function finds in the store for it (see `Laboratory`). `trainer` and `describe` are
    those of `RungWork`.
    """

    settings: HalvingSettings
    base: TrainedBase
    data: ImageData
    jobs: Mapping[RunSpec, PlannedJob]
    trainer: Callable[[], PackTrainer]
    describe: Callable[[Pack], PackTask]
    store: Store
    key: Callable[[RunSpec], str]
    packs: Callable[[Sequence[RunSpec]], list[list[RunSpec]]]
    train_packs: Callable[..., Iterator[tuple[RunSpec, Any]]]

    def train(self, specs: Sequence[RunSpec]) -> tuple[dict[RunSpec, int], dict[RunSpec, Stopped]]:
        """Train up to the last rung; return the surviving jobs with the step of their last rung, and the stopped ones.

        A job that fails on the way is in neither.
        """
        first, eta, objective = self.settings.first, self.settings.eta, self.settings.objective
        assert eta is not None, "the laboratory calls this only with halving"
        steps = {spec: self.jobs[spec].size.steps for spec in specs}
        reached = dict.fromkeys(specs, 0)
        all_stopped: dict[RunSpec, Stopped] = {}
        for step in rungs(first, eta, max(steps.values())):
            competing = {spec: last for spec, last in reached.items() if steps[spec] > step}
            continuing, stopped = select(self._errors_at(step, competing), eta, objective, step, steps)
            all_stopped |= stopped
            reached = {spec: last for spec, last in reached.items() if spec not in competing}
            reached |= dict.fromkeys(continuing, step)
        return {spec: reached[spec] for spec in specs if spec in reached}, all_stopped

    def _errors_at(self, step: int, reached: Mapping[RunSpec, int]) -> dict[RunSpec, float]:
        """Train the jobs that have not reached a rung yet; return the objective of every job there."""
        found = {spec: files for spec in reached if (files := self._find(spec, step)) is not None}
        missing = [spec for spec in reached if spec not in found]
        packs: list[list[RunSpec]] = []
        for last in sorted(set(reached.values())):  # the jobs of a pack continue from the same step
            packs += self.packs([spec for spec in missing if reached[spec] == last])

        work = RungWork(self.trainer, self.store, self.describe, reached, step)
        find, what = functools.partial(self._find, step=step), f"jobs to step {step}"
        for spec, files in self.train_packs(packs, work, find, lambda spec: step - reached[spec], what):
            if isinstance(files, Mapping):
                found[spec] = files
        predictions, split = self.base.validation, self.data.validation
        assert predictions is not None and split is not None, "the settings were checked before"
        before = class_errors(predictions, split.labels).error_rates
        errors = {}
        for spec in (spec for spec in reached if spec in found):
            rates = json.loads(found[spec][RUNG])["error_rates"]
            target = self.data.target(spec.finetune)
            errors[spec] = math.nan if rates is None else error_of(self.settings.objective, target, before, rates)
        return errors

    def _find(self, spec: RunSpec, step: int) -> Files | None:
        return self.store.get("rungs", rung_key(self.key(spec), step))
