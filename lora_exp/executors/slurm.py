"""A crew of Slurm jobs, one a pack, through submitit; or of submitit's local processes, to try the same without Slurm.

Store and data root lie on a file system that all nodes share: a job puts its results into the store itself, so they
are kept even when the launching process is gone before the job ends.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.util
import itertools
import math
import platform
import shutil
import time
import uuid
from pathlib import Path
from typing import Any

from lora_exp.errors import LoraExpError
from lora_exp.executors.remote import PACK_MEMORY, Answer, PackTask, Progress
from lora_exp.storage.store import Store

# Seconds between looks at what became of jobs, and for a network file system to show what another node wrote.
LOOKS = {"slurm": 1.0, "local": 0.1}
PATIENCE = 60.0


class SlurmCrew:
    """Slurm jobs in `partition` (None: the cluster's own choice) of `minutes` at most; their logs go to `folder`.

    Each has `cpus` and `gpus`, and `memory` bytes (None: what the pack is expected to take). With `cluster` "local"
    they are processes of this machine.
    """

    def __init__(
        self,
        cluster: str,
        folder: Path,
        workers: int,
        cpus: float,
        gpus: float,
        memory: int | None,
        partition: str | None,
        minutes: int,
    ) -> None:
        self.workers = workers
        self.pack_memory = (memory or PACK_MEMORY) // 2  # the rest is for libraries and data
        # Of its own, since submitit's local jobs are numbered by process: another's files would be taken for theirs.
        self._folder = folder / f"{platform.node()}-{uuid.uuid4().hex[:8]}"
        self._cluster, self._memory = cluster, memory
        self._parameters = {
            "name": "lora_exp",
            "timeout_min": minutes,
            "cpus_per_task": math.ceil(cpus),
            "gpus_per_node": math.ceil(gpus),
        }
        if partition is not None:
            self._parameters["slurm_partition"] = partition
        self._numbers = itertools.count()
        self._running: dict[int, tuple[Any, PackTask]] = {}

    def check(self) -> None:
        """Raises LoraExpError when submitit or Slurm is not installed."""
        if importlib.util.find_spec("submitit") is None:
            raise LoraExpError("executor=slurm: submitit is not installed; pip install 'lora-exp[slurm]'")
        try:
            import submitit  # noqa: F401
        except ImportError as error:
            raise LoraExpError(
                f"executor=slurm: submitit can't be loaded ({error}); pip install 'lora-exp[slurm]'"
            ) from error
        missing = [name for name in ("sbatch", "srun", "sacct") if shutil.which(name) is None]
        if self._cluster == "slurm" and missing:
            raise LoraExpError(
                f"executor=slurm: this machine has no {missing[0]}; start it on a login node of the cluster, "
                "or choose executor.cluster=local"
            )

    def start(self, task: PackTask) -> int:
        """Submit a pack. Raises LoraExpError when Slurm refuses it."""
        from submitit.core.utils import FailedJobError

        from lora_exp.executors.worker import trained_into_store

        number, memory = next(self._numbers), self._memory or task.memory
        self._executor.update_parameters(**self._parameters, mem_gb=max(1, math.ceil(memory / 2**30)))
        try:
            self._running[number] = (self._executor.submit(trained_into_store, task, None), task)
        except FailedJobError as error:
            raise LoraExpError(f"executor=slurm: Slurm refuses the job ({' '.join(str(error).split())})") from error
        return number

    def wait(self, progress: Progress) -> Answer:
        """The next job that ends."""
        while True:
            for number, (job, task) in self._running.items():
                if job.done():
                    del self._running[number]
                    return self._answer(number, job, task)
            time.sleep(LOOKS[self._cluster])

    def end(self) -> None:
        """Cancel what runs or waits."""
        for job, _ in self._running.values():
            job.cancel(check=False)
        self._running = {}
        with contextlib.suppress(OSError):
            self._folder.rmdir()  # where no log is left to look at

    @functools.cached_property
    def _executor(self) -> Any:
        import submitit

        atexit.register(self.end)
        return submitit.AutoExecutor(self._folder, cluster=self._cluster)

    def _answer(self, number: int, job: Any, task: PackTask) -> Answer:
        from submitit.core.utils import UncompletedJobError

        log = job.paths.stderr
        try:
            why = job.result()
        except UncompletedJobError:
            return Answer(number, f"its Slurm job {job.job_id} ended early ({job.state}); its log: {log}", lost=True)
        if why is None:
            _seen(Store(Path(task.store)), task.keys)
            for path in self._folder.glob(f"{job.job_id}_*"):
                path.unlink(missing_ok=True)
        return Answer(number, why)


def _seen(store: Store, keys: list[str]) -> None:
    """Wait until this machine sees results that another one wrote."""
    deadline = time.monotonic() + PATIENCE
    for key in keys:
        while not store.has("results", key) and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                list(store.folder("results", key).parent.iterdir())  # makes a network file system look again
            time.sleep(0.2)
