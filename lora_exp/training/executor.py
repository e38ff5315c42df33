"""What an executor is: it trains packs, here or elsewhere, and reports which ended and why some failed.

A pack stores its own results, job by job. What was finished is therefore read from the store, and an executor reports
only that a pack ended. Packs that fail are retried in halves, in the same way for every executor.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from lora_exp.config.spec import RunSpec, digest
from lora_exp.training.loop import Progress

log = logging.getLogger(__name__)

Made = TypeVar("Made")
Files = Mapping[str, bytes]
Pack = list[RunSpec]
Ended = Generator[tuple[Pack, str | None], None, None]


@dataclass(frozen=True)
class PackTask:
    """A pack as plain values: its specs, the keys of their results, and what else determines both (`circumstances`).

    Its jobs have made `begin` steps before, of which the store has checkpoints. They are trained to the rung at step
    `stop`, or to their end and judged (None).

    `store` and `data`, the prepared data set, are paths as the launching process sees them. `memory` is the expected
    memory in bytes, including libraries and data.
    """

    specs: list[dict[str, Any]]
    keys: list[str]
    circumstances: list[str]
    base_key: str
    store: str
    data: str
    device: str
    memory: int
    begin: int = 0
    stop: int | None = None

    @property
    def entries(self) -> list[tuple[str, str]]:
        """The entries of the store that the pack makes: kind and key."""
        if self.stop is None:
            return [("results", key) for key in self.keys]
        return [("rungs", rung_key(key, self.stop)) for key in self.keys]


def rung_key(result_key: str, step: int) -> str:
    """Return the store's key of what halving keeps of a job at a rung."""
    return digest([result_key, step])


class Work(Protocol):
    """What to do with each pack. An executor either runs a pack here, or sends it elsewhere as a task."""

    def run(self, pack: Pack, progress: Progress) -> None:
        """Train a pack in this process, or in a fork of it, and store what it makes."""

    def task(self, pack: Pack) -> PackTask:
        """Describe a pack to a process that shares no memory with this one."""

    def keep(self, key: str, files: Files) -> None:
        """Store one result of a pack that was trained where the store is not at hand."""


class Executor(Protocol):
    """Where packs train."""

    @property
    def shares_memory(self) -> bool:
        """Whether packs run in this process or in forks of it, and so use what it has loaded."""

    @property
    def workers(self) -> int:
        """How many packs train at a time."""

    @property
    def memory(self) -> int:
        """Bytes that the packs which train at a time may use together."""

    def check(self) -> None:
        """Raise LoraExpError, with a one-line message, if no pack can train; called before anything is computed."""

    def train(self, packs: deque[Pack], work: Work, progress: Progress) -> Ended:
        """Train packs; yield each when it ends, with the reason if it failed.

        Packs are taken from the left of `packs`; the caller may add some between two yields. Packs that still run are
        stopped when the iterator is closed.
        """


class _Waiting(deque[Pack]):
    """Packs that wait for an executor, and when each was taken."""

    def __init__(self, packs: Iterable[Pack]) -> None:
        super().__init__(packs)
        self._taken: dict[int, float] = {}

    def popleft(self) -> Pack:
        pack = super().popleft()
        self._taken[id(pack)] = time.monotonic()
        return pack

    def seconds(self, pack: Pack) -> float:
        """The seconds since a pack was taken."""
        return time.monotonic() - self._taken.pop(id(pack))


def train_in_parts(
    packs: Iterable[Pack],
    executor: Executor,
    work: Work,
    find: Callable[[RunSpec], Made | None],
    steps: Callable[[RunSpec], int],
    what: str,
) -> Iterator[tuple[RunSpec, Made | None, str]]:
    """Train packs; yield each job with what `find` returns for it, or with None and the reason why it failed.

    A pack that fails is retried in halves, until the failing job is alone. `steps` is how many a job makes. The
    progress bar counts them, and jobs, which it calls `what`; a log line, which stands above it, tells of each pack.
    """
    waiting = _Waiting(packs)
    done, count, ended_packs, pack_count = 0, sum(map(len, waiting)), 0, len(waiting)
    total = sum(steps(spec) for pack in waiting for spec in pack)
    with (
        logging_redirect_tqdm(),
        tqdm(total=total, disable=None, unit="step") as bar,
        contextlib.closing(executor.train(waiting, work, bar.update)) as ended,
    ):
        bar.set_description(f"0/{count} {what}")
        for pack, why in ended:
            seconds, ended_packs = waiting.seconds(pack), ended_packs + 1
            if why is None:
                jobs = _counted(len(pack), what)
                lengths = _lengths([steps(spec) for spec in pack])
                log.info("pack %d of %d: %s, %s, %.1f s", ended_packs, pack_count, jobs, lengths, seconds)
            left = []
            for spec in pack:
                made = find(spec)
                if made is None and len(pack) > 1:
                    left.append(spec)
                    continue
                done += 1
                bar.set_description(f"{done}/{count} {what}")
                yield spec, made, why or "its result can't be read from the store"
            if left:
                log.warning("a pack of %d jobs failed (%s); its jobs are retried in smaller packs", len(pack), why)
                half = -(-len(left) // 2)
                parts = [part for part in (left[half:], left[:half]) if part]
                waiting.extendleft(parts)
                pack_count += len(parts)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count > 1 else f"1 {what.replace('jobs', 'job', 1)}"


def _lengths(steps: list[int]) -> str:
    low, high = min(steps), max(steps)
    return f"{low} steps" if low == high else f"{low} to {high} steps"
