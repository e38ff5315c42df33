"""python -m pytest tests/test_contest_comparison.py

Paired comparisons of arms, against scipy, statsmodels and simulation. How often contests are wrong in all:
benchmarks/contest_simulation.py.
"""

from __future__ import annotations

import dataclasses
import math
import random

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import DescrStatsW

from lora_exp.contest.comparison import (
    BASE,
    BETTER,
    LEAST_BASES,
    LOST,
    MOST_BASES,
    NOT_TUNED,
    NOTHING,
    OPEN,
    SURE,
    THRESHOLD,
    WITHIN,
    WORSE,
    Comparison,
    decide,
)
from lora_exp.contest.luck import luck
from lora_exp.report.statistics import CHANCE, power

MARGIN = 0.3


def differences(mean: float, spread: float, bases: int = 10, seed: int = 0) -> tuple[float, ...]:
    """Differences with exactly this mean and deviation."""
    values = np.random.default_rng(seed).standard_normal(bases)
    values = mean + spread * (values - values.mean()) / values.std(ddof=1)
    return tuple(values.tolist())


def alone(values: tuple[float, ...], margin: float = MARGIN, **more: float) -> Comparison:
    """The one comparison of a contest, decided."""
    [found] = decide([dataclasses.replace(Comparison("dora", "lora", values), **more)], margin)
    return found


def contest(seed: int, arms: int = 4, bases: int = 8) -> list[Comparison]:
    """Comparisons of arms with true differences of 0, 0.4, 0.8, ... points."""
    drawn = np.random.default_rng(seed)
    return [
        Comparison(f"arm {arm}", opponent, tuple(drawn.normal(-0.4 * arm, 0.4, bases).tolist()))
        for arm in range(arms)
        for opponent in (BASE, THRESHOLD)
    ]


@pytest.mark.parametrize("bases", [3, 5, 20])
@pytest.mark.parametrize("seed", range(3))
def test_the_p_value_of_a_difference_is_that_of_scipy(seed: int, bases: int) -> None:
    values = tuple(np.random.default_rng(seed).normal(0.2, 0.5, bases).tolist())
    assert alone(values).chance == pytest.approx(stats.ttest_1samp(values, 0.0).pvalue, rel=1e-9)


@pytest.mark.parametrize("mean", [-0.5, -0.1, 0.0, 0.25])
@pytest.mark.parametrize("bases", [3, 10])
def test_the_p_value_of_equivalence_is_that_of_statsmodels(mean: float, bases: int) -> None:
    values = differences(mean, 0.15, bases)
    expected = DescrStatsW(np.array(values)).ttost_mean(-MARGIN, MARGIN)[0]
    assert alone(values).equivalence == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_both_kinds_of_p_values_are_corrected_as_statsmodels_does(seed: int) -> None:
    made = contest(seed)
    single = [alone(one.differences) for one in made]
    found = decide(made, MARGIN)
    for kind in ("chance", "equivalence"):
        expected = multipletests([getattr(one, kind) for one in single], method="holm")[1]
        assert [getattr(one, kind) for one in found] == pytest.approx(expected, rel=1e-12), kind


def test_holms_correction_is_the_one_by_hand() -> None:
    made = contest(0)
    chances = {one: stats.ttest_1samp(one.differences, 0.0).pvalue for one in made}
    called, open_yet = set(), True
    for place, one in enumerate(sorted(made, key=lambda one: chances[one])):
        open_yet &= chances[one] < CHANCE / (len(made) - place)
        if open_yet:
            called.add((one.arm, one.opponent))
    assert 0 < len(called) < len(made)
    assert {(one.arm, one.opponent) for one in decide(made, MARGIN) if one.chance < CHANCE} == called


def test_the_order_of_comparisons_does_not_matter() -> None:
    made = contest(1)
    shuffled = random.Random(0).sample(made, len(made))
    assert shuffled != made
    found = decide(shuffled, MARGIN)
    assert sorted(found, key=str) == sorted(decide(made, MARGIN), key=str)
    assert [(one.arm, one.opponent) for one in found] == [(one.arm, one.opponent) for one in shuffled]


def test_a_comparison_without_bases_enough_changes_no_other() -> None:
    made = contest(2)
    few = Comparison("late", BASE, (-5.0, -5.1))
    assert decide([few, *made], MARGIN) == [few, *decide(made, MARGIN)]


@pytest.mark.parametrize(
    ("mean", "spread", "outcome"), [(-0.5, 0.1, BETTER), (0.5, 0.1, WORSE), (0.0, 0.1, WITHIN), (0.1, 0.5, OPEN)]
)
def test_each_outcome_follows_from_mean_and_spread(mean: float, spread: float, outcome: str) -> None:
    found = alone(differences(mean, spread))
    assert found.outcome == outcome
    assert found.interval.mean == pytest.approx(mean, abs=1e-12)
    assert (found.further == 0) == (outcome != OPEN)


def test_a_small_difference_can_be_shown_and_be_within_the_margin() -> None:
    found = alone(differences(-0.1, 0.05))
    assert found.outcome == BETTER and found.is_within


@pytest.mark.parametrize("mean", [-0.3, 0.3])
def test_a_mean_at_the_margin_is_never_within_it(mean: float) -> None:
    assert not alone(differences(mean, 0.001)).is_within


@pytest.mark.parametrize("mean", [-2.0, -0.1, 0.0, 0.1, 2.0])
def test_an_untuned_arm_is_never_worse_and_an_untuned_opponent_never_beaten(mean: float) -> None:
    values = differences(mean, 0.1)
    tuned = alone(values).outcome
    expected = {WORSE: NOT_TUNED, WITHIN: NOT_TUNED, BETTER: BETTER}
    assert alone(values, is_tuned=False).outcome == expected[tuned]
    expected = {WORSE: WORSE, WITHIN: NOT_TUNED, BETTER: NOT_TUNED}
    assert alone(values, opponent_tuned=False).outcome == expected[tuned]
    assert alone(values, is_tuned=False, opponent_tuned=False).outcome == NOT_TUNED
    assert not alone(values, is_tuned=False).is_within


@pytest.mark.parametrize(("mean", "outcome"), [(-2.0, BETTER), (0.0, OPEN), (2.0, LOST)])
def test_nothing_is_worse_than_an_opponent_that_lost_runs_or_within_its_margin(mean: float, outcome: str) -> None:
    found = alone(differences(mean, 0.1), opponent_lost=1)
    assert found.outcome == outcome and not found.is_within


@pytest.mark.parametrize(("mean", "outcome"), [(-2.0, LOST), (0.0, OPEN), (2.0, WORSE)])
def test_an_arm_that_lost_runs_is_neither_better_nor_within(mean: float, outcome: str) -> None:
    found = alone(differences(mean, 0.1), lost=1)
    assert found.outcome == outcome and not found.is_within


@pytest.mark.parametrize("count", range(LEAST_BASES))
def test_fewer_than_three_bases_say_nothing(count: int) -> None:
    [found] = decide([Comparison("dora", "lora", (-9.0, -9.1)[:count])], MARGIN)
    assert (found.outcome, found.is_tested, found.is_within, found.power) == (NOTHING, False, False, 0.0)
    assert math.isnan(found.interval.low) == (count < 2) and math.isnan(found.interval.mean) == (count == 0)


@pytest.mark.parametrize(("value", "outcome"), [(0.0, WITHIN), (-0.1, WITHIN), (MARGIN, OPEN), (-2.0, OPEN)])
def test_equal_differences_show_no_difference_but_may_be_within(value: float, outcome: str) -> None:
    found = alone((value,) * 4)
    assert (found.outcome, found.chance, found.further) == (outcome, 1.0, 0)
    assert found.power == 1.0


def test_differences_that_differ_by_rounding_alone_are_equal() -> None:
    rounded = tuple(value - value / 3 * 2 for value in (0.3, 0.3 + 1e-13, 0.1 * 3, 0.3 - 1e-13))
    assert len(set(rounded)) > 1
    assert (alone(rounded).chance, alone(rounded).power, alone(rounded).outcome) == (1.0, 1.0, WITHIN)


def upper(spread: float, bases: int) -> float:
    """The upper end of the one-sided 80 % interval of a deviation."""
    return spread * math.sqrt((bases - 1) / stats.chi2.ppf(1 - SURE, bases - 1))


@pytest.mark.parametrize("bases", [5, 10])
@pytest.mark.parametrize("comparisons", [1, 5])
def test_further_is_the_least_count_whose_power_is_enough(bases: int, comparisons: int) -> None:
    made = [Comparison(f"arm {arm}", BASE, differences(0.1, 0.6, bases, arm)) for arm in range(comparisons)]
    for found in decide(made, MARGIN):
        assert found.outcome == OPEN and found.further
        powers = {
            count: power(MARGIN, upper(0.6, bases), count, CHANCE / comparisons)
            for count in (bases, bases + found.further - 1, bases + found.further)
        }
        assert found.power == pytest.approx(powers[bases], rel=1e-9)
        assert powers[bases + found.further - 1] < SURE <= powers[bases + found.further]


def test_no_number_of_bases_is_named_beyond_the_most() -> None:
    assert alone(differences(0.0, 20.0)).further is None
    named = alone(differences(0.0, 2.0)).further
    assert named is not None and 10 < named < MOST_BASES


@pytest.mark.parametrize(("bases", "spread", "level"), [(5, 0.2, 0.05), (10, 0.3, 0.05 / 8), (20, 0.5, 0.05 / 26)])
def test_power_is_the_share_of_contests_that_call_a_difference_of_the_margin(
    bases: int, spread: float, level: float
) -> None:
    drawn = np.random.default_rng(0).normal(MARGIN, spread, (20_000, bases))
    tests = stats.ttest_1samp(drawn, 0.0, axis=1)
    share = ((tests.pvalue < level) & (tests.statistic > 0)).mean()
    assert 0.2 < share < 0.9
    assert power(MARGIN, spread, bases, level) == pytest.approx(share, abs=0.015)  # four standard errors


def test_four_contests_in_five_state_no_more_power_than_they_have() -> None:
    drawn = np.random.default_rng(0).normal(0.0, 0.3, (400, 5))
    stated = np.array([alone(tuple(values)).power for values in drawn.tolist()])
    assert 0.74 < (stated <= power(MARGIN, 0.3, 5)).mean() < 0.86  # three standard errors


def test_equal_arms_are_called_different_in_at_most_one_contest_in_twenty() -> None:
    drawn = np.random.default_rng(0).normal(0.0, 0.3, (300, 4, 6))
    called = 0
    for values in drawn.tolist():
        found = decide([Comparison(f"arm {arm}", BASE, tuple(own)) for arm, own in enumerate(values)], MARGIN)
        called += any(one.outcome in (BETTER, WORSE) for one in found)
    assert 2 <= called <= 26  # 15 and three deviations on either side


def test_a_contest_of_nothing_is_nothing() -> None:
    assert decide([], MARGIN) == []


def test_one_arm_alone_is_compared_with_base_and_threshold() -> None:
    made = [Comparison("lora", BASE, differences(-0.5, 0.1)), Comparison("lora", THRESHOLD, differences(-0.05, 0.1))]
    found = decide(made, MARGIN)
    assert [one.outcome for one in found] == [BETTER, WITHIN]
    assert found[0].chance == pytest.approx(2 * stats.ttest_1samp(made[0].differences, 0.0).pvalue, rel=1e-9)


def test_what_tuning_owes_to_luck_adds_to_the_standard_error() -> None:
    values, chance = differences(-0.4, 0.3, 9), 0.15
    found, error = alone(values, luck=chance), math.hypot(0.3 / 3, chance)
    assert found.chance == pytest.approx(2 * stats.t.sf(0.4 / error, 8), rel=1e-9)
    assert found.equivalence == pytest.approx(stats.t.sf((MARGIN - 0.4) / error, 8), rel=1e-9)
    limits = stats.t.interval(0.95, 8, -0.4, error)
    assert (found.interval.low, found.interval.high) == pytest.approx(limits, rel=1e-9)
    assert found.power == pytest.approx(power(MARGIN, math.hypot(upper(0.3, 9), 3 * chance), 9), rel=1e-9)
    assert (alone(values).outcome, found.outcome) == (BETTER, OPEN)
    assert found.further is None  # bases for judging do not make tuning surer
    assert alone(values, luck=0.0) == alone(values)


def test_without_a_measure_of_luck_nothing_is_shown() -> None:
    found = alone(differences(-5.0, 0.1), luck=math.inf)
    assert (found.chance, found.outcome, found.further, found.is_within) == (1.0, OPEN, None, False)
    assert found.power == pytest.approx(CHANCE / 2)


def tried(measures: NDArray[np.float64]) -> list[dict[int, float]]:
    """Points of an arm as `luck` takes them, from measures [points, bases]."""
    return [dict(enumerate(own)) for own in measures.tolist()]


def test_luck_is_how_far_the_best_point_lies_from_what_other_bases_would_have_led_to() -> None:
    drawn = np.random.default_rng(0)
    measures = np.array([0.5, 0.1, 0.0, 0.05, 0.9])[:, None] + drawn.normal(0.0, 0.3, (5, 4)) + drawn.normal(0, 3, 4)
    means = measures.mean(axis=1)
    table = measures[np.argsort(means)[:3]]
    fitted = table.mean(axis=0) + table.mean(axis=1, keepdims=True) - table.mean()
    noise = upper(math.sqrt(((table - fitted) ** 2).sum() / 6), 7)  # of 6 degrees of freedom
    picks = (means + drawn.normal(0.0, noise / 2, (200_000, 5))).argmin(axis=1)
    assert len(set(picks.tolist())) > 2
    expected = math.sqrt(((means[picks] - means.min()) ** 2).mean())
    assert luck(tried(measures)) == pytest.approx(expected, rel=0.02)


def test_a_clear_pick_owes_nothing_to_luck() -> None:
    drawn = np.random.default_rng(0).normal(0.0, 0.01, (3, 3))
    assert luck(tried(np.array([[1.0], [0.0], [1.0]]) + drawn)) == pytest.approx(0.0, abs=1e-9)
    assert luck(tried(np.array([[1.0, 2.0], [0.0, 1.0]]))) == 0.0  # the same difference on both bases
    assert luck([{0: 1.0, 1: 2.0}]) == 0.0


def test_luck_is_not_known_where_fewer_than_two_bases_have_every_point() -> None:
    assert luck([]) == luck([{0: 1.0}, {0: 2.0}]) == math.inf
    assert luck([{0: 1.0, 1: 1.0}, {1: 2.0, 2: 1.0}]) == math.inf
    assert luck([{0: 1.0, 1: 1.0, 5: 9.0}, {0: 2.0, 1: 1.5}]) < 1.0


@pytest.mark.parametrize("curvature", [1.0, 3.0])
def test_arms_with_one_curve_are_called_different_too_often_without_their_luck_and_not_with_it(
    curvature: float,
) -> None:
    drawn, rates = np.random.default_rng(0), np.linspace(-4, -2, 5)
    called = {True: 0, False: 0}
    for _ in range(400):
        curve = curvature * (rates - drawn.uniform(-3.5, -2.5)) ** 2
        selected = curve[:, None] + drawn.normal(0.0, 0.2, (2, 5, 3))
        picks = selected.mean(axis=2).argmin(axis=1)
        judged = curve[picks][:, None] + drawn.normal(0.0, 0.2, (2, 20))
        adds = math.hypot(*(luck(tried(own)) for own in selected))
        for counts in called:
            found = alone(tuple((judged[0] - judged[1]).tolist()), luck=adds if counts else 0.0)
            called[counts] += found.outcome in (BETTER, WORSE)
    assert called[True] <= 33 < called[False]  # 20 and three deviations of so many
