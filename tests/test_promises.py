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

CPU, SHAPES = torch.device("cpu"), [[32, 784], [10, 32]]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    store.prepare()
    return store


Calls = list[object]


@pytest.fixture
def tried() -> Calls:
    """The shapes that were tried; the answer is always the weaker promise."""
    return []


def asked(store: Store, tried: Calls, shapes: list[list[int]] = SHAPES, answer: str = numerics.SAME_PACK) -> str:
    return promise(store, shapes, CPU, lambda: tried.append(shapes) or answer)


def test_another_process_does_not_try_again(store: Store, tried: Calls) -> None:
    assert [asked(store, tried) for _ in range(3)] == [numerics.SAME_PACK] * 3
    assert tried == [SHAPES]
    assert [entry.kind for entry in entries(store)] == ["promises"]


def test_another_processor_other_shapes_settings_or_libraries_try_again(
    store: Store, tried: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked(store, tried)
    own = processor_features()
    assert any(feature.startswith("flags=") or feature.startswith("Features=") for feature in own)
    asked(store, tried, SHAPES[1:])
    for name, value in (("MKL_CBWR", "SSE4_2"), ("OMP_NUM_THREADS", "7"), ("MKL_NUM_THREADS", "7")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            asked(store, tried)
    for other in ([*own[:-1], f"{own[-1]} new"], ["model name=another", *own[1:]]):
        with monkeypatch.context() as patch:
            patch.setattr(promises, "processor_features", lambda other=other: other)
            asked(store, tried)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "0.0")
        asked(store, tried)
    assert len(tried) == 8
    asked(store, tried)
    assert len(tried) == 8


def test_what_can_not_be_remembered_is_tried_each_time(
    store: Store, tried: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = Store(tmp_path / "absent")
    for _ in range(2):
        asked(absent, tried)
    assert len(tried) == 2 and not absent.root.exists()
    with monkeypatch.context() as patch:
        patch.setattr(promises, "processor_features", lambda: [])
        asked(store, tried)
    assert len(tried) == 3 and entries(store) == []
    asked(store, tried)
    [entry] = entries(store)
    (entry.folder / PROMISE).write_text("anything")  # set aside, and made anew
    assert asked(store, tried) == numerics.SAME_PACK
    assert len(tried) == 5
