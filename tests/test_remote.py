"""python -m pytest tests/test_remote.py

Lost packs and packs that fail are retried alike for every worker pool.
"""

from __future__ import annotations

import functools
import io
import itertools
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from tqdm import tqdm

from lora_exp.config.models import ModelSpec
from lora_exp.config.spec import AdapterSpec, BaseSpec, DataSpec, FinetuneSpec, RunSpec
from lora_exp.executors.remote import TRIES, PackEnd, WorkerPool
from lora_exp.training import executor
from lora_exp.training.executor import Files, Pack, PackTask, Progress, train_in_parts

SPECS = [
    RunSpec(ModelSpec((8,)), DataSpec("mnist"), BaseSpec(), AdapterSpec(), FinetuneSpec((digit,))) for digit in range(8)
]


@dataclass
class Pool(WorkerPool):
    """A pool that trains nothing: packs with a key of `bad` fail, or are lost; the others end well, newest first.

    Packs that fail bring the results of the jobs before the first bad one.
    """

    bad: set[str]
    lost: bool = False
    workers: int = 2
    pack_memory: int = 1000
    running: list[tuple[int, list[str]]] = field(default_factory=list)
    started: Counter[str] = field(default_factory=Counter)
    ended: bool = False

    def check(self) -> None:
        """Need nothing."""

    def start(self, task: PackTask) -> int:
        assert len(self.running) < self.workers
        self.started[",".join(task.keys)] += 1
        self.running.append((sum(self.started.values()), task.keys))
        return self.running[-1][0]

    def wait(self, progress: Progress) -> PackEnd:
        number, keys = self.running.pop()
        made = {key: {"result": key.encode()} for key in itertools.takewhile(lambda key: key not in self.bad, keys)}
        if len(made) < len(keys):
            return PackEnd(number, "out of luck", self.lost, made)
        return PackEnd(number, files=made)

    def end(self) -> None:
        self.ended = True


@dataclass
class Kept:
    """Work whose results end in a dictionary; the key of a result is the digit of its spec."""

    results: dict[str, Files] = field(default_factory=dict)

    def run(self, pack: Pack, progress: Progress) -> None:
        raise AssertionError("a worker pool runs nothing here")

    def task(self, pack: Pack) -> PackTask:
        return PackTask([], [self.key(spec) for spec in pack], [], "", "", "", "cpu", 0)

    def keep(self, key: str, files: Files) -> None:
        self.results[key] = files

    def find(self, spec: RunSpec) -> Files | None:
        return self.results.get(self.key(spec))

    def key(self, spec: RunSpec) -> str:
        return str(spec.finetune.target[0])


def train(pool: Pool) -> Iterator[tuple[RunSpec, Files | None, str]]:
    work = Kept()
    return train_in_parts([SPECS[:4], SPECS[4:]], pool, work, work.find, lambda _: 10, "jobs")


def test_a_pack_that_fails_is_retried_in_halves_until_the_failing_job_is_alone() -> None:
    pool = Pool({"6"})
    found = {spec: (files, why) for spec, files, why in train(pool)}
    assert set(found) == set(SPECS)
    assert found.pop(SPECS[6]) == (None, "out of luck")
    assert all(files is not None for files, _ in found.values())
    assert set(pool.started) == {"0,1,2,3", "4,5,6,7", "6", "7"}  # 4 and 5 were done when their pack failed
    assert set(pool.started.values()) == {1}
    pool = Pool({"4"})
    assert [spec for spec, files, _ in train(pool) if files is None] == [SPECS[4]]
    assert set(pool.started) == {"0,1,2,3", "4,5,6,7", "4,5", "6,7", "4", "5"}


def test_a_job_counts_once_in_the_progress_however_often_its_pack_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    told = io.StringIO()
    monkeypatch.setattr(executor, "tqdm", functools.partial(tqdm, file=told))
    monkeypatch.setattr(told, "isatty", lambda: True)
    assert len(list(train(Pool({"4", "6"})))) == 8
    counts = [int(count) for count in re.findall(r"(\d+)/8 jobs", told.getvalue())]
    assert list(dict.fromkeys(counts)) == list(range(9))


def test_a_log_line_tells_of_each_pack_that_ended_well(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="lora_exp.training.executor"):
        assert len(list(train(Pool({"6"})))) == 8
    told = [re.sub(r", [\d.]+ s$", "", one.getMessage()) for one in caplog.records if one.levelname == "INFO"]
    # The second pack, which is taken first here, fails at 6; of what is left of it, 6 fails alone.
    assert told == ["pack 3 of 4: 1 job, 10 steps", "pack 4 of 4: 4 jobs, 10 steps"]


def test_a_single_job_whose_worker_is_lost_is_tried_several_times() -> None:
    pool = Pool({"6"}, lost=True)
    assert [spec for spec, files, _ in train(pool) if files is None] == [SPECS[6]]
    assert pool.started.pop("6") == TRIES
    assert set(pool.started.values()) == {1}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_pool_ends_what_runs_when_the_caller_stops(workers: int) -> None:
    pool = Pool(set(), workers=workers)
    jobs = train(pool)
    next(jobs)
    jobs.close()  # type: ignore[attr-defined]
    assert pool.ended == (workers == 2)  # with one worker nothing runs at that moment


def test_the_memory_of_an_executor_is_that_of_all_its_workers() -> None:
    assert Pool(set(), workers=3).memory == 3000
