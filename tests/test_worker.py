"""python -m pytest tests/test_worker.py: a worker trains what its task says, and only where the bits would be equal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from conftest import CPU
from places import data_in

from lora_exp import numerics
from lora_exp.config.models import ModelSpec
from lora_exp.config.spec import AdapterSpec, BaseSpec, DataSpec, FinetuneSpec, RunSpec
from lora_exp.executors.local import LocalExecutor
from lora_exp.executors.worker import CIRCUMSTANCES, trained_into_store
from lora_exp.model.data import ImageData
from lora_exp.storage.result import RESULT, from_json
from lora_exp.storage.store import Store
from lora_exp.training.executor import PackTask
from lora_exp.training.laboratory import Laboratory, ResultWork

MODEL, DATA = ModelSpec((16,)), DataSpec("mnist", limit=1000)
SPECS = [RunSpec(MODEL, DATA, BaseSpec(), AdapterSpec(rank=2), FinetuneSpec((digit,), steps=3)) for digit in (3, 5)]


@pytest.fixture
def task(tmp_path: Path, data_root: Path, mnist: ImageData) -> PackTask:
    """Two jobs of the same shape, whose base is in the store."""
    store = Store(tmp_path)
    store.prepare()
    laboratory = Laboratory(store, data_in(data_root), CPU, 1, LocalExecutor(1, 2**30))
    return ResultWork(laboratory, SPECS, laboratory.base(SPECS[0])).task(SPECS)


def test_each_result_is_stored_under_the_key_of_its_own_job(task: PackTask, one_thread: None) -> None:
    assert trained_into_store(task, None) is None
    for spec, key in zip(SPECS, task.keys, strict=True):
        files = Store(Path(task.store)).get("results", key)
        assert files is not None and from_json(files[RESULT].decode()).spec == spec


@pytest.mark.parametrize("differs", range(len(CIRCUMSTANCES)), ids=CIRCUMSTANCES)
def test_a_worker_that_would_compute_other_bits_refuses_and_says_why(task: PackTask, differs: int) -> None:
    there = [f"not {own}" if at == differs else own for at, own in enumerate(task.circumstances)]
    why = trained_into_store(replace(task, circumstances=there), None)
    assert why is not None and f"would compute other bits: {CIRCUMSTANCES[differs]} is " in why
    assert task.keys and not any(Store(Path(task.store)).has("results", key) for key in task.keys)


def test_a_worker_whose_processor_lacks_the_requested_kernels_or_the_store_refuses(
    task: PackTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = replace(task, store=str(tmp_path / "elsewhere"))
    assert "all nodes must see the same store" in (trained_into_store(elsewhere, None) or "")
    monkeypatch.setattr(numerics, "requested", lambda: "AVX512,STRICT")
    monkeypatch.setattr(numerics, "widest_code_path", lambda: "AVX2")
    monkeypatch.setattr(numerics, "kernels", lambda: task.circumstances[-1])
    assert "it has no AVX-512; use device.portable=true" in (trained_into_store(task, None) or "")
