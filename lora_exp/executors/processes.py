"""A pool of worker processes on this machine, which share no memory with the launching one: one per GPU, for example.

A worker starts when it is first needed and trains one pack after another. It writes results to the store itself.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait

from lora_exp.executors.local import exit_reason
from lora_exp.executors.remote import PackEnd, WorkerPool
from lora_exp.training.executor import PackTask
from lora_exp.training.loop import Progress


@dataclasses.dataclass(frozen=True)
class _Worker:
    process: subprocess.Popen[bytes]
    connection: Connection
    device: str


class ProcessPool(WorkerPool):
    """One worker for each of `devices`, such as `["cuda:0", "cuda:1"]` or `["cpu"] * 2`.

    Together they use at most `memory` bytes.
    """

    def __init__(self, devices: Sequence[str], memory: int) -> None:
        self.workers = len(devices)
        self.pack_memory = memory // len(devices)
        self._devices, self._numbers = list(devices), itertools.count()
        self._idle: list[_Worker] = []
        self._busy: dict[int, _Worker] = {}
        atexit.register(self.end)

    def check(self) -> None:
        """Need nothing that is not installed with the package."""

    def start(self, task: PackTask) -> int:
        """Send a pack to an idle worker, or to a new one."""
        worker, number = self._idle.pop() if self._idle else self._started(), next(self._numbers)
        self._busy[number] = worker
        own = dataclasses.replace(task, device=worker.device)
        with contextlib.suppress(ConnectionError):  # it died while it was idle, which `wait` reports
            worker.connection.send_bytes(json.dumps(dataclasses.asdict(own)).encode())
        return number

    def wait(self, progress: Progress) -> PackEnd:
        """Wait for the next pack that ends. A worker that died is not used again."""
        while True:
            numbers = {worker.connection: number for number, worker in self._busy.items()}
            for ready in wait(list(numbers)):
                assert isinstance(ready, Connection)
                number = numbers[ready]
                try:
                    message = json.loads(ready.recv_bytes())
                except (EOFError, ConnectionError):
                    worker = self._busy.pop(number)
                    code = worker.process.wait()
                    self._remove(worker)
                    return PackEnd(number, exit_reason(code) or "its process ended", lost=True)
                if "steps" in message:
                    progress(message["steps"])
                    continue
                self._idle.append(self._busy.pop(number))
                return PackEnd(number, message["why"])

    def end(self) -> None:
        """Kill all workers."""
        for worker in [*self._idle, *self._busy.values()]:
            worker.process.kill()
            worker.process.wait()
            self._remove(worker)
        self._idle, self._busy = [], {}

    def _started(self) -> _Worker:
        device = self._devices.pop(0)
        ours, theirs = Pipe()
        with theirs:
            number = theirs.fileno()
            command = [sys.executable, "-m", "lora_exp.executors.worker", str(number), str(os.getpid())]
            # In a process group of its own, so that Ctrl-C in a terminal does not reach it while it starts.
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[number], process_group=0)
        return _Worker(process, ours, device)

    def _remove(self, worker: _Worker) -> None:
        worker.connection.close()
        self._devices.append(worker.device)
