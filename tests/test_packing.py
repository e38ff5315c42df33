"""python -m pytest tests/test_packing.py"""

from __future__ import annotations

import random

import pytest

from lora_exp.training.packing import FULL_PACK, JobSize, plan_packs

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
