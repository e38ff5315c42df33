"""From specs to results, the whole story: store, base, packs, training, store. A single run is a pack of one."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from lora_exp import numerics
from lora_exp.adapter_plan import adapter_plan
from lora_exp.adapters import AdapterPack
from lora_exp.architecture import layer_shapes
from lora_exp.bench import Bench
from lora_exp.checkpoint import Checkpoint
from lora_exp.data import ImageData, load, pictures
from lora_exp.executors import Progress, Run, completed, reason
from lora_exp.halving import Halving, Stopped
from lora_exp.initialisation import Factors
from lora_exp.packing import plan_packs
from lora_exp.provenance import BASE_MODULES, RESULT_MODULES, code_version, provenance
from lora_exp.result import RESULT, RunResult
from lora_exp.rung_training import RungTraining
from lora_exp.spec import DataSpec, RunSpec, digest
from lora_exp.store import Store
from lora_exp.trained_base import TrainedBase, trained_base
from lora_exp.workload import Workload

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Failure:
    """Why a job has no result, in one line."""

    error: str


Files = dict[str, bytes]
Find = Callable[[RunSpec], Files | None]
Done = tuple[RunSpec, Files | Failure | Stopped]


@dataclass(frozen=True)
class Laboratory:
    """Where and with what runs are made; none of it changes a number of a result.

    `threads` is how many packs train side by side; `memory` (bytes) bounds what they hold at a time.
    """

    store: Store
    data_root: Path
    device: torch.device
    threads: int
    memory: int
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
                known = self.store.get("results", self.result_key(spec))
            if known is None:
                missing.setdefault(spec.base_key, []).append(spec)
            else:
                yield spec, known
        for sharing_a_base in missing.values():
            try:
                first = sharing_a_base[0]
                work = Workload(sharing_a_base, self.data(first.data))
                bench = Bench(sharing_a_base, self.base(first), work)
            except (ArithmeticError, MemoryError, RuntimeError) as error:  # diverged, or too large for this machine
                yield from ((spec, self._failed(spec, reason(error))) for spec in sharing_a_base)
                continue
            if self.halving is None:
                yield from self._train_packs(sharing_a_base, bench)
            else:
                yield from self._with_halving(self.halving, sharing_a_base, bench)

    def in_packs(
        self, packs: deque[list[RunSpec]], run: Run[list[RunSpec]], find: Find, steps: int, what: str
    ) -> Iterator[tuple[RunSpec, Files | Failure]]:
        """Run packs, and yield each job with the files that `find` has of it then, or with why there are none.

        A pack that fails is tried again in halves, until the job that fails is alone.
        """
        done, count = 0, sum(map(len, packs))
        with logging_redirect_tqdm(), tqdm(total=steps, disable=None, unit="step") as bar:
            bar.set_description(f"0/{count} {what}")
            for pack, why in completed(packs, run, self.threads, bar.update, self.device.type):
                left = []
                for spec in pack:
                    files = find(spec)
                    if files is None and len(pack) > 1:
                        left.append(spec)
                        continue
                    done += 1
                    bar.set_description(f"{done}/{count} {what}")
                    yield spec, files or self._failed(spec, why or "what it left can't be read from the store")
                if left:
                    log.warning("a pack of %d jobs failed (%s); it is tried again in parts", len(pack), why)
                    half = -(-len(left) // 2)
                    packs.extendleft(part for part in (left[half:], left[:half]) if part)

    def judge(self, spec: RunSpec, factors: Factors) -> tuple[RunResult, Files]:
        """Judge an adapter that was trained elsewhere; what comes of it never enters the store.

        Of `spec`, the base, the adapter and the digit count. Raises FloatingPointError when the base diverges.
        """
        work = Workload([spec], self.data(spec.data))
        bench = Bench([spec], self.base(spec), work)
        adapters = AdapterPack.of([work.plans[spec]], [factors], bench.base.model)
        with numerics.on_threads(1):
            [(result, files)] = bench.judge([spec], adapters, [torch.empty(0)], {})
        return dataclasses.replace(result, provenance=self._facts(bench)), files

    def data(self, spec: DataSpec) -> ImageData:
        """The data set, read once a process."""
        return _read_once(spec, self.data_root, self.device)

    def check(self, spec: RunSpec) -> None:
        """Raise SpecError when the data of a spec can't be had, or its adapter fits no layer of its model."""
        self.data(spec.data)
        adapter_plan(spec.adapter, layer_shapes(spec.model), spec.finetune.seed)

    def test_pictures(self, spec: RunSpec) -> tuple[NDArray[Any], NDArray[Any]]:
        """The test images as pixels [N, 28, 28] uint8 and their labels [N], for figures."""
        test = self.data(spec.data).test
        return pictures(test), test.labels.cpu().numpy()

    def packs(self, specs: Sequence[RunSpec], work: Workload) -> list[list[RunSpec]]:
        """The jobs of one base, as they train together."""
        planned = plan_packs([work.size(spec) for spec in specs], self.threads, self.memory)
        return [[specs[at] for at in members] for members in planned]

    def base(self, spec: RunSpec) -> TrainedBase:
        """The trained base of a spec."""
        return trained_base(spec, self.data(spec.data), self.store, self.base_key(spec), self.device)

    def base_key(self, spec: RunSpec) -> str:
        """Hash of all that determines a base, as `result_key` is of a result."""
        return digest([spec.base_key, *self._circumstances(spec, BASE_MODULES)])

    def result_key(self, spec: RunSpec) -> str:
        """Hash of all that determines a result: spec, data, computing code, torch, kind of device, code path."""
        return digest([spec.key, *self._circumstances(spec, RESULT_MODULES)])

    def _circumstances(self, spec: RunSpec, modules: tuple[str, ...]) -> list[str]:
        code_path = numerics.requested() if self.device.type == "cpu" else ""
        return [
            self.data(spec.data).sha256,
            code_version(modules),
            torch.__version__,
            self.device.type,
            code_path,
        ]

    def _with_halving(self, halving: Halving, specs: Sequence[RunSpec], bench: Bench) -> Iterator[Done]:
        """Yield the jobs that were stopped, or failed, on the way, then those that went on to their end."""
        stairs = RungTraining(
            halving, bench, self.store, self.result_key, lambda own: self.packs(own, bench.work), self.in_packs
        )
        reached, stopped = stairs.climb(specs)
        self.stopped.update(stopped)
        yield from stopped.items()
        yield from ((spec, self.failures[spec]) for spec in specs if spec in self.failures)
        missing: dict[int, list[RunSpec]] = {}
        for spec, last in reached.items():
            files = self.store.get("results", self.result_key(spec))
            if files is None:
                missing.setdefault(last, []).append(spec)
            else:
                yield spec, files
        for last, own in sorted(missing.items()):  # jobs of a pack go on from the same step
            yield from self._train_packs(own, bench, functools.partial(stairs.checkpoints, step=last), last)

    def _train_packs(
        self,
        specs: Sequence[RunSpec],
        bench: Bench,
        begin: Callable[[Sequence[RunSpec]], Sequence[Checkpoint]] = lambda _: (),
        done: int = 0,
    ) -> Iterator[Done]:
        """Train and judge jobs that share a base, packs side by side, from the checkpoints that `begin` has of a pack.

        `done` is how many steps of each that saves.
        """
        facts = self._facts(bench)

        def find(spec: RunSpec) -> Files | None:
            return self.store.get("results", self.result_key(spec))

        def run(pack: list[RunSpec], progress: Progress) -> None:
            for result, files in bench.run_pack(pack, progress, begin(pack)):
                whole = dataclasses.replace(result, provenance=facts)
                self.store.put("results", self.result_key(result.spec), files | {RESULT: whole.to_json().encode()})

        steps = sum(bench.work.steps(spec) - done for spec in specs)
        yield from self.in_packs(deque(self.packs(specs, bench.work)), run, find, steps, "jobs")

    def _failed(self, spec: RunSpec, why: str) -> Failure:
        """A failure, remembered so that the job is not tried again by this process."""
        self.failures[spec] = Failure(why)
        return self.failures[spec]

    def _facts(self, bench: Bench) -> dict[str, Any]:
        """The provenance of what is computed on this bench."""
        sides = [(layer.outputs, layer.inputs) for layer in bench.work.layers]
        return provenance(str(self.device), self.threads, numerics.promise(sides, self.device), bench.data.sha256)


@functools.lru_cache(maxsize=2)
def _read_once(spec: DataSpec, root: Path, device: torch.device) -> ImageData:
    return load(spec, root, device)
