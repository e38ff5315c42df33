"""python -m pytest tests/test_choice.py

The settings choose device, executor and laboratory; nothing is started yet.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from conftest import CPU

from lora_exp.config.settings import (
    DeviceSettings,
    ExecutorSettings,
    HalvingSettings,
    Settings,
    StoreSettings,
    SweepSettings,
    settings_from,
)
from lora_exp.config.spec import DataSpec
from lora_exp.errors import LoraExpError
from lora_exp.executors.choice import executor, laboratory, torch_device
from lora_exp.executors.local import LocalExecutor
from lora_exp.executors.remote import PACK_MEMORY, WorkerPool

GIB = 2**30


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """On a CPU with two threads and 8 GiB."""
    return replace(
        settings_from({"data": {"root": str(tmp_path / "data")}, "base": {}}),
        device=DeviceSettings("cpu", threads=2),
        store=StoreSettings(str(tmp_path / "store")),
        sweep=SweepSettings(memory=8),
    )


def test_the_default_executor_trains_on_this_machine(settings: Settings, tmp_path: Path) -> None:
    found = laboratory(settings)
    assert found.executor == LocalExecutor(2, 8 * GIB, "cpu")
    assert found.threads == 2 and found.halving is None and found.store.root.is_dir()
    assert found.place(DataSpec("digits")) == tmp_path / "data" / "digits.safetensors"


def test_halving_is_on_when_it_has_a_factor(settings: Settings) -> None:
    halving = laboratory(replace(settings, halving=HalvingSettings(3.0, 20))).halving
    assert halving is not None and (halving.eta, halving.first, halving.objective) == (3.0, 20, "both_errors")


@pytest.mark.parametrize(
    ("chosen", "workers", "memory"),
    [
        (ExecutorSettings("processes"), 2, 8 * GIB),
        (ExecutorSettings("processes", workers=4), 4, 8 * GIB),
        (ExecutorSettings("slurm"), 8, 8 * PACK_MEMORY // 2),
        (ExecutorSettings("slurm", cluster="local"), 2, 2 * PACK_MEMORY // 2),
        (ExecutorSettings("slurm", workers=3, memory=2), 3, 3 * GIB),
    ],
)
def test_a_worker_pool_has_the_workers_and_the_memory_that_the_settings_give(
    settings: Settings, chosen: ExecutorSettings, workers: int, memory: int
) -> None:
    found = executor(replace(settings, executor=chosen), CPU)
    assert isinstance(found, WorkerPool)
    assert (found.workers, found.memory, found.shares_memory) == (workers, memory, False)


def test_a_device_that_the_machine_lacks_is_refused() -> None:
    with pytest.raises(LoraExpError, match="device=tpu: this machine has none; allowed here: auto, "):
        torch_device("tpu")
    assert torch_device("cpu") == CPU
