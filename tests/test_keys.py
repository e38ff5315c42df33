"""python -m pytest tests/test_keys.py: an entry of the store is found by all that determines it and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from lora_exp.config.models import ModelSpec
from lora_exp.config.spec import AdapterSpec, BaseSpec, DataSpec, FinetuneSpec, RunSpec
from lora_exp.storage import keys

SPEC = RunSpec(ModelSpec((8,)), DataSpec("mnist"), BaseSpec(), AdapterSpec(), FinetuneSpec((3,)))
VERSIONS = {"bases": "one", "results": "two"}


def found(spec: RunSpec = SPEC, data_sha256: str = "ab", device: str = "cpu") -> tuple[str, str]:
    return keys.base_key(spec, data_sha256, device), keys.result_key(spec, data_sha256, device)


def changed_code(kind: str) -> Callable[[pytest.MonkeyPatch], Any]:
    return lambda patch: patch.setattr(keys, "code_version", (VERSIONS | {kind: "new"}).__getitem__)


@pytest.fixture(autouse=True)
def code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "code_version", VERSIONS.__getitem__)


def test_other_images_and_another_device_are_other_bases_and_results() -> None:
    for other in (found(data_sha256="cd"), found(device="cuda"), found(replace(SPEC, base=BaseSpec(seed=1)))):
        assert [own == new for own, new in zip(found(), other, strict=True)] == [False, False]


def test_jobs_that_differ_in_adapter_or_training_share_a_base_and_no_result() -> None:
    for other in (replace(SPEC, adapter=AdapterSpec(rank=2)), replace(SPEC, finetune=FinetuneSpec((3,), seed=1))):
        assert [own == new for own, new in zip(found(), found(other), strict=True)] == [True, False]


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (lambda patch: patch.setattr(keys, "torch_version", lambda: "9.0"), [False, False]),
        (lambda patch: patch.setenv("MKL_CBWR", "another,STRICT"), [False, False]),
        (changed_code("bases"), [False, True]),
        (changed_code("results"), [True, False]),
    ],
    ids=["torch", "kernels", "code of bases", "code of results"],
)
def test_another_torch_or_kernel_is_another_entry_and_changed_code_is_where_it_computes(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[pytest.MonkeyPatch], Any], same: list[bool]
) -> None:
    before = found()
    change(monkeypatch)
    assert [own == new for own, new in zip(before, found(), strict=True)] == same
