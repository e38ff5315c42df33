"""Worker pools: processes of this machine, of a Ray cluster or of Slurm, which share no memory with this one.

A pool trains packs that are described as plain values, and reports the end of each exactly once. What is retried is
decided here and in `training.executor`, the same for every pool.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lora_exp.config.settings import ExecutorSettings
from lora_exp.errors import LoraExpError, installing
from lora_exp.training.executor import Ended, Files, Pack, PackTask, Work
from lora_exp.training.loop import Progress

# A single job is tried so often when its worker is lost: the first losses may not be its fault.
TRIES = 3
# Memory of a pack on a cluster where `executor.memory` is null. Most packs need far less.
PACK_MEMORY = 4 * 2**30


@dataclass(frozen=True)
class Resources:
    """What a cluster gives each pack: CPUs, GPUs and bytes of memory (None: what the pack is expected to need)."""

    cpus: float
    gpus: float
    memory: int | None

    @classmethod
    def of(cls, settings: ExecutorSettings, device: str) -> Resources:
        """Return what the settings give a pack on that type of device: by default one GPU, if it is not a CPU."""
        gpus = float(device != "cpu") if settings.gpus is None else settings.gpus
        return cls(settings.cpus, gpus, None if settings.memory is None else int(settings.memory * 2**30))

    @property
    def pack_memory(self) -> int:
        """Bytes for the jobs of a pack; the rest is for libraries and data."""
        return (self.memory or PACK_MEMORY) // 2


def loaded(library: str, extra: str) -> Any:
    """Import the library of an executor. Raises LoraExpError when it is not installed or can't be loaded."""
    try:
        return importlib.import_module(library)
    except ImportError as error:
        problem = "is not installed" if error.name == library else f"can't be loaded ({error})"
        raise LoraExpError(f"executor={extra}: {library} {problem}; {installing(extra)}") from error


@dataclass(frozen=True)
class PackEnd:
    """The end of pack `number`: the reason if it failed, and files of results that are not in the store yet, by key.

    `lost` means that its process or node ended without reporting a reason.
    """

    number: int
    why: str | None = None
    lost: bool = False
    files: Mapping[str, Files] = field(default_factory=dict)


class WorkerPool(ABC):
    """An executor: processes that share no memory with this one, and know no more of a pack than its task.

    `workers` is how many packs train at a time, `pack_memory` the bytes that each may use.
    """

    shares_memory = False
    workers: int
    pack_memory: int

    @property
    def memory(self) -> int:
        """Bytes that the packs which train at a time may use together."""
        return self.workers * self.pack_memory

    @abstractmethod
    def check(self) -> None:
        """Raise LoraExpError, with a one-line message, if no pack can train; called before anything is computed."""

    @abstractmethod
    def start(self, task: PackTask) -> int:
        """Start to train a pack; return the number that its `PackEnd` will have."""

    @abstractmethod
    def wait(self, progress: Progress) -> PackEnd:
        """Wait for the next pack that ends; meanwhile report job-steps to `progress`, where the pool knows them."""

    @abstractmethod
    def end(self) -> None:
        """Stop all running packs at once, and release the workers."""

    def train(self, packs: deque[Pack], work: Work, progress: Progress) -> Ended:
        """Train packs; yield each when it ends, with the reason if it failed (see `training.executor`)."""
        running: dict[int, tuple[Pack, int]] = {}
        try:
            while packs or running:
                while packs and len(running) < self.workers:
                    pack = packs.popleft()
                    running[self.start(work.task(pack))] = (pack, 1)
                end = self.wait(progress)
                pack, tries = running.pop(end.number)
                if end.lost and len(pack) == 1 and tries < TRIES:
                    running[self.start(work.task(pack))] = (pack, tries + 1)
                    continue
                for key, files in end.files.items():
                    work.keep(key, files)
                yield pack, end.why
        finally:
            if running:
                self.end()
