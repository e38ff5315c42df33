"""Where packs run: processes of their own, so that one that crashes takes no other with it, or threads.

A pack stores its results itself, job by job, so what an executor reports is no more than that a pack ended, and why
if it did not end well; the store tells what was finished.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import queue
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, TypeVar

import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from lora_exp.errors import reason

if TYPE_CHECKING:
    from concurrent.futures import Future

log = logging.getLogger(__name__)

Pack = TypeVar("Pack")
Job = TypeVar("Job")
Made = TypeVar("Made")
Progress = Callable[[int], object]
# Trains and stores one pack; is told of job-steps done through the second argument.
Run = Callable[[Pack, Progress], None]
# A pack that ended, and why it did not end well.
Ended = tuple[Pack, str | None]
# Trains packs, to which the caller may add, and tells of those that ended.
Trainer = Callable[[deque[Pack], Progress], Iterator[Ended[Pack]]]


def completed(
    packs: deque[Pack], run: Run[Pack], workers: int, progress: Progress, device: str
) -> Iterator[Ended[Pack]]:
    """Run packs, `workers` at a time, one thread each; yield each as it ends.

    Packs are taken from the left of `packs`, to which the caller may add while it is told of those that ended. When
    the caller stops listening, what runs is ended at once where that can be done.
    """
    # An accelerator can't be used in a forked process, and only Linux forks safely beside its math libraries.
    isolated = device == "cpu" and sys.platform == "linux"
    return (_in_processes if isolated else _in_threads)(packs, run, workers, progress)


def in_parts(
    packs: deque[list[Job]], train: Trainer[list[Job]], find: Callable[[Job], Made | None], steps: int, what: str
) -> Iterator[tuple[Job, Made | None, str]]:
    """Train packs, and yield each job with what `find` has of it then, or with why there is nothing.

    A pack that fails is tried again in halves, until the job that fails is alone.
    """
    done, count = 0, sum(map(len, packs))
    with logging_redirect_tqdm(), tqdm(total=steps, disable=None, unit="step") as bar:
        bar.set_description(f"0/{count} {what}")
        for pack, why in train(packs, bar.update):
            left = []
            for job in pack:
                made = find(job)
                if made is None and len(pack) > 1:
                    left.append(job)
                    continue
                done += 1
                bar.set_description(f"{done}/{count} {what}")
                yield job, made, why or "what it left can't be read from the store"
            if left:
                log.warning("a pack of %d jobs failed (%s); it is tried again in parts", len(pack), why)
                half = -(-len(left) // 2)
                packs.extendleft(part for part in (left[half:], left[:half]) if part)


def _in_processes(packs: deque[Pack], run: Run[Pack], workers: int, progress: Progress) -> Iterator[Ended[Pack]]:
    """Each pack in a forked process: it shares this one's memory for reading, so nothing is loaded twice."""
    context = multiprocessing.get_context("fork")
    running: dict[Connection, tuple[BaseProcess, Pack, list[str]]] = {}
    try:
        while packs or running:
            while packs and len(running) < workers:
                pack = packs.popleft()
                receiver, sender = context.Pipe(duplex=False)
                child = context.Process(target=_child, args=(run, pack, sender), daemon=True)
                child.start()
                sender.close()  # so that the end of the child is the end of what can be received
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
                    yield pack, errors[0] if errors else cause(process.exitcode or 0)
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


def _child(run: Run[Pack], pack: Pack, sender: Connection) -> None:
    """What the forked process does; it ends by itself when its parent is gone and nothing takes its messages."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends its children
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    torch.set_num_threads(1)
    try:
        run(pack, lambda steps: sender.send_bytes(json.dumps({"steps": steps}).encode()))
    except BaseException as error:
        sender.send_bytes(json.dumps({"error": reason(error)}).encode())


def cause(exit_code: int) -> str | None:
    """Why a process that said nothing ended; None when it ended well."""
    if exit_code == 0:
        return None
    if exit_code > 0:
        return f"its process ended with exit code {exit_code}"
    name = signal.Signals(-exit_code).name
    hint = {"SIGKILL": ", perhaps for want of memory", "SIGSEGV": ", a segmentation fault"}.get(name, "")
    return f"its process was killed ({name}{hint})"


def _in_threads(packs: deque[Pack], run: Run[Pack], workers: int, progress: Progress) -> Iterator[Ended[Pack]]:
    """Each pack in a thread of this process."""
    ended: queue.SimpleQueue[tuple[Pack, Future[None]]] = queue.SimpleQueue()
    running = 0
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as threads:
        try:
            while packs or running:
                while packs and running < workers:
                    pack = packs.popleft()
                    future = threads.submit(run, pack, progress)
                    future.add_done_callback(lambda done, pack=pack: ended.put((pack, done)))  # type: ignore[misc]
                    running += 1
                pack, done = ended.get()
                running -= 1
                error = done.exception()
                yield pack, None if error is None else reason(error)
        finally:
            threads.shutdown(cancel_futures=True)
