"""python -m pytest tests/test_pack.py"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time

import pytest
import torch
from conftest import SMALL
from safetensors.torch import load

from lora_exp.adapters.initialisation import initial_factors
from lora_exp.adapters.pack import AdapterPack
from lora_exp.config.spec import AdapterSpec, BaseSpec, DataSpec, FinetuneSpec, RunSpec
from lora_exp.measures.logits import AFTER, BEFORE
from lora_exp.model.base import BaseModel
from lora_exp.model.data import ImageData
from lora_exp.storage.result import ADAPTER, PREDICTIONS
from lora_exp.training.base import TrainedBase
from lora_exp.training.evaluation import class_errors, predict_base
from lora_exp.training.pack import PackTrainer, frozen_cut, plan_jobs

DATA = DataSpec("mnist", validation=500, limit=6000)  # as the fixture
PACK = [
    RunSpec(SMALL, DATA, BaseSpec(), AdapterSpec(rank=4), FinetuneSpec(target=(digit,), steps=40)) for digit in range(4)
]


def trainer_of(base: TrainedBase, data: ImageData, specs: list[RunSpec]) -> PackTrainer:
    jobs = plan_jobs(specs, data)
    return PackTrainer(base, data, jobs, frozen_cut(base.model, data, jobs, None))


@pytest.fixture
def trainer(small_base: BaseModel, mnist: ImageData) -> PackTrainer:
    """A trainer of PACK on a copy of the small base."""
    model = small_base.with_layers({})
    assert mnist.validation is not None
    base = TrainedBase(model, predict_base(model, mnist.test), predict_base(model, mnist.validation), seconds=1.5)
    return trainer_of(base, mnist, PACK)


def test_a_base_that_changed_is_found_by_its_hash_and_by_its_predictions(trainer: PackTrainer) -> None:
    for result, _ in trainer.train(PACK[:2], None):
        assert result.outcome.base_unchanged and result.outcome.adapter_off_equals_base
    trainer.base.model.layers[1].weight.neg_()
    for result, _ in trainer.train(PACK[:2], None):
        assert not result.outcome.base_unchanged and not result.outcome.adapter_off_equals_base
        assert result.outcome.base_sha256_before != result.outcome.base_sha256_after


def test_the_times_of_all_jobs_add_up_to_that_of_their_pack(trainer: PackTrainer) -> None:
    started = time.perf_counter()
    results = [result for result, _ in trainer.train(PACK, None)]
    taken = time.perf_counter() - started
    assert 0.1 * taken < sum(run.times["fine_tuning"] + run.times["evaluation"] for run in results) <= taken
    assert all(run.times["base_training"] == 1.5 for run in results)


def test_the_numbers_of_a_run_are_those_counted_from_its_predictions(trainer: PackTrainer, mnist: ImageData) -> None:
    two_digits = dataclasses.replace(PACK[0], finetune=dataclasses.replace(PACK[0].finetune, target=(2, 7)))
    pack, labels = [two_digits, *PACK[2:]], mnist.test.labels
    for result, files in trainer_of(trainer.base, mnist, pack).train(pack, None):
        out, target = result.outcome, result.spec.finetune.target
        found = load(files[PREDICTIONS])
        assert torch.equal(found[BEFORE].argmax(1), trainer.base.test.predicted)
        means = {}
        for when in (BEFORE, AFTER):
            wrong = found[when].argmax(1) != labels
            rates = [float(wrong[labels == digit].double().mean()) for digit in range(10)]
            rest = [rate for digit, rate in enumerate(rates) if digit not in target]
            means[when] = sum(rates[digit] for digit in target) / len(target), sum(rest) / len(rest)
        assert (out.target_error_before, out.other_error_before) == pytest.approx(means[BEFORE])
        assert (out.target_error, out.other_error) == pytest.approx(means[AFTER])
        assert out.forgetting == pytest.approx(means[AFTER][1] - means[BEFORE][1], abs=1e-12)
        assert out.after.accuracy == pytest.approx(float((found[AFTER].argmax(1) == labels).double().mean()))
        assert out.adapter_sha256 == hashlib.sha256(files[ADAPTER]).hexdigest()
        assert out.target_error < out.target_error_before and out.forgetting > 0  # it was trained on its own digits


@pytest.mark.parametrize(
    ("losses", "at"), [([0.5, 0.25, 0.125], 3), ([0.5, math.inf, math.nan], 2), ([math.nan] * 3, 1)]
)
def test_a_run_diverged_at_its_first_loss_that_is_not_finite_or_else_at_its_last_step(
    trainer: PackTrainer, losses: list[float], at: int
) -> None:
    plan = trainer.jobs[PACK[0]].plan
    factors = {name: value * math.nan for name, value in initial_factors(plan, trainer.base.model).items()}
    adapters = AdapterPack.of([plan], [factors], trainer.base.model)
    [(result, _)] = trainer.evaluate(PACK[:1], adapters, [torch.tensor(losses)], {})
    assert result.outcome.diverged_at == at


def test_rungs_are_judged_on_validation_images_and_results_on_both(trainer: PackTrainer, mnist: ImageData) -> None:
    validation, base = mnist.validation, trainer.base.validation
    assert validation is not None and base is not None
    [(at_step_40, checkpoint)] = trainer.train_to_step(PACK[:1], 40, None)
    [(result, _)] = trainer.train(PACK[:1], None)
    assert checkpoint.steps == 40
    assert sum(at_step_40.counts) == 500 and at_step_40 == result.outcome.validation_after
    assert result.outcome.validation_before == class_errors(base, validation.labels)
    assert sum(result.outcome.after.counts) == 10_000 and result.outcome.after != result.outcome.before
