"""python -m pytest tests/test_promises.py

The promise about equal bits is tried once per kind of processor and store, and never taken from another processor.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lora_exp import numerics
from lora_exp.storage import promises
from lora_exp.storage.promises import PROMISE, processor_features, promise
from lora_exp.storage.pruning import entries
from lora_exp.storage.store import Store

CPU, SHAPES = torch.device("cpu"), ((32, 784), (10, 32))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    store.prepare()
    return store


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The shapes that were tried; the answer is always the weaker promise."""
    calls: list[object] = []
    monkeypatch.setattr(numerics, "promise", lambda shapes, _: calls.append(shapes) or numerics.SAME_PACK)
    return calls


def asked_anew(store: Store, shapes: tuple[tuple[int, int], ...] = SHAPES) -> str:
    """Ask as a new process does."""
    promise.cache_clear()
    return promise(store, shapes, CPU)


def test_another_process_does_not_try_again(store: Store, tried: list[object]) -> None:
    assert asked_anew(store) == asked_anew(store) == promise(store, SHAPES, CPU) == numerics.SAME_PACK
    assert tried == [SHAPES]
    assert [entry.kind for entry in entries(store)] == ["promises"]


def test_another_processor_other_shapes_settings_or_libraries_try_again(
    store: Store, tried: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_anew(store)
    own = processor_features()
    assert any(feature.startswith("flags=") or feature.startswith("Features=") for feature in own)
    asked_anew(store, SHAPES[1:])
    for name, value in (("MKL_CBWR", "SSE4_2"), ("OMP_NUM_THREADS", "7"), ("MKL_NUM_THREADS", "7")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            asked_anew(store)
    for other in ([*own[:-1], f"{own[-1]} new"], ["model name=another", *own[1:]]):
        with monkeypatch.context() as patch:
            patch.setattr(promises, "processor_features", lambda other=other: other)
            asked_anew(store)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "0.0")
        asked_anew(store)
    assert len(tried) == 8
    asked_anew(store)
    assert len(tried) == 8


def test_what_can_not_be_remembered_is_tried_each_time(
    store: Store, tried: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = Store(tmp_path / "absent")
    for _ in range(2):
        asked_anew(absent)
    assert len(tried) == 2 and not absent.root.exists()
    with monkeypatch.context() as patch:
        patch.setattr(promises, "processor_features", lambda: [])
        asked_anew(store)
    assert len(tried) == 3 and entries(store) == []
    asked_anew(store)
    [entry] = entries(store)
    (entry.folder / PROMISE).write_text("anything")  # set aside, and made anew
    assert asked_anew(store) == numerics.SAME_PACK
    assert len(tried) == 5
