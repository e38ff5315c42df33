"""From specs to results: look in the store, train the base, train and judge packs. A single run is a pack of one."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lora_exp import numerics
from lora_exp.adapters.initialisation import Factors
from lora_exp.adapters.pack import AdapterPack
from lora_exp.adapters.plan import adapter_plan
from lora_exp.config.settings import HalvingSettings
from lora_exp.config.spec import DataSpec, RunSpec
from lora_exp.errors import reason
from lora_exp.model.architecture import Cut
from lora_exp.model.base import network
from lora_exp.model.data import ImageData, load
from lora_exp.model.weights import read_weights
from lora_exp.storage import keys
from lora_exp.storage.promises import promise
from lora_exp.storage.provenance import provenance
from lora_exp.storage.result import RESULT, RunResult
from lora_exp.storage.store import Store
from lora_exp.storage.sweep_file import Failure, Stopped
from lora_exp.training.base import TrainedBase, trained_base
from lora_exp.training.checkpoint import Checkpoint
from lora_exp.training.executor import Executor, Files, Pack, PackTask, Work, train_in_parts
from lora_exp.training.halving import HalvingTrainer, stored_checkpoints
from lora_exp.training.loop import Progress
from lora_exp.training.pack import PackTrainer, PlannedJob, frozen_cut, plan_jobs
from lora_exp.training.packing import plan_packs
from lora_exp.training.probe import promise_of, what_is_tried

Jobs = Mapping[RunSpec, PlannedJob]
Done = tuple[RunSpec, Files | Failure | Stopped]
LIBRARIES_MEMORY = 2**30  # bytes that a process needs for Python and the libraries alone


@dataclass(frozen=True)
class Laboratory:
    """The store, data, device and executor of runs. None of them changes a number of a result.

    `place` says where the prepared file of a data set is, `weights` where the file that bases start from is, `threads`
    how many packs this machine can train at a time, whichever executor trains them.
    """

    store: Store
    place: Callable[[DataSpec], Path]
    device: torch.device
    threads: int
    executor: Executor
    halving: HalvingSettings | None = None
    weights: Path | None = None
    failures: dict[RunSpec, Failure] = field(default_factory=dict, compare=False)
    stopped: dict[RunSpec, Stopped] = field(default_factory=dict, compare=False)

    def run(self, specs: Sequence[RunSpec]) -> Iterator[Done]:
        """Yield each spec with the files of its result: at once if the store has them, else when its pack ends.

        Equal specs are computed and yielded once. A job that fails is yielded with its `Failure`, a job that halving
        stops with its `Stopped`; the other jobs continue.
        """
        missing: dict[str, list[RunSpec]] = {}
        for spec in dict.fromkeys(specs):
            known: Files | Failure | Stopped | None = self.failures.get(spec) or self.stopped.get(spec)
            # With halving, a job whose result is in the store still competes, unless it is the only one.
            if known is None and (self.halving is None or len(specs) == 1):
                known = self._stored(spec)
            if known is None:
                missing.setdefault(spec.base_spec_key, []).append(spec)
            else:
                yield spec, known
        for sharing_a_base in missing.values():
            try:
                work = ResultWork(self, sharing_a_base, self.base(sharing_a_base[0]))
                if self.executor.shares_memory:
                    _ = work.trainer, work.facts  # what all packs share, computed before processes are forked
            except (ArithmeticError, MemoryError, RuntimeError) as error:  # diverged, or too large for this machine
                yield from ((spec, self._failed(spec, reason(error))) for spec in sharing_a_base)
                continue
            if self.halving is not None:
                yield from self._with_halving(self.halving, sharing_a_base, work)
            else:
                yield from self._train_packs(sharing_a_base, work)

    def judge(self, spec: RunSpec, factors: Factors) -> tuple[RunResult, Files]:
        """Judge an imported adapter on the base, the adapter settings and the target of `spec`.

        The result does not enter the store. Raises FloatingPointError when the base diverges.
        """
        work = ResultWork(self, [spec], self.base(spec))
        adapters = AdapterPack.of([work.jobs[spec].plan], [factors], work.trainer.base.model)
        with numerics.on_threads(1):
            [(result, files)] = work.trainer.evaluate([spec], adapters, [torch.empty(0)], {})
        return dataclasses.replace(result, provenance=work.facts), files

    def data(self, spec: DataSpec) -> ImageData:
        """Return the data set, which is read once per process."""
        return _read_once(spec, self.place(spec), self.device)

    def check(self, spec: RunSpec) -> None:
        """Raise LoraExpError when data, classes, model or weights of a spec are missing or don't fit each other."""
        data = self.data(spec.data)
        if spec.base.weights is not None and self.weights is not None:
            read_weights(self.weights, spec.model, spec.base, data.facts)
        if spec.base.classes is not None:
            data.facts.positions("base.classes", spec.base.classes)
        layers = network(spec.model, data.facts).layers
        adapter_plan(spec.adapter, layers, spec.finetune.seed, data.target(spec.finetune))

    def packs(self, specs: Sequence[RunSpec], jobs: Jobs) -> list[list[RunSpec]]:
        """Divide jobs that share a base into packs."""
        planned = plan_packs([jobs[spec].size for spec in specs], self.executor.workers, self.executor.memory)
        return [[specs[at] for at in members] for members in planned]

    def base(self, spec: RunSpec) -> TrainedBase:
        """Return the base of a spec, trained or from the store."""
        data, key = self.data(spec.data), self.base_key(spec)
        return trained_base(spec, data, self.store, key, self.device, self.weights)

    def base_key(self, spec: RunSpec) -> str:
        """Hash everything that determines a base: the store's key of it."""
        return keys.base_key(spec, self.data(spec.data).sha256, self.device.type)

    def result_key(self, spec: RunSpec) -> str:
        """Hash everything that determines a result: the store's key of it."""
        return keys.result_key(spec, self.data(spec.data).sha256, self.device.type)

    def circumstances(self, spec: RunSpec) -> list[str]:
        """List what determines a result besides its spec: see `keys.circumstances`."""
        return keys.circumstances("results", spec.model, self.data(spec.data).sha256, self.device.type)

    def _with_halving(self, halving: HalvingSettings, specs: Sequence[RunSpec], work: ResultWork) -> Iterator[Done]:
        """Yield the jobs that are stopped or fail at a rung, then those that run to their end."""
        rungs = HalvingTrainer(
            *(halving, work.base, work.data, work.jobs),
            trainer=lambda: work.trainer,
            describe=work.task,
            store=self.store,
            key=self.result_key,
            packs=lambda own: self.packs(own, work.jobs),
            train_packs=self._train,
        )
        reached, stopped = rungs.train(specs)
        self.stopped.update(stopped)
        yield from stopped.items()
        yield from ((spec, self.failures[spec]) for spec in specs if spec in self.failures)
        missing: dict[int, list[RunSpec]] = {}
        for spec, last in reached.items():
            if (files := self._stored(spec)) is None:
                missing.setdefault(last, []).append(spec)
            else:
                yield spec, files
        for last, own in sorted(missing.items()):  # the jobs of a pack resume from the same step
            work.begin = last
            yield from self._train_packs(own, work, last)

    def _train_packs(
        self, specs: Sequence[RunSpec], work: ResultWork, done: int = 0
    ) -> Iterator[tuple[RunSpec, Files | Failure]]:
        """Train and judge jobs that share a base, of which `done` steps each are already made."""
        return self._train(
            self.packs(specs, work.jobs), work, self._stored, lambda spec: work.jobs[spec].size.steps - done, "jobs"
        )

    def _train(
        self,
        packs: Sequence[Pack],
        work: Work,
        find: Callable[[RunSpec], Files | None],
        steps: Callable[[RunSpec], int],
        what: str,
    ) -> Iterator[tuple[RunSpec, Files | Failure]]:
        """Train packs; yield each job with what `find` returns for it, or with its failure."""
        try:
            for spec, files, why in train_in_parts(packs, self.executor, work, find, steps, what):
                yield spec, files or self._failed(spec, why)
        finally:
            self.store.discard_partial()  # a pack that was stopped, or killed, may have been storing a result

    def _stored(self, spec: RunSpec) -> Files | None:
        return self.store.get("results", self.result_key(spec))

    def _failed(self, spec: RunSpec, why: str) -> Failure:
        """Return the failure of a job, and record it so that this process does not try the job again."""
        self.failures[spec] = Failure(why)
        return self.failures[spec]


class ResultWork:
    """Train and judge packs of jobs that share a base, and store their results.

    The jobs resume from the checkpoints that the store has of step `begin`; without them, from the first step.
    """

    def __init__(self, laboratory: Laboratory, specs: Sequence[RunSpec], base: TrainedBase) -> None:
        self._laboratory, self.base = laboratory, base
        self._base_key = laboratory.base_key(specs[0])
        self.data = laboratory.data(specs[0].data)
        self.jobs = plan_jobs(specs, self.data)
        self.begin = 0

    @functools.cached_property
    def trainer(self) -> PackTrainer:
        """What trains packs in this process and its forks."""
        return PackTrainer(self.base, self.data, self.jobs, self._cut)

    @functools.cached_property
    def _cut(self) -> Cut | None:
        """Where the part of the base ends whose outputs are kept."""
        return frozen_cut(self.base.model, self.data, self.jobs, self._laboratory.executor.memory or None)

    @functools.cached_property
    def facts(self) -> dict[str, Any]:
        """The provenance of the results."""
        laboratory, model = self._laboratory, next(iter(self.jobs)).model
        batches = sorted({spec.finetune.batch_size for spec in self.jobs})
        tried = what_is_tried(self.base.model, model, self.data.facts, batches)
        try_it = functools.partial(promise_of, self.base.model, batches, laboratory.device)
        promised = promise(laboratory.store, tried, laboratory.device, try_it)
        held = self.data.validation
        images = {"train": len(self.data.train.labels), "validation": 0 if held is None else len(held.labels)}
        images |= {"skipped": self.data.skipped} if self.data.skipped else {}
        return provenance(str(laboratory.device), laboratory.threads, promised, self.data.sha256) | {"images": images}

    def results(
        self, pack: Sequence[RunSpec], progress: Progress | None, checkpoints: Sequence[Checkpoint] = ()
    ) -> Iterator[tuple[str, Files]]:
        """Train and judge a pack in this process; yield the store's key and the files of each result."""
        for result, files in self.trainer.train(pack, progress, checkpoints):
            whole = dataclasses.replace(result, provenance=self.facts)
            yield self._laboratory.result_key(result.spec), files | {RESULT: whole.to_json().encode()}

    def run(self, pack: Pack, progress: Progress) -> None:
        """Train and judge a pack in this process and store its results."""
        keys = [self._laboratory.result_key(spec) for spec in pack]
        checkpoints = list(map(Checkpoint.decode, stored_checkpoints(self._laboratory.store, keys, self.begin)))
        for key, files in self.results(pack, progress, checkpoints):
            self.keep(key, files)

    def keep(self, key: str, files: Files) -> None:
        """Store a result."""
        self._laboratory.store.put("results", key, files, [("bases", self._base_key)])

    def task(self, pack: Pack) -> PackTask:
        """Describe a pack to a process that shares no memory with this one."""
        laboratory, data = self._laboratory, self.data
        splits = (data.train, data.validation, data.test)
        images = sum(split.images.pixels.nbytes for split in splits if split is not None)
        weights = sum(tensor.nbytes for tensor in self.base.model.state.values())
        count = sum(len(split.labels) for split in splits if split is not None)
        kept = 0 if self._cut is None else self._cut.bytes * count
        return PackTask(
            specs=[dataclasses.asdict(spec) for spec in pack],
            keys=[laboratory.result_key(spec) for spec in pack],
            circumstances=laboratory.circumstances(pack[0]),
            base_key=self._base_key,
            store=str(laboratory.store.root),
            data=str(laboratory.place(pack[0].data)),
            device=laboratory.device.type,
            memory=LIBRARIES_MEMORY + images + weights + kept + sum(self.jobs[spec].size.memory for spec in pack),
            begin=self.begin,
        )


_read_once = functools.lru_cache(maxsize=2)(load)
