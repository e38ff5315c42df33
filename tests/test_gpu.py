"""python -m pytest -m gpu tests/test_gpu.py

What a CUDA device promises: the same bits for the same pack, and the numbers of the CPU within rounding.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from places import data_in

from lora_exp.config.models import ModelSpec
from lora_exp.config.spec import AdapterSpec, BaseSpec, DataSpec, FinetuneSpec, RunSpec
from lora_exp.executors.local import LocalExecutor
from lora_exp.model.data import ImageData
from lora_exp.numerics import SAME_PACK
from lora_exp.storage.result import ADAPTER, RESULT, RunResult, from_json
from lora_exp.storage.store import Store
from lora_exp.training.laboratory import Laboratory

pytestmark = pytest.mark.gpu
DATA = DataSpec("mnist", limit=3000)
SPECS = [
    RunSpec(ModelSpec((64,)), DATA, BaseSpec(), AdapterSpec(rank=rank, init_std=0.2), FinetuneSpec((digit,), steps=20))
    for rank in (1, 8, 33)
    for digit in (2, 9)
]


def run(folder: Path, data_root: Path, device: str) -> dict[RunSpec, tuple[RunResult, bytes]]:
    store = Store(folder)
    store.prepare()
    laboratory = Laboratory(store, data_in(data_root), torch.device(device), 1, LocalExecutor(1, 2**30, device))
    found = {}
    for spec, files in laboratory.run(SPECS):
        assert isinstance(files, dict), files
        found[spec] = from_json(files[RESULT].decode()), files[ADAPTER]
    return found


def test_the_same_pack_gives_the_same_bits_and_claims_no_more(
    tmp_path: Path, data_root: Path, mnist: ImageData
) -> None:
    first, second = (run(tmp_path / name, data_root, "cuda") for name in ("one", "two"))
    for spec in SPECS:
        assert first[spec][0].outcome == second[spec][0].outcome
        assert first[spec][1] == second[spec][1]
        assert first[spec][0].provenance["promise"] == SAME_PACK


def test_errors_are_those_of_the_cpu_within_rounding(tmp_path: Path, data_root: Path, mnist: ImageData) -> None:
    there, here = (run(tmp_path / device, data_root, device) for device in ("cuda", "cpu"))
    for spec in SPECS:
        a, b = there[spec][0].outcome, here[spec][0].outcome
        assert dataclasses.asdict(a)["layers"] == dataclasses.asdict(b)["layers"]
        assert abs(a.before.accuracy - b.before.accuracy) < 0.02
        assert abs(a.target_error - b.target_error) < 0.05
