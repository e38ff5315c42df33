"""python -m pytest tests/test_packing.py"""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from lora_exp.adapters.plan import adapter_plan
from lora_exp.config.images import MNIST
from lora_exp.config.models import ModelSpec
from lora_exp.config.spec import AdapterSpec
from lora_exp.model.base import network
from lora_exp.training.packing import FULL_PACK, TRAINING_EFFICIENCY, JobSize, job_size, plan_packs

GIB = 2**30


def jobs_of(count: int, seed: int = 0, **fixed: int) -> list[JobSize]:
    draw = random.Random(seed)
    jobs = []
    for _ in range(count):
        steps = fixed.get("steps", draw.randint(1, 600))
        rank = 8 * draw.randint(1, 8)
        jobs.append(
            JobSize(
                fixed.get("batch_size", 10),
                bool(fixed.get("owns_weights")),
                (("low_rank", rank),) * 3,
                steps,
                steps * 1e8,
                fixed.get("memory", 1_000_000),
            )
        )
    return jobs


@pytest.mark.parametrize("count", [0, 1, 2, 7, 40, 51, 500])
@pytest.mark.parametrize("workers", [1, 2, 5, 64])
def test_every_job_is_in_exactly_one_pack(count: int, workers: int) -> None:
    packs = plan_packs(jobs_of(count), workers, GIB)
    assert sorted(index for pack in packs for index in pack) == list(range(count))
    assert all(pack for pack in packs)


def test_equal_shapes_are_neighbours_and_longer_jobs_come_first() -> None:
    jobs = jobs_of(200)
    for pack in plan_packs(jobs, 2, GIB):
        keys = [(jobs[index].shape, -jobs[index].steps) for index in pack]
        assert keys == sorted(keys)


def test_jobs_of_different_batch_size_never_share_a_pack() -> None:
    jobs = jobs_of(20, batch_size=10) + jobs_of(20, batch_size=32)
    for pack in plan_packs(jobs, 2, GIB):
        assert len({jobs[index].batch_size for index in pack}) == 1


def test_jobs_with_weights_of_their_own_keep_to_themselves() -> None:
    jobs = jobs_of(20) + jobs_of(20, owns_weights=1)
    for pack in plan_packs(jobs, 2, GIB):
        assert len({jobs[index].owns_weights for index in pack}) == 1


def test_jobs_of_similar_length_train_together() -> None:
    jobs = jobs_of(200)
    lengths = [[jobs[index].steps for index in pack] for pack in plan_packs(jobs, 2, GIB)]
    lengths.sort(key=max, reverse=True)
    assert all(min(longer) >= max(shorter) for longer, shorter in pairwise(lengths))


def test_few_jobs_are_not_spread_over_more_workers_than_they_are_worth() -> None:
    assert sorted(map(len, plan_packs(jobs_of(8, steps=100), 64, GIB))) == [4, 4]


@pytest.mark.parametrize("batch_size", [10, 100])
def test_cost_and_memory_of_a_job_are_those_counted_by_hand(batch_size: int) -> None:
    form = network(ModelSpec((48, 32)), MNIST)  # 784-48-32-10; rank 3 is padded to 8
    sides, beyond_first = (784 + 48) + (48 + 32) + (32 + 10), 48 * 32 + 32 * 10
    plan = adapter_plan(AdapterSpec(rank=3), form.layers, seed=0, target=(0,))
    untrained, trained = (job_size(plan, form, batch_size, steps, test_images=1000) for steps in (0, 100))
    assert untrained.cost == 2 * 1000 * (beyond_first + 8 * sides)
    # Forward and backward through the frozen weights; through the factors, and once more for their own gradients.
    operations = 2 * batch_size * (2 * beyond_first + 3 * 8 * sides)
    assert trained.cost - untrained.cost == pytest.approx(100 * operations / TRAINING_EFFICIENCY)
    # Factors, gradients and two moments; what 1,000 images need; activations and their gradients of a batch, or three
    # times those of the largest layer of the 16 images of a small chunk, which are more for 10 images.
    assert 2 * 10 * sides < 3 * 16 * (784 + 48) < 2 * 100 * sides
    passing = max(2 * batch_size * sides, 3 * 16 * (784 + 48))
    assert trained.memory == untrained.memory == 4 * (4 * 8 * sides + passing + 40 * 1000)
    assert trained.rows == batch_size


def test_the_cost_of_a_convolution_counts_every_position() -> None:
    form = network(ModelSpec((20,), channels=(4, 6)), MNIST)  # 14 x 14 positions, then 7 x 7, then a row
    sides = [(196, 4, 9), (49, 6, 36), (1, 20, 294), (1, 10, 20)]
    plan = adapter_plan(AdapterSpec(rank=3), form.layers, seed=0, target=(0,))
    size = job_size(plan, form, 10, steps=0, test_images=1000)
    assert size.cost == 2 * 1000 * sum(places * (outs * ins + 8 * (outs + ins)) for places, outs, ins in sides)


def test_every_worker_gets_about_the_same_work() -> None:
    jobs = jobs_of(50, steps=100)
    packs = plan_packs(jobs, 2, GIB)
    assert sorted(map(len, packs)) == [25, 25]
    mixed = jobs_of(50)
    costs = [sum(mixed[index].cost for index in pack) for pack in plan_packs(mixed, 2, GIB)]
    assert max(costs) - min(costs) <= 2 * max(job.cost for job in mixed)


def test_packs_hold_no_more_than_the_memory_given() -> None:
    jobs = jobs_of(100, memory=10_000_000)
    packs = plan_packs(jobs, 2, 100_000_000)
    assert all(sum(jobs[index].memory for index in pack) <= 50_000_000 for pack in packs)
    assert len(packs) >= 20


def test_a_job_that_exceeds_the_memory_trains_alone() -> None:
    assert sorted(plan_packs(jobs_of(3, memory=GIB), 2, 1000)) == [[0], [1], [2]]


def test_large_sweeps_are_cut_into_full_packs() -> None:
    packs = plan_packs(jobs_of(1000, steps=100), 2, 100 * GIB)
    assert all(len(pack) <= FULL_PACK + 1 for pack in packs)
    assert len(packs) == 40


@pytest.mark.parametrize(
    ("model", "full"),
    [
        (ModelSpec((1000, 2000)), 25),  # wide, but few rows a job
        (ModelSpec(channels=(8, 16)), 25),  # many rows, but narrow
        (ModelSpec(channels=(32, 64), hidden=(128,)), 8),
        (ModelSpec(kind="vit"), 8),
    ],
)
def test_jobs_that_fill_a_product_alone_share_it_with_fewer(model: ModelSpec, full: int) -> None:
    form = network(model, MNIST)
    plan = adapter_plan(AdapterSpec(), form.layers, seed=0, target=(0,))
    assert job_size(plan, form, 10, steps=100, test_images=1000).full_pack == full
