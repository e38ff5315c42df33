"""python -m pytest tests/test_laboratory.py

Same bits alone or in any pack, from specs to results in the store.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from places import data_in

from lora_exp.config.models import ModelSpec
from lora_exp.config.spec import AdapterSpec, BaseSpec, DataSpec, FinetuneSpec, RunSpec
from lora_exp.executors.local import LocalExecutor
from lora_exp.model.data import ImageData
from lora_exp.storage import store as store_module
from lora_exp.storage.result import ADAPTER, PREDICTIONS, RESULT, Outcome, from_json
from lora_exp.storage.store import Store
from lora_exp.storage.sweep_file import Failure
from lora_exp.training import laboratory as laboratory_module
from lora_exp.training import packing
from lora_exp.training.checkpoint import Checkpoint
from lora_exp.training.executor import Files
from lora_exp.training.laboratory import Laboratory
from lora_exp.training.pack import PackTrainer

MODEL, DATA = ModelSpec((48, 32)), DataSpec("mnist", validation=200, limit=3000)


def grid() -> list[RunSpec]:
    """48 jobs: ranks 1 to 64, several alphas, digits, learning rates, seeds, layers, lengths, replay."""
    ranks = (1, 2, 3, 8, 9, 16, 33, 64)
    varied = itertools.cycle(itertools.product((1.0, 16.0, "rank"), (1e-3, 3e-4), (0.0, 0.3)))
    jobs = []
    for number, (rank, digit) in enumerate(itertools.product(ranks, (0, 2, 3, 5, 7, 9))):
        alpha, rate, replay = next(varied)
        layers = ("*",) if number % 5 else ("linear2", "linear3")
        adapter = AdapterSpec(rank=rank, alpha=alpha, init_std=0.2, layers=layers)
        finetune = FinetuneSpec((digit,), steps=12 + number % 3, learning_rate=rate, seed=number % 4, replay=replay)
        jobs.append(RunSpec(MODEL, DATA, BaseSpec(), adapter, finetune))
    return jobs


Numbers = dict[RunSpec, tuple[Outcome, bytes, bytes]]
Run = Callable[..., Numbers]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data_root: Path, mnist: ImageData) -> Run:
    """Run specs in a store that holds the base but no results."""
    store = Store(tmp_path_factory.mktemp("store"))
    store.prepare()

    def all_of(specs: list[RunSpec], threads: int = 2) -> Numbers:
        results = store.root / "results"
        results.rename(tmp_path_factory.mktemp("old") / "results")
        results.mkdir()
        laboratory = Laboratory(store, data_in(data_root), torch.device("cpu"), threads, LocalExecutor(threads, 2**30))
        return {spec: numbers(files) for spec, files in laboratory.run(specs)}

    return all_of


def numbers(files: Files | Failure) -> tuple[Outcome, bytes, bytes]:
    assert not isinstance(files, Failure), files
    return from_json(files[RESULT].decode()).outcome, files[ADAPTER], files[PREDICTIONS]


@pytest.fixture(scope="module")
def one_pack(run: Run) -> Numbers:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "FULL_PACK", 1000)
        return run(grid(), threads=1)


@pytest.mark.parametrize(("full_pack", "threads"), [(7, 1), (7, 2), (1, 2), (25, 2)])
def test_every_tensor_and_number_is_the_same_in_packs_of_any_size_and_on_any_threads(
    run: Run, one_pack: Numbers, monkeypatch: pytest.MonkeyPatch, full_pack: int, threads: int
) -> None:
    assert len(one_pack) == 48
    monkeypatch.setattr(packing, "FULL_PACK", full_pack)
    assert run(grid(), threads=threads) == one_pack


def test_a_job_that_runs_alone_has_the_same_numbers(run: Run, one_pack: Numbers) -> None:
    for spec in grid()[::9]:
        assert run([spec]) == {spec: one_pack[spec]}


def test_a_diverging_job_reports_its_step_and_changes_no_other_job_of_its_pack(run: Run, one_pack: Numbers) -> None:
    specs = grid()[:6]
    wild = dataclasses.replace(specs[2], finetune=dataclasses.replace(specs[2].finetune, learning_rate=1e30))
    found = run([*specs[:3], wild, *specs[3:]])
    assert found[wild][0].diverged_at is not None and found[wild][0].diverged_at > 1
    assert {spec: found[spec] for spec in specs} == {spec: one_pack[spec] for spec in specs}


def test_equal_jobs_and_what_is_in_the_store_are_not_computed_again(run: Run, data_root: Path, tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.prepare()
    laboratory = Laboratory(store, data_in(data_root), torch.device("cpu"), 1, LocalExecutor(1, 2**30))
    one, two = grid()[:2]
    made = list(laboratory.run([one, two, one]))  # equal jobs are computed and yielded once
    first = dict(made)
    assert len(made) == len(first) == 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(laboratory_module, "PackTrainer", None)  # would fail if anything were trained
        again = list(laboratory.run([one, two, one]))
    assert dict(again) == first and len(again) == 2


def test_a_pack_that_raises_fails_its_own_jobs_only(
    run: Run, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    store.prepare()
    specs = [*grid()[:4], dataclasses.replace(grid()[6], model=ModelSpec((32,)))]
    original = PackTrainer.train

    def broken(self: PackTrainer, pack: list[RunSpec], progress: object, checkpoints: Sequence[Checkpoint]) -> object:
        if pack[0].model == MODEL:
            raise RuntimeError("out of luck")
        return original(self, pack, None, checkpoints)

    monkeypatch.setattr(PackTrainer, "train", broken)
    found = dict(Laboratory(store, data_in(data_root), torch.device("cpu"), 1, LocalExecutor(1, 2**30)).run(specs))
    assert [isinstance(found[spec], Failure) for spec in specs] == [True] * 4 + [False]
    failure = found[specs[0]]
    assert isinstance(failure, Failure) and failure.error == "RuntimeError: out of luck"


def test_nothing_is_left_half_written_by_a_pack_that_was_killed_while_it_stored_a_result(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    store.prepare()
    laboratory = Laboratory(store, data_in(data_root), torch.device("cpu"), 1, LocalExecutor(1, 2**30))
    [spec] = grid()[:1]
    laboratory.base(spec)
    parent, written = os.getpid(), store_module._write_flushed

    def killed(path: Path, content: bytes) -> None:
        written(path, content)
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(store_module, "_write_flushed", killed)
    [failure] = dict(laboratory.run([spec])).values()
    assert isinstance(failure, Failure) and "SIGKILL" in failure.error
    assert list((tmp_path / "partial").iterdir()) == []
