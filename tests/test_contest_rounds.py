"""python -m pytest tests/test_contest_rounds.py

Which jobs a contest consists of, for made-up scores: every arm gets as many, whatever the scores are.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from made_contest import made_protocol

from lora_exp.contest.protocol import JUDGING, SELECTION, Protocol
from lora_exp.contest.rounds import best_point, rounds
from lora_exp.contest.scores import Entry, Score
from lora_exp.contest.space import Point

Truth = Callable[[Entry], float | None]
OPTIMA = {"lora": 1e-3, "dora": 1e-2, "shift": 5e-2}


def protocol_of(*names: str, widenings: int = 3) -> Protocol:
    made = made_protocol(names, bases=4, selection=2, ratios={}, notes={})
    return dataclasses.replace(made, widenings=widenings, selection=(0, 1), judging=(2, 3, 4, 5))


def played(protocol: Protocol, truth: Truth) -> list[list[Entry]]:
    """All rounds of a contest in which a job has this error on validation images; None for one that diverges."""
    scores: dict[Entry, Score] = {}
    found = []
    for batch in rounds(protocol, scores):
        found.append(batch)
        for entry in batch:
            if (error := truth(entry)) is not None:
                scores[entry] = Score(error, error, 0.1, 0.1, 0.0, 0.9, 1, 10, 1.0)
    return found


def valley(entry: Entry) -> float:
    return 0.01 + 0.01 * abs(math.log10(entry.point.rate / OPTIMA[entry.arm]))


def points_of(batches: list[list[Entry]], arm: str) -> list[Point]:
    return list(
        dict.fromkeys(
            entry.point for batch in batches for entry in batch if entry.arm == arm and entry.phase == SELECTION
        )
    )


def test_a_rate_at_the_end_is_followed_beyond_it_and_the_other_arms_get_as_many_points() -> None:
    batches = played(protocol_of("lora", "dora"), valley)
    first, second, judged = batches
    assert {entry.phase for entry in judged} == {JUDGING} and {entry.phase for entry in first + second} == {SELECTION}
    assert sorted({entry.point.rate for entry in second if entry.arm == "dora"}) == pytest.approx(
        [0.033, 0.11], rel=0.01
    )
    assert sorted({entry.point.rate for entry in second if entry.arm == "lora"}) == pytest.approx(
        [5.5e-4, 1.7e-3], rel=0.02
    )
    assert {entry.point.rate for entry in judged if entry.arm == "dora"} == {1e-2}


def test_no_range_is_widened_where_every_best_lies_inside() -> None:
    assert len(played(protocol_of("lora"), valley)) == 2


@pytest.mark.parametrize("widenings", [0, 1, 3])
def test_an_arm_that_only_gets_better_beyond_is_followed_as_often_as_stated(widenings: int) -> None:
    batches = played(protocol_of("lora", "dora", widenings=widenings), lambda entry: 1 / entry.point.rate)
    assert len(batches) == widenings + 2
    assert len(points_of(batches, "lora")) == len(points_of(batches, "dora")) == 5 + 2 * widenings


def test_every_arm_gets_as_many_jobs_points_and_seeds_for_any_scores() -> None:
    for seed in range(30):
        random = np.random.default_rng(seed)
        chances = iter(random.random((10_000, 2)).tolist())

        def truth(entry: Entry, chances: Iterator[list[float]] = chances) -> float | None:
            lost, error = next(chances)
            return None if lost < 0.2 else error

        batches = played(protocol_of("lora", "dora", "shift"), truth)
        every = [entry for batch in batches for entry in batch]
        assert len(set(every)) == len(every)
        for batch in batches:
            assert len(set(Counter(entry.arm for entry in batch).values())) == 1
        assert len({len(points_of(batches, arm)) for arm in ("lora", "dora", "shift")}) == 1
        assert {entry.base for entry in batches[-1]} == {2, 3, 4, 5}
        assert {entry.base for batch in batches[:-1] for entry in batch} == {0, 1}


def test_a_point_whose_runs_diverge_is_not_chosen_however_well_the_others_did() -> None:
    def truth(entry: Entry) -> float | None:
        if entry.point.rate < 3e-3:
            return 0.02
        return None if entry.base == 1 else 0.001

    batches = played(protocol_of("lora", widenings=0), truth)
    assert {entry.point.rate for entry in batches[-1]} == {1e-4}  # of equals the lowest rate


def test_choosing_never_looks_at_test_images() -> None:
    protocol = protocol_of("lora")
    points = [Point(1e-3), Point(1e-2)]
    scores = {
        Entry(SELECTION, "lora", point, target, base, base): Score(held, 1 - held, 0.1, 0.1, 0.0, 0.9, 1, 10, 1.0)
        for point, held in zip(points, (0.3, 0.2), strict=True)
        for target in (0, 1)
        for base in (0, 1)
    }
    assert best_point(protocol, "lora", points, scores) == Point(1e-2)


def test_halving_drops_the_worse_half_of_each_arms_points_after_two_bases() -> None:
    protocol = dataclasses.replace(protocol_of("lora", "dora"), halving=True, selection=(0, 1, 2), judging=(3, 4, 5))
    first, second, widened, judged = played(protocol, valley)
    assert {entry.base for entry in first} == {0, 1} and {entry.base for entry in second} == {2}
    kept = {entry.point.rate for entry in second if entry.arm == "lora"}
    assert kept == {3e-4, 1e-3, 3e-3} and len({entry.point.rate for entry in second if entry.arm == "dora"}) == 3
    assert {entry.base for entry in widened} == {0, 1, 2} and {entry.base for entry in judged} == {3, 4, 5}
    assert {entry.point.rate for entry in judged if entry.arm == "lora"} == {1e-3}


def test_a_point_that_halving_dropped_is_not_chosen_for_being_better_on_fewer_bases() -> None:
    protocol = dataclasses.replace(
        protocol_of("lora", widenings=0), halving=True, selection=(0, 1, 2), judging=(3, 4, 5)
    )
    # The last base is hard for all that run on it.
    batches = played(protocol, lambda entry: valley(entry) + (0.5 if entry.base == 2 else 0.0))
    assert {entry.point.rate for entry in batches[-1]} == {1e-3}
