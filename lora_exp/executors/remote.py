"""Packs that train in processes which share nothing with this one: what they are told, and the loop that hands out.

A crew is the processes of one machine, of a Ray cluster or of Slurm. It is handed packs as plain values, and answers
for each once; what is tried again, and how, is decided here and by the laboratory, the same for all of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

Pack = TypeVar("Pack", bound=Sequence[Any])
Files = Mapping[str, bytes]
Progress = Callable[[int], object]
# A job alone whose process or node is lost may be innocent; one that is lost so often is not.
TRIES = 3
# What a pack may hold on a cluster, where nothing else is said; most take far less.
PACK_MEMORY = 4 * 2**30


@dataclass(frozen=True)
class PackTask:
    """A pack in plain values: its specs, the keys of their results, and what else determines both (`circumstances`).

    `store` and `data_root` are folders as the launching process sees them; `memory` is what the pack is expected to
    take, in bytes, libraries and data included.
    """

    specs: list[dict[str, Any]]
    keys: list[str]
    circumstances: list[str]
    base_key: str
    store: str
    data_root: str
    device: str
    memory: int


@dataclass(frozen=True)
class Answer:
    """A pack that ended: files of results that are not in the store yet, by key, and why it did not end well.

    `lost` tells that its process or node ended without a word.
    """

    number: int
    why: str | None = None
    lost: bool = False
    files: Mapping[str, Files] = field(default_factory=dict)


class Crew(Protocol):
    """Where packs train elsewhere."""

    @property
    def workers(self) -> int:
        """How many packs train side by side."""

    @property
    def pack_memory(self) -> int | None:
        """Bytes that each pack may hold; None where they share what this machine has."""

    def check(self) -> None:
        """Raise LoraExpError, of one line, when there is nothing to train with; called before anything is computed."""

    def start(self, task: PackTask) -> int:
        """Have a pack trained; the number that its answer will bear."""

    def wait(self, progress: Progress) -> Answer:
        """The next pack that ends; meanwhile `progress` may be told of job-steps done."""

    def end(self) -> None:
        """End at once whatever runs, and let go of what was started."""


def dispatched(
    packs: deque[Pack],
    crew: Crew,
    task_of: Callable[[Pack], PackTask],
    keep: Callable[[str, Files], object],
    progress: Progress,
) -> Iterator[tuple[Pack, str | None]]:
    """Have packs trained by a crew; yield each as it ends, with why it did not end well, like `executors.completed`.

    Results that come with an answer are given to `keep`. When the caller stops listening, what runs is ended.
    """
    running: dict[int, tuple[Pack, int]] = {}
    try:
        while packs or running:
            while packs and len(running) < crew.workers:
                pack = packs.popleft()
                running[crew.start(task_of(pack))] = (pack, 1)
            answer = crew.wait(progress)
            pack, tries = running.pop(answer.number)
            if answer.lost and len(pack) == 1 and tries < TRIES:
                running[crew.start(task_of(pack))] = (pack, tries + 1)
                continue
            for key, files in answer.files.items():
                keep(key, files)
            yield pack, answer.why
    finally:
        if running:
            crew.end()
