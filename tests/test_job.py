"""python -m pytest tests/test_job.py"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_results import small_result, write_result

from lora_exp.storage.provenance import code_version
from lora_exp.storage.result import ADAPTER, PREDICTIONS, RESULT, RunResult
from lora_exp.storage.sweep_file import FAILURE
from lora_exp.sweeps import job
from lora_exp.sweeps.job import finished_run, keep

CONTENT = {ADAPTER: b"an adapter", PREDICTIONS: b"predictions"}


def whole() -> RunResult:
    result = small_result(adapter_sha256=hashlib.sha256(CONTENT[ADAPTER]).hexdigest())
    return replace(result, provenance=result.provenance | {"code": code_version("results")})


def of_other_code(folder: Path) -> None:
    write_result(folder, replace(whole(), provenance={"code": "0123456789abcdef"}))


def of_other_spec(folder: Path) -> None:
    spec = whole().spec
    write_result(folder, replace(whole(), spec=replace(spec, finetune=replace(spec.finetune, seed=8))))


SPOILT: dict[str, Callable[[Path], object]] = {
    "other code": of_other_code,
    "another spec": of_other_spec,
    "another adapter": lambda folder: (folder / ADAPTER).write_bytes(b"another"),
    "no adapter": lambda folder: (folder / ADAPTER).unlink(),
    "no predictions": lambda folder: (folder / PREDICTIONS).unlink(),
    "half a result": lambda folder: (folder / RESULT).write_text(whole().to_json()[:1000]),
    "no result": lambda folder: (folder / RESULT).unlink(),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a finished run."""
    for name, content in CONTENT.items():
        (tmp_path / name).write_bytes(content)
    write_result(tmp_path, whole())
    return tmp_path


def test_a_finished_run_is_found_in_its_folder(folder: Path) -> None:
    assert finished_run(folder, whole().spec) == whole()


@pytest.mark.parametrize("spoilt", SPOILT)
def test_a_run_counts_as_finished_only_when_it_is_whole_and_that_of_todays_code(folder: Path, spoilt: str) -> None:
    SPOILT[spoilt](folder)
    assert finished_run(folder, whole().spec) is None


def test_the_result_is_written_last_and_an_earlier_failure_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / FAILURE).write_text("{}")
    written: list[str] = []

    class Delivery:
        def deliver(self, folder: Path, parent: str | None) -> None:
            written.append(f"delivered to {parent}")

    settings: Any = None  # what writes no figure reads no setting
    monkeypatch.setattr(job, "open_delivery", lambda _: Delivery())
    monkeypatch.setattr(job, "write_whole", lambda path, _: written.append(path.name))
    keep(whole(), {RESULT: b"of the store", **CONTENT}, tmp_path, settings, "the sweep", draw=False)
    assert written == [ADAPTER, PREDICTIONS, RESULT, "delivered to the sweep"]
    assert not (tmp_path / FAILURE).exists()
