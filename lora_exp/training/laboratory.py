"""From specs to results, the whole story: store, base, packs, training, store. A single run is a pack of one."""

from __future__ import annotations

import dataclasses
import functools
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from lora_exp import numerics
from lora_exp.adapters.initialisation import Factors
from lora_exp.adapters.pack import AdapterPack
from lora_exp.adapters.plan import adapter_plan
from lora_exp.config.spec import DataSpec, RunSpec, digest
from lora_exp.errors import reason
from lora_exp.executors.local import Ended, Progress, Run, Trainer, completed, in_parts
from lora_exp.executors.remote import Crew, PackTask, dispatched
from lora_exp.model.architecture import layer_shapes
from lora_exp.model.data import ImageData, load, pictures
from lora_exp.storage.provenance import BASE_MODULES, RESULT_MODULES, code_version, provenance
from lora_exp.storage.result import RESULT, RunResult
from lora_exp.storage.store import Store
from lora_exp.storage.sweep_file import Failure, Stopped
from lora_exp.training.base import TrainedBase, trained_base
from lora_exp.training.checkpoint import Checkpoint
from lora_exp.training.halving import Halving
from lora_exp.training.pack import Bench
from lora_exp.training.packing import plan_packs
from lora_exp.training.rung_training import RungTraining
from lora_exp.training.workload import Workload

Files = dict[str, bytes]
Find = Callable[[RunSpec], Files | None]
Begin = Callable[[Sequence[RunSpec]], Sequence[Checkpoint]]
Done = tuple[RunSpec, Files | Failure | Stopped]
LIBRARIES_MEMORY = 2**30


@dataclass(frozen=True)
class Laboratory:
    """Where and with what runs are made; none of it changes a number of a result.

    `threads` is how many packs train side by side here, unless a crew trains them elsewhere; `memory` (bytes) bounds
    what they hold at a time.
    """

    store: Store
    data_root: Path
    device: torch.device
    threads: int
    memory: int
    crew: Crew | None = None
    halving: Halving | None = None
    failures: dict[RunSpec, Failure] = field(default_factory=dict, compare=False)
    stopped: dict[RunSpec, Stopped] = field(default_factory=dict, compare=False)

    def run(self, specs: Sequence[RunSpec]) -> Iterator[Done]:
        """Yield each spec with its result's files: at once where the store has them, else when its pack is done.

        Equal specs are computed once and yielded once. A job that fails is yielded with its reason; the
        others go on. With halving, jobs are yielded that were stopped on the way.
        """
        missing: dict[str, list[RunSpec]] = {}
        for spec in dict.fromkeys(specs):
            known: Files | Failure | Stopped | None = self.failures.get(spec) or self.stopped.get(spec)
            # With halving a job competes before its result counts, also one that is in the store; a job alone has won.
            if known is None and (self.halving is None or len(specs) == 1):
                known = self._stored(spec)
            if known is None:
                missing.setdefault(spec.base_key, []).append(spec)
            else:
                yield spec, known
        for sharing_a_base in missing.values():
            try:
                work = Workload(sharing_a_base, self.data(sharing_a_base[0].data))
                base = self.base(sharing_a_base[0])
                bench = None if self.crew is not None else Bench(sharing_a_base, base, work)
            except (ArithmeticError, MemoryError, RuntimeError) as error:  # diverged, or too large for this machine
                yield from ((spec, self._failed(spec, reason(error))) for spec in sharing_a_base)
                continue
            if bench is None:
                yield from self._train_packs(sharing_a_base, work, self._elsewhere(work))
            elif self.halving is not None:
                yield from self._with_halving(self.halving, sharing_a_base, bench)
            else:
                yield from self._train_packs(sharing_a_base, work, self._here(bench))

    def judge(self, spec: RunSpec, factors: Factors) -> tuple[RunResult, Files]:
        """Judge an adapter that was trained elsewhere; what comes of it never enters the store.

        Of `spec`, the base, the adapter and the digit count. Raises FloatingPointError when the base diverges.
        """
        work = Workload([spec], self.data(spec.data))
        bench = Bench([spec], self.base(spec), work)
        adapters = AdapterPack.of([work.plans[spec]], [factors], bench.base.model)
        with numerics.on_threads(1):
            [(result, files)] = bench.judge([spec], adapters, [torch.empty(0)], {})
        return dataclasses.replace(result, provenance=self.facts(bench)), files

    def data(self, spec: DataSpec) -> ImageData:
        """The data set, read once a process."""
        return _read_once(spec, self.data_root, self.device)

    @property
    def workers(self) -> int:
        """How many packs train side by side."""
        return self.threads if self.crew is None else self.crew.workers

    def check(self, spec: RunSpec) -> None:
        """Raise LoraExpError when the data of a spec can't be had, or its adapter fits no layer of its model."""
        self.data(spec.data)
        adapter_plan(spec.adapter, layer_shapes(spec.model), spec.finetune.seed)

    def test_pictures(self, spec: RunSpec) -> tuple[NDArray[Any], NDArray[Any]]:
        """The test images as pixels [N, 28, 28] uint8 and their labels [N], for figures."""
        test = self.data(spec.data).test
        return pictures(test), test.labels.cpu().numpy()

    def packs(self, specs: Sequence[RunSpec], work: Workload) -> list[list[RunSpec]]:
        """The jobs of one base, as they train together."""
        apart = None if self.crew is None else self.crew.pack_memory
        memory = self.memory if apart is None else apart * self.workers
        planned = plan_packs([work.size(spec) for spec in specs], self.workers, memory)
        return [[specs[at] for at in members] for members in planned]

    def base(self, spec: RunSpec) -> TrainedBase:
        """The trained base of a spec."""
        return trained_base(spec, self.data(spec.data), self.store, self.base_key(spec), self.device)

    def base_key(self, spec: RunSpec) -> str:
        """Hash of all that determines a base, as `result_key` is of a result."""
        return digest([spec.base_key, *self.circumstances(spec, BASE_MODULES)])

    def result_key(self, spec: RunSpec) -> str:
        """Hash of all that determines a result: spec, data, computing code, torch, kind of device, code path."""
        return digest([spec.key, *self.circumstances(spec)])

    def circumstances(self, spec: RunSpec, modules: tuple[str, ...] = RESULT_MODULES) -> list[str]:
        """What determines a result besides its spec: data, computing code, torch, kind of device, code path."""
        code_path = numerics.requested() if self.device.type == "cpu" else ""
        return [
            self.data(spec.data).sha256,
            code_version(modules),
            torch.__version__,
            self.device.type,
            code_path,
        ]

    def results(
        self,
        pack: Sequence[RunSpec],
        bench: Bench,
        facts: dict[str, Any],
        progress: Progress | None,
        begin: Sequence[Checkpoint] = (),
    ) -> Iterator[tuple[RunSpec, Files]]:
        """Train and judge a pack here; each spec with its result's files, of which `facts` are the provenance.

        With `begin`, a checkpoint of each job, training goes on from there.
        """
        for result, files in bench.run_pack(pack, progress, begin):
            whole = dataclasses.replace(result, provenance=facts)
            yield result.spec, files | {RESULT: whole.to_json().encode()}

    def facts(self, bench: Bench) -> dict[str, Any]:
        """The provenance of what is computed on this bench."""
        sides = tuple((layer.outputs, layer.inputs) for layer in bench.work.layers)
        return provenance(str(self.device), self.threads, _promise(sides, self.device), bench.data.sha256)

    def _with_halving(self, halving: Halving, specs: Sequence[RunSpec], bench: Bench) -> Iterator[Done]:
        """Yield the jobs that were stopped, or failed, on the way, then those that went on to their end."""
        stairs = RungTraining(
            halving, bench, self.store, self.result_key, lambda own: self.packs(own, bench.work), self._rung_in_packs
        )
        reached, stopped = stairs.climb(specs)
        self.stopped.update(stopped)
        yield from stopped.items()
        yield from ((spec, self.failures[spec]) for spec in specs if spec in self.failures)
        missing: dict[int, list[RunSpec]] = {}
        for spec, last in reached.items():
            if (files := self._stored(spec)) is None:
                missing.setdefault(last, []).append(spec)
            else:
                yield spec, files
        for last, own in sorted(missing.items()):  # jobs of a pack go on from the same step
            train = self._here(bench, functools.partial(stairs.checkpoints, step=last))
            yield from self._train_packs(own, bench.work, train, last)

    def _here(self, bench: Bench, begin: Begin = lambda _: ()) -> Trainer[list[RunSpec]]:
        """What trains packs in processes of this one, from the checkpoints that `begin` has of a pack."""
        facts = self.facts(bench)

        def run(pack: list[RunSpec], progress: Progress) -> None:
            for spec, files in self.results(pack, bench, facts, progress, begin(pack)):
                self.store.put("results", self.result_key(spec), files)

        return lambda packs, progress: completed(packs, run, self.threads, progress, self.device.type)

    def _elsewhere(self, work: Workload) -> Trainer[list[RunSpec]]:
        """What has packs trained by the crew."""
        crew, task = self.crew, functools.partial(self._task, work=work)
        assert crew is not None

        def keep(key: str, files: Mapping[str, bytes]) -> None:
            self.store.put("results", key, files)

        return lambda packs, progress: dispatched(packs, crew, task, keep, progress)

    def _task(self, pack: list[RunSpec], work: Workload) -> PackTask:
        """A pack as a crew is told of it."""
        splits = (work.data.train, work.data.validation, work.data.test)
        images = sum(split.images.nbytes for split in splits if split is not None)
        return PackTask(
            specs=[dataclasses.asdict(spec) for spec in pack],
            keys=[self.result_key(spec) for spec in pack],
            circumstances=self.circumstances(pack[0]),
            base_key=self.base_key(pack[0]),
            store=str(self.store.root),
            data_root=str(self.data_root),
            device=self.device.type,
            # The images, and as much again of their first layer's products.
            memory=LIBRARIES_MEMORY + 2 * images + sum(work.size(spec).memory for spec in pack),
        )

    def _train_packs(
        self, specs: Sequence[RunSpec], work: Workload, train: Trainer[list[RunSpec]], done: int = 0
    ) -> Iterator[tuple[RunSpec, Files | Failure]]:
        """Train and judge jobs that share a base, packs side by side; `done` steps of each are made already."""
        steps = sum(work.steps(spec) - done for spec in specs)
        for spec, files, why in in_parts(deque(self.packs(specs, work)), train, self._stored, steps, "jobs"):
            yield spec, files or self._failed(spec, why)

    def _rung_in_packs(
        self, packs: deque[list[RunSpec]], run: Run[list[RunSpec]], find: Find, steps: int, what: str
    ) -> Iterator[tuple[RunSpec, Files | Failure]]:
        def train(packs: deque[list[RunSpec]], progress: Progress) -> Iterator[Ended[list[RunSpec]]]:
            return completed(packs, run, self.threads, progress, self.device.type)

        for spec, files, why in in_parts(packs, train, find, steps, what):
            yield spec, files or self._failed(spec, why)

    def _stored(self, spec: RunSpec) -> Files | None:
        return self.store.get("results", self.result_key(spec))

    def _failed(self, spec: RunSpec, why: str) -> Failure:
        """A failure, remembered so that the job is not tried again by this process."""
        self.failures[spec] = Failure(why)
        return self.failures[spec]


@functools.lru_cache(maxsize=2)
def _read_once(spec: DataSpec, root: Path, device: torch.device) -> ImageData:
    return load(spec, root, device)


@functools.cache
def _promise(sides: tuple[tuple[int, int], ...], device: torch.device) -> str:
    """Tried once a process; some take a second."""
    return numerics.promise(sides, device)
