"""A worker: it trains one pack from its task and knows nothing else of the launching process.

Ray and Slurm call its functions, which return errors as text: exceptions may not unpack on another machine. A process
of `processes` runs `python -m lora_exp.executors.worker DESCRIPTOR`, the socket through which tasks arrive.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from lora_exp import numerics
from lora_exp.child import end_with
from lora_exp.config.spec import from_dict
from lora_exp.errors import LoraExpError, reason
from lora_exp.executors.local import LocalExecutor
from lora_exp.storage.store import Store
from lora_exp.storage.sweep_file import write_whole
from lora_exp.training.base import read_base
from lora_exp.training.checkpoint import Checkpoint
from lora_exp.training.executor import Files, PackTask
from lora_exp.training.halving import keep_rung, rung_files, stored_checkpoints
from lora_exp.training.laboratory import Laboratory, ResultWork
from lora_exp.training.loop import Progress

# The names of what `Laboratory.circumstances` lists.
CIRCUMSTANCES = ("data", "code of lora_exp", "torch", "device", "kernels")


def trained_into_store(task: PackTask, progress: Progress | None) -> str | None:
    """Train a pack where the store is at hand and put its results there; return the reason if that failed."""
    store = Store(Path(task.store))
    try:
        base = store.get("bases", task.base_key) if store.root.is_dir() else None
        if base is None:
            raise LoraExpError(
                f"store.folder={task.store}: has no base on {platform.node()}; all nodes must see the same store"
            )
        for key, files in _made(task, base, stored_checkpoints(store, task.keys, task.begin), progress):
            if task.stop is None:
                store.put("results", key, files, [("bases", task.base_key)])
            else:
                keep_rung(store, key, files)
    except BaseException as error:
        return reason(error)
    return None


def trained_apart(
    task: PackTask, base: Files, checkpoints: list[bytes], prepared: list[Any]
) -> tuple[str | None, dict[str, Files]]:
    """Train a pack where the store is not at hand, as a task of Ray; return the reason if that failed, and its results.

    `checkpoints` are those of the step at which its jobs begin, if any. `prepared` holds a reference to the prepared
    data set, which is fetched when this node has none.
    """
    found: dict[str, Files] = {}
    try:
        data = Path(task.data)
        if not data.exists():
            import ray

            data.parent.mkdir(parents=True, exist_ok=True)
            write_whole(data, ray.get(prepared[0]))
        found.update(_made(task, base, checkpoints, None))
    except BaseException as error:
        return reason(error), found
    return None, found


def serve(connection: Connection) -> None:
    """Train the packs that arrive, and report steps and the end of each, until the other end closes."""

    def send(message: dict[str, object]) -> None:
        connection.send_bytes(json.dumps(message).encode())

    while True:
        try:
            task = PackTask(**json.loads(connection.recv_bytes()))
        except (EOFError, ConnectionError):
            return
        send({"why": trained_into_store(task, lambda steps: send({"steps": steps}))})


def _made(
    task: PackTask, base: Files, checkpoints: Sequence[bytes], progress: Progress | None
) -> Iterator[tuple[str, Files]]:
    """Train the pack on one thread; yield the key and the files of each result, or of each job at a rung.

    Raises LoraExpError if this machine would compute other bits than the launching one.
    """
    specs, device = [from_dict(values) for values in task.specs], torch.device(task.device)
    executor = LocalExecutor(1, 0, device.type)
    laboratory = Laboratory(Store(Path(task.store)), lambda _: Path(task.data), device, 1, executor)
    _check_same(task.circumstances, laboratory.circumstances(specs[0]))
    work = ResultWork(laboratory, specs, read_base(specs[0], laboratory.data(specs[0].data), base, device))
    with numerics.on_threads(1):
        begin = list(map(Checkpoint.decode, checkpoints))
        if task.stop is None:
            yield from work.results(specs, progress, begin)
        else:
            yield from rung_files(work.trainer, specs, task.keys, task.stop, begin, progress)


def _check_same(expected: list[str], found: list[str]) -> None:
    where = platform.node()
    for name, there, here in zip(CIRCUMSTANCES, expected, found, strict=True):
        if there != here:
            remedy = "; use device.portable=true" if name == "kernels" else ""
            both = f"{here[:40]}, on the launching machine {there[:40]}"
            raise LoraExpError(f"{where} would compute other bits: {name} is {both}{remedy}")
    # MKL falls back without notice to another code path where the processor lacks the requested one.
    if "AVX512" in numerics.requested() and numerics.widest_code_path() != "AVX512":
        raise LoraExpError(f"{where} would compute other bits: it has no AVX-512; use device.portable=true")


if __name__ == "__main__":
    end_with(parent=int(sys.argv[2]))
    serve(Connection(int(sys.argv[1])))
