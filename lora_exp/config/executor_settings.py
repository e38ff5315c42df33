"""Where packs train: what may be chosen, and the crew that a choice stands for."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_exp.config.fields import allow, integer, is_int, is_name, is_number, is_text, positive
from lora_exp.errors import LoraExpError

if TYPE_CHECKING:
    import torch

    from lora_exp.executors.remote import Crew

# Where packs train, and the keys that have a meaning there.
EXECUTORS = {
    "local": (),
    "processes": ("workers",),
    "ray": ("workers", "cpus", "gpus", "memory", "address"),
    "slurm": ("workers", "cpus", "gpus", "memory", "cluster", "partition", "minutes"),
}
SLURM_JOBS = 8  # at a time, where nothing else is said


@dataclass(frozen=True)
class ExecutorSettings:
    """Where packs train, how many at a time (null: as many as fit), and what each of them is given.

    Null `gpus` are one on an accelerator, and null `memory` (GiB) is what the pack is expected to take.
    """

    kind: str = allow("one of " + ", ".join(EXECUTORS), lambda v: v in EXECUTORS, default="local")
    workers: int | None = allow(
        "null or an integer of at least 1", lambda v: v is None or (is_int(v) and v >= 1), default=None
    )
    cpus: float = positive(default=1.0)
    gpus: float | None = allow(
        "null or a number of at least 0", lambda v: v is None or (is_number(v) and v >= 0), default=None
    )
    memory: float | None = allow(
        "null or a number of GiB above 0", lambda v: v is None or (is_number(v) and v > 0), default=None
    )
    address: str | None = allow(
        "null or HOST:PORT of a Ray cluster", lambda v: v is None or (is_text(v) and ":" in v), default=None
    )
    cluster: str = allow("one of slurm, local", lambda v: v in ("slurm", "local"), default="slurm")
    partition: str | None = allow("null or the name of a partition", lambda v: v is None or is_name(v), default=None)
    minutes: int = integer(1, default=60)

    def check(self) -> None:
        """Raises LoraExpError for a value of a key that this kind has no use for."""
        for known in dataclasses.fields(self):
            if known.name not in ("kind", *EXECUTORS[self.kind]) and getattr(self, known.name) != known.default:
                raise LoraExpError(
                    f"executor.{known.name}={getattr(self, known.name)}: must be left out with executor={self.kind}"
                )

    def crew(self, device: torch.device, threads: int, logs: Path) -> Crew | None:
        """Who trains packs elsewhere, if anybody is to; nothing is started yet.

        `threads` is how many packs this machine trains side by side, `logs` a folder for what Slurm jobs say.
        """
        gpus = float(device.type != "cpu") if self.gpus is None else self.gpus
        memory = None if self.memory is None else int(self.memory * 2**30)
        if self.kind == "processes":
            from lora_exp.executors.processes import Processes

            return Processes(_devices(device, self.workers, threads))
        if self.kind == "ray":
            from lora_exp.executors.ray import RayCrew

            return RayCrew(self.address, self.workers, self.cpus, gpus, memory)
        if self.kind == "slurm":
            from lora_exp.executors.slurm import SlurmCrew

            workers = self.workers or (threads if self.cluster == "local" else SLURM_JOBS)
            return SlurmCrew(self.cluster, logs, workers, self.cpus, gpus, memory, self.partition, self.minutes)
        return None


def _devices(device: torch.device, workers: int | None, threads: int) -> list[str]:
    """The device of each worker process: CUDA's in turn, so that each has its own where there are enough."""
    if device.type != "cuda":
        return [device.type] * (workers or threads)
    import torch

    count = torch.cuda.device_count()
    return [f"cuda:{number % count}" for number in range(workers or count)]
