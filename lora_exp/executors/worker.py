"""One pack, trained from what a task tells and from nothing else of the process that launched it."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from lora_exp import numerics
from lora_exp.config.spec import from_dict
from lora_exp.errors import LoraExpError, reason
from lora_exp.executors.remote import Files, PackTask, Progress
from lora_exp.storage.store import Store
from lora_exp.training.base import read_base
from lora_exp.training.laboratory import Laboratory
from lora_exp.training.pack import Bench
from lora_exp.training.workload import Workload

# What `Laboratory.circumstances` lists.
CIRCUMSTANCES = ("data", "code of lora_exp", "torch", "device", "MKL_CBWR")


def trained_into_store(task: PackTask, progress: Progress | None) -> str | None:
    """Train a pack where the store is at hand, and put its results there; why that failed, if it did."""
    store = Store(Path(task.store))

    def train() -> None:
        base = store.get("bases", task.base_key) if store.root.is_dir() else None
        if base is None:
            raise LoraExpError(
                f"store.folder={task.store}: {platform.node()} finds no base there, and must see the same"
            )
        for key, files in results(task, base, progress):
            store.put("results", key, files, [("bases", task.base_key)])

    return _why_not(train)


def trained_apart(task: Mapping[str, Any], base: Files, prepared: list[Any]) -> tuple[str | None, dict[str, Files]]:
    """Train a pack where the store is not at hand, as a task of Ray: why that failed, if it did, and its results.

    `prepared` refers to the files of the data root, which are fetched when this node sees none.
    """
    found: dict[str, Files] = {}
    own = PackTask(**task)

    def train() -> None:
        root = Path(own.data_root)
        if not (root / f"{own.specs[0]['data']['name']}.safetensors").exists():
            import ray

            _write(root, ray.get(prepared[0]))
        found.update(results(own, base, None))

    return _why_not(train), found


def results(task: PackTask, base: Files, progress: Progress | None) -> Iterator[tuple[str, Files]]:
    """Train the pack on one thread; each result's key and files.

    Raises LoraExpError where this machine would compute other bits than the launching process expects.
    """
    specs, device = [from_dict(values) for values in task.specs], torch.device(task.device)
    laboratory = Laboratory(Store(Path(task.store)), Path(task.data_root), device, threads=1, memory=0)
    _check_same(task.circumstances, laboratory.circumstances(specs[0]))
    data = laboratory.data(specs[0].data)
    bench = Bench(specs, read_base(specs[0], data, base, device), Workload(specs, data))
    facts = laboratory.facts(bench)
    with numerics.on_threads(1):
        for spec, files in laboratory.results(specs, bench, facts, progress):
            yield laboratory.result_key(spec), files


def _check_same(expected: list[str], found: list[str]) -> None:
    where = platform.node()
    for name, there, here in zip(CIRCUMSTANCES, expected, found, strict=True):
        if there != here:
            raise LoraExpError(
                f"{where} would compute other bits: {name} is {here[:20]}, where it was started {there[:20]}"
            )
    # MKL takes another code path, and says nothing, where the processor lacks the one asked for.
    if "AVX512" in numerics.requested() and numerics.widest_code_path() != "AVX512":
        raise LoraExpError(f"{where} would compute other bits: no AVX-512 there; start with MKL_CBWR=AVX2,STRICT")


def _write(root: Path, files: Mapping[str, bytes]) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        partial = root / f"{name}.{platform.node()}.part"
        partial.write_bytes(content)
        partial.replace(root / name)


def _why_not(train: Callable[[], None]) -> str | None:
    """A failure in one line: exceptions of other machines are not worth sending."""
    try:
        train()
    except BaseException as error:
        return reason(error)
    return None
