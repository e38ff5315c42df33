"""From settings to objects: the device, the executor and the laboratory that a config chooses."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import psutil
import torch

from lora_exp.config.settings import Settings
from lora_exp.data.prepared import prepare
from lora_exp.errors import LoraExpError
from lora_exp.executors.local import LocalExecutor
from lora_exp.storage.store import Store
from lora_exp.training.executor import Executor
from lora_exp.training.laboratory import Laboratory


def laboratory(settings: Settings) -> Laboratory:
    """Open the store and the device, and choose the executor, of which nothing is started yet.

    Raises LoraExpError for a device that is absent or a store folder that can't be written to.
    """
    device = torch_device(settings.device.name)
    store = Store(Path(settings.store.folder).absolute())
    store.prepare()
    how = settings.halving
    return Laboratory(
        store,
        functools.cache(functools.partial(prepare, folder=settings.data)),
        device,
        _threads(settings, device),
        executor(settings, device),
        None if how.eta is None else how,
        None if settings.base.weights is None else Path(settings.base.weights).absolute(),
    )


def executor(settings: Settings, device: torch.device) -> Executor:
    """Choose where packs train; nothing is started yet."""
    chosen, threads = settings.executor, _threads(settings, device)
    if chosen.kind == "processes":
        from lora_exp.executors.processes import ProcessPool

        return ProcessPool(_devices(device, chosen.workers, threads), _memory(settings, device))
    if chosen.kind == "ray":
        from lora_exp.executors.ray import RayPool

        return RayPool(chosen, device.type)
    if chosen.kind == "slurm":
        from lora_exp.executors.slurm import SlurmPool

        return SlurmPool(chosen, device.type, threads, Path(settings.store.folder).absolute().parent / "slurm")
    return LocalExecutor(threads, _memory(settings, device), device.type)


def torch_device(name: str) -> torch.device:
    """Return the device of that name; `auto` is CUDA if present, else MPS, else the CPU.

    Raises LoraExpError when the machine has no such device.
    """
    present = ["cpu"]
    if torch.backends.mps.is_available():
        present.insert(0, "mps")
    if torch.cuda.is_available():
        present.insert(0, "cuda")
    if name == "auto":
        return torch.device(present[0])
    if name not in present:
        raise LoraExpError(f"device={name}: this machine has none; allowed here: auto, {', '.join(present)}")
    return torch.device(name)


def _threads(settings: Settings, device: torch.device) -> int:
    """Packs that this machine can train at a time: one on an accelerator, which it keeps busy, or one per CPU core."""
    return (settings.device.threads or os.cpu_count() or 1) if device.type == "cpu" else 1


def _memory(settings: Settings, device: torch.device) -> int:
    """Bytes that packs may use together on this machine."""
    if settings.sweep.memory is not None:
        return int(settings.sweep.memory * 2**30)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return int(free) // 2


def _devices(device: torch.device, workers: int | None, threads: int) -> list[str]:
    """The device of each worker process: CUDA devices in turn, so that each has its own if there are enough."""
    if device.type != "cuda":
        return [device.type] * (workers or threads)
    count = torch.cuda.device_count()
    return [f"cuda:{number % count}" for number in range(workers or count)]
