"""A crew of worker processes on this machine that share nothing with the launching one: one a GPU, say.

Workers are started when they are first needed and train one pack after another; results go straight into the store.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import itertools
import json
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait

from lora_exp.executors.local import cause
from lora_exp.executors.remote import Answer, PackTask, Progress


@dataclasses.dataclass(frozen=True)
class _Worker:
    process: subprocess.Popen[bytes]
    connection: Connection
    device: str


class Processes:
    """As many workers as there are `devices`, the first for the first: `["cuda:0", "cuda:1"]`, or `["cpu"] * 2`."""

    pack_memory = None  # that of this machine

    def __init__(self, devices: Sequence[str]) -> None:
        self.workers = len(devices)
        self._devices, self._numbers = list(devices), itertools.count()
        self._idle: list[_Worker] = []
        self._busy: dict[int, _Worker] = {}
        atexit.register(self.end)

    def check(self) -> None:
        """Nothing is needed that the package does not have."""

    def start(self, task: PackTask) -> int:
        """Give a pack to an idle worker, or to a new one."""
        worker, number = self._idle.pop() if self._idle else self._hired(), next(self._numbers)
        self._busy[number] = worker
        own = dataclasses.replace(task, device=worker.device)
        with contextlib.suppress(ConnectionError):  # it ended while it was idle; `wait` tells
            worker.connection.send_bytes(json.dumps(dataclasses.asdict(own)).encode())
        return number

    def wait(self, progress: Progress) -> Answer:
        """The next pack that ends; a worker that ended without a word is not used again."""
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
                    self._dismiss(worker)
                    return Answer(number, cause(code) or "its process ended", lost=True)
                if "steps" in message:
                    progress(message["steps"])
                    continue
                self._idle.append(self._busy.pop(number))
                return Answer(number, message["why"])

    def end(self) -> None:
        """Kill all workers."""
        for worker in [*self._idle, *self._busy.values()]:
            worker.process.kill()
            worker.process.wait()
            self._dismiss(worker)
        self._idle, self._busy = [], {}

    def _hired(self) -> _Worker:
        device = self._devices.pop(0)
        ours, theirs = Pipe()
        with theirs:
            number = theirs.fileno()
            command = [sys.executable, "-m", "lora_exp.executors.pack_worker", str(number)]
            # A group of its own, so that Ctrl-C in a terminal does not reach it while it starts.
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[number], process_group=0)
        return _Worker(process, ours, device)

    def _dismiss(self, worker: _Worker) -> None:
        worker.connection.close()
        self._devices.append(worker.device)
