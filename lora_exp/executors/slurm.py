"""A pool of Slurm jobs, one per pack, submitted through submitit, which can also run them as local processes.

Store and data root must be on a file system that all nodes share. A job writes its results to the store itself, so they
are kept even if the launching process has ended.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import math
import os
import platform
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lora_exp.config.settings import ExecutorSettings
from lora_exp.errors import LoraExpError
from lora_exp.executors.remote import PackEnd, Resources, WorkerPool, loaded
from lora_exp.storage.store import EntryId, Store
from lora_exp.training.executor import PackTask
from lora_exp.training.loop import Progress

WORKERS = 8  # packs that train at a time by default
# Seconds between two polls of the jobs, and seconds within which a network file system must show another node's files.
POLL = {"slurm": 1.0, "local": 0.1}
PATIENCE = 60.0


class SlurmPool(WorkerPool):
    """Slurm jobs as `settings` describe them, or with `settings.cluster` "local" processes of this machine.

    `device` is the type of device that packs train on, `threads` how many local processes run by default. The logs of
    jobs that fail stay in a folder of their own below `folder`.
    """

    def __init__(self, settings: ExecutorSettings, device: str, threads: int, folder: Path) -> None:
        resources = Resources.of(settings, device)
        self.workers = settings.workers or (threads if settings.cluster == "local" else WORKERS)
        self.pack_memory = resources.pack_memory
        # submitit numbers local jobs by process, so two launching processes must not share a folder.
        self._folder = folder / f"{platform.node()}-{uuid.uuid4().hex[:8]}"
        self._cluster, self._memory = settings.cluster, resources.memory
        self._parameters = {
            "name": "lora_exp",
            "timeout_min": settings.minutes,
            "cpus_per_task": math.ceil(resources.cpus),
            "gpus_per_node": math.ceil(resources.gpus),
        }
        if settings.partition is not None:
            self._parameters["slurm_partition"] = settings.partition
        self._numbers = itertools.count()
        self._running: dict[int, tuple[Any, PackTask]] = {}

    def check(self) -> None:
        """Raise LoraExpError when submitit or Slurm is not installed."""
        loaded("submitit", "slurm")
        missing = [name for name in ("sbatch", "srun", "sacct") if shutil.which(name) is None]
        if self._cluster == "slurm" and missing:
            raise LoraExpError(
                f"executor=slurm: this machine has no {missing[0]}; start it on a login node of the cluster, "
                "or use executor.cluster=local"
            )

    def start(self, task: PackTask) -> int:
        """Submit a pack. Raises LoraExpError when Slurm refuses it."""
        from submitit.core.utils import FailedJobError

        from lora_exp.executors.worker import trained_into_store

        number, memory = next(self._numbers), self._memory or task.memory
        self._executor.update_parameters(**self._parameters, mem_gb=max(1, math.ceil(memory / 2**30)))
        try:
            with _without_stderr() if self._cluster == "local" else contextlib.nullcontext():
                self._running[number] = (self._executor.submit(trained_into_store, task, None), task)
        except FailedJobError as error:
            raise LoraExpError(f"executor=slurm: Slurm refuses the job ({' '.join(str(error).split())})") from error
        return number

    def wait(self, progress: Progress) -> PackEnd:
        """Wait for the next pack that ends; job-steps are not known."""
        while True:
            for number, (job, task) in self._running.items():
                if job.done():
                    del self._running[number]
                    return self._ended(number, job, task)
            time.sleep(POLL[self._cluster])

    def end(self) -> None:
        """Cancel all running and pending jobs."""
        for job, _ in self._running.values():
            job.cancel(check=False)
        self._running = {}
        with contextlib.suppress(OSError):
            self._folder.rmdir()  # fails if it still holds the log of a failed job

    @functools.cached_property
    def _executor(self) -> Any:
        import submitit

        atexit.register(self.end)
        return submitit.AutoExecutor(self._folder, cluster=self._cluster)

    def _ended(self, number: int, job: Any, task: PackTask) -> PackEnd:
        from submitit.core.utils import UncompletedJobError

        log = job.paths.stderr
        try:
            why = job.result()
        except UncompletedJobError:
            return PackEnd(number, f"its Slurm job {job.job_id} ended early ({job.state}); its log: {log}", lost=True)
        if why is None:
            _wait_until_visible(Store(Path(task.store)), task.entries)
            for path in self._folder.glob(f"{job.job_id}_*"):
                path.unlink(missing_ok=True)
        return PackEnd(number, why)


def _wait_until_visible(store: Store, entries: list[EntryId]) -> None:
    """Wait until this machine sees the entries that another one wrote."""
    deadline = time.monotonic() + PATIENCE
    for kind, key in entries:
        while not store.has(kind, key) and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                list(store.folder(kind, key).parent.iterdir())  # makes a network file system refresh its cache
            time.sleep(0.2)


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    """Start processes without a stderr in a `with` block: at Ctrl-C submitit's local ones write a traceback to it.

    What their tasks write goes to the log of the job in any case.
    """
    own, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(own, 2)
        os.close(own)
        os.close(null)
