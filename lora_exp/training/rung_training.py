"""Jobs of one base on their way through the rungs of successive halving, packs side by side.

What a job is at a rung lies in the store, as results do: a sweep that is interrupted goes on from there, and takes
the same decisions.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_exp.config.spec import RunSpec, digest
from lora_exp.executors.local import Progress
from lora_exp.storage.result import error_of
from lora_exp.storage.store import Store
from lora_exp.storage.sweep_file import Stopped
from lora_exp.training.checkpoint import Checkpoint, decoded
from lora_exp.training.evaluation import summarise
from lora_exp.training.halving import Halving, judged, rungs
from lora_exp.training.pack import Bench

CHECKPOINT, RUNG = "checkpoint.safetensors", "rung.json"
Files = dict[str, bytes]


@dataclass(frozen=True)
class RungTraining:
    """The rungs of the jobs of one base.

    `key` hashes what determines a job's result, `packs` says which jobs train together, and `in_packs` runs packs and
    yields each job with what was found of it (see `Laboratory`).
    """

    halving: Halving
    bench: Bench
    store: Store
    key: Callable[[RunSpec], str]
    packs: Callable[[Sequence[RunSpec]], list[list[RunSpec]]]
    in_packs: Callable[..., Iterator[tuple[RunSpec, Any]]]

    def climb(self, specs: Sequence[RunSpec]) -> tuple[dict[RunSpec, int], dict[RunSpec, Stopped]]:
        """The jobs that go on to their end, each with the step of its last rung, and those that were stopped.

        A job that fails on the way is in neither.
        """
        steps = {spec: self.bench.work.steps(spec) for spec in specs}
        reached = dict.fromkeys(specs, 0)
        stopped: dict[RunSpec, Stopped] = {}
        for step in rungs(self.halving, max(steps.values())):
            competing = {spec: last for spec, last in reached.items() if steps[spec] > step}
            errors = self._errors_at(step, competing)
            on, out = judged(self.halving, step, errors, steps)
            stopped |= out
            reached = {spec: last for spec, last in reached.items() if spec not in competing} | dict.fromkeys(on, step)
        return {spec: reached[spec] for spec in specs if spec in reached}, stopped

    def checkpoints(self, pack: Sequence[RunSpec], step: int) -> list[Checkpoint]:
        """Where the jobs of a pack stood at a rung; none when one of them isn't in the store (any more)."""
        found = []
        for spec in pack:
            files = self.store.get("checkpoints", self._rung_key(spec, step)) if step else None
            if files is None:
                return []
            found.append(decoded(files[CHECKPOINT]))
        return found

    def _errors_at(self, step: int, reached: Mapping[RunSpec, int]) -> dict[RunSpec, float]:
        """Train all jobs up to a rung, where that isn't done yet; what they have of the objective there."""

        def run(pack: list[RunSpec], progress: Progress) -> None:
            begin = self.checkpoints(pack, reached[pack[0]])
            for spec, (said, stands) in zip(pack, self.bench.run_rung(pack, step, progress, begin), strict=True):
                sound = math.isfinite(said.loss) and bool(stands.losses.isfinite().all())
                rung = {"step": step, "error_rates": said.error_rates if sound else None}
                # Apart, since errors are read of all jobs and checkpoints of those that go on; the record comes last.
                self.store.put("checkpoints", self._rung_key(spec, step), {CHECKPOINT: stands.encoded()})
                self.store.put("rungs", self._rung_key(spec, step), {RUNG: json.dumps(rung).encode()})

        found = {spec: files for spec in reached if (files := self._find(spec, step)) is not None}
        missing = [spec for spec in reached if spec not in found]
        packs: deque[list[RunSpec]] = deque()
        for last in sorted(set(reached.values())):  # jobs of a pack go on from the same step
            packs += self.packs([spec for spec in missing if reached[spec] == last])
        work = sum(step - reached[spec] for spec in missing)
        for spec, made in self.in_packs(packs, run, lambda spec: self._find(spec, step), work, f"jobs at step {step}"):
            if isinstance(made, dict):
                found[spec] = made
        said, split = self.bench.base.validation, self.bench.data.validation
        assert said is not None and split is not None, "checked before anything ran"
        before = summarise(said, split.labels).error_rates
        errors = {}
        for spec in (spec for spec in reached if spec in found):
            rates = json.loads(found[spec][RUNG])["error_rates"]
            target = spec.finetune.digit
            errors[spec] = math.nan if rates is None else error_of(self.halving.objective, target, before, rates)
        return errors

    def _find(self, spec: RunSpec, step: int) -> Files | None:
        return self.store.get("rungs", self._rung_key(spec, step))

    def _rung_key(self, spec: RunSpec, step: int) -> str:
        return digest([self.key(spec), step])
