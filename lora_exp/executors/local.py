"""Packs that train on this machine: in forked processes, so that a crash ends one pack only, or in threads."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import sys
from collections import deque
from concurrent import futures
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import ClassVar

import torch

from lora_exp.child import end_with, let_go, signals_held_back
from lora_exp.errors import reason
from lora_exp.training.executor import Ended, Pack, Work
from lora_exp.training.loop import Progress


@dataclass(frozen=True)
class LocalExecutor:
    """`workers` packs at a time, on one thread each, which together use at most `memory` bytes.

    `device` is the type of device that they train on.
    """

    workers: int
    memory: int
    device: str = "cpu"
    shares_memory: ClassVar[bool] = True

    def check(self) -> None:
        """Need nothing that is not installed with the package."""

    def train(self, packs: deque[Pack], work: Work, progress: Progress) -> Ended:
        """Train packs; yield each when it ends, with the reason if it failed (see `training.executor`)."""
        # A forked process can't use an accelerator, and forking is safe beside the math libraries on Linux only.
        forks = self.device == "cpu" and sys.platform == "linux"
        return (_in_processes if forks else _in_threads)(packs, work, self.workers, progress)


def _in_processes(packs: deque[Pack], work: Work, workers: int, progress: Progress) -> Ended:
    """Train each pack in a forked process, which reads this one's memory, so that nothing is loaded twice."""
    context = multiprocessing.get_context("fork")
    running: dict[Connection, tuple[BaseProcess, Pack, list[str]]] = {}
    try:
        while packs or running:
            while packs and len(running) < workers:
                pack = packs.popleft()
                receiver, sender = context.Pipe(duplex=False)
                child = context.Process(target=_child, args=(work, pack, sender, os.getpid()), daemon=True)
                with signals_held_back():
                    child.start()
                sender.close()  # the child has the only other end, so its death ends what can be received
                running[receiver] = (child, pack, [])
            for ready in wait(list(running)):
                assert isinstance(ready, Connection)
                process, pack, errors = running[ready]
                try:
                    message = json.loads(ready.recv_bytes())
                except EOFError:
                    process.join()
                    ready.close()
                    del running[ready]
                    yield pack, errors[0] if errors else exit_reason(process.exitcode or 0)
                    continue
                if "steps" in message:
                    progress(message["steps"])
                else:
                    errors.append(message["error"])
    finally:
        for receiver, (process, _, _) in running.items():
            process.kill()
            process.join()
            receiver.close()


def _child(work: Work, pack: Pack, sender: Connection, parent: int) -> None:
    """Train a pack in a forked process, which keeps nothing of its parent but what both write to."""
    let_go(kept={1, 2, sender.fileno(), *_log_files()})
    end_with(parent)
    torch.set_num_threads(1)
    try:
        work.run(pack, lambda steps: sender.send_bytes(json.dumps({"steps": steps}).encode()))
    except BaseException as error:
        sender.send_bytes(json.dumps({"error": reason(error)}).encode())


def _log_files() -> list[int]:
    """The descriptors of the files that logs go to."""
    files = [handler for handler in logging.root.handlers if isinstance(handler, logging.FileHandler)]
    return [file.stream.fileno() for file in files if file.stream is not None]


def exit_reason(exit_code: int) -> str | None:
    """Explain the exit code of a process that sent no error; None when it ended well."""
    if exit_code == 0:
        return None
    if exit_code > 0:
        return f"its process ended with exit code {exit_code}"
    name = signal.Signals(-exit_code).name
    hint = {"SIGKILL": ", perhaps because memory ran out", "SIGSEGV": ", a segmentation fault"}.get(name, "")
    return f"its process was killed ({name}{hint})"


def _in_threads(packs: deque[Pack], work: Work, workers: int, progress: Progress) -> Ended:
    """Train each pack in a thread of this process."""
    running: dict[futures.Future[None], Pack] = {}
    with futures.ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as threads:
        try:
            while packs or running:
                while packs and len(running) < workers:
                    pack = packs.popleft()
                    running[threads.submit(work.run, pack, progress)] = pack
                done = next(iter(futures.wait(running, return_when=futures.FIRST_COMPLETED).done))
                error = done.exception()
                yield running.pop(done), None if error is None else reason(error)
        finally:
            threads.shutdown(cancel_futures=True)
