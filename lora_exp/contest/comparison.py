"""Paired comparisons of arms over bases: whether a difference is shown, or shown to be too small to matter.

The difference of a base is the mean over its targets and orders of images of the measure of the arm minus that of its
opponent: below zero the arm is better. n counts bases. A difference is shown by a paired t test. That it lies within
the margin is shown by two one-sided tests (TOST: Schuirmann 1987, Journal of Pharmacokinetics and Biopharmaceutics 15,
657-680). Holm's procedure corrects all tests of a contest of one kind together, so that the chance of any wrong
decision of that kind is at most 5 %. What tuning owes to luck counts as part of the standard error. Unequal tuning is
no difference between methods: an arm whose best rate may lie beyond those it tried can win, but it can't lose.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from lora_exp.measures.intervals import deviation, t_quantile
from lora_exp.report.statistics import CHANCE, Interval, holm, interval, power

BASE, THRESHOLD = "the base", "a moved threshold"
BETTER, WORSE, WITHIN, OPEN = "better", "worse", "within", "no difference shown"
NOT_TUNED, LOST, NOTHING = "not tuned", "runs lost", "no runs to compare"
SURE = 0.8  # the power from which on a contest is said to have seen a difference of the margin
MOST_BASES = 1000
LEAST_BASES = 3
ROUNDING = 1e-6  # points: a spread below this is of floating-point numbers, not of bases


@dataclass(frozen=True)
class Comparison:
    """An arm and its opponent: `differences` in percentage points, one for each of `bases` (their seeds).

    `is_tuned` and `opponent_tuned` say whether neither's best rate lies at an end of those tried, and `lost` and
    `opponent_lost` count the judging runs of both that did not end. `luck` is what tuning by luck adds to the
    difference, as a deviation in points. `chance` and `equivalence` are the corrected p values of a difference, and of
    one beyond the margin. `power` is the chance that a contest of so many bases shows a difference of the margin, as
    far as one is sure of it (four times in five it is no less), and `further` how many more bases would raise it to
    SURE: 0 where the comparison is decided, None where more than MOST_BASES in all.
    """

    arm: str
    opponent: str
    differences: tuple[float, ...]
    bases: tuple[int, ...] = ()
    is_tuned: bool = True
    opponent_tuned: bool = True
    lost: int = 0
    opponent_lost: int = 0
    luck: float = 0.0
    chance: float = 1.0
    equivalence: float = 1.0
    power: float = 0.0
    further: int | None = None

    @property
    def is_tested(self) -> bool:
        """Whether there are bases enough for a test."""
        return len(self.differences) >= LEAST_BASES

    @property
    def interval(self) -> Interval:
        """The mean difference in points, and its 95 % interval, not corrected; NaN without runs."""
        found = interval(self.differences)
        if self.luck == 0:
            return found
        half = t_quantile(len(self.differences)) * _error(self) if self.is_tested else math.nan
        return dataclasses.replace(found, low=found.mean - half, high=found.mean + half)

    @property
    def is_within(self) -> bool:
        """Whether the difference is shown to be smaller than the margin."""
        is_whole = self.is_tuned and self.opponent_tuned and not (self.lost or self.opponent_lost)
        return self.equivalence < CHANCE and is_whole

    @property
    def outcome(self) -> str:
        """BETTER or WORSE, whatever `is_within` says; else NOT_TUNED, LOST, WITHIN, OPEN or NOTHING.

        LOST where a difference would be called, had no run been lost: the bases that are left may be the easy ones.
        """
        if not self.is_tested:
            return NOTHING
        is_called, is_below = self.chance < CHANCE, math.fsum(self.differences) < 0
        if is_called and is_below and self.opponent_tuned and not self.lost:
            return BETTER
        if is_called and not is_below and self.is_tuned and not self.opponent_lost:
            return WORSE
        if not (self.is_tuned and self.opponent_tuned):
            return NOT_TUNED
        if is_called:
            return LOST
        return WITHIN if self.is_within else OPEN


def decide(comparisons: Sequence[Comparison], margin: float) -> list[Comparison]:
    """Test all comparisons of a contest together; `margin` is in percentage points."""
    import numpy as np

    tested = [one for one in comparisons if one.is_tested]
    if not tested:
        return list(comparisons)
    chances, beyond = (holm(np.array(own)) for own in zip(*(_chances(one, margin) for one in tested), strict=True))
    level = CHANCE / len(tested)  # the strictest that Holm's procedure asks for
    found = iter(zip(chances.tolist(), beyond.tolist(), strict=True))
    decided = []
    for one in comparisons:
        if one.is_tested:
            chance, equivalence = next(found)
            one = dataclasses.replace(one, chance=chance, equivalence=equivalence)
            further = _further(one, margin, level) if one.outcome == OPEN else 0
            one = dataclasses.replace(one, power=_power(one, margin, len(one.differences), level), further=further)
        decided.append(one)
    return decided


def _chances(one: Comparison, margin: float) -> tuple[float, float]:
    """The p values of a t test of the mean against zero, and of the larger of the two one-sided tests."""
    from scipy.special import stdtr

    count, error = len(one.differences), _error(one)
    mean = math.fsum(one.differences) / count
    if error == 0:  # there is nothing to compare the size of the mean with
        return 1.0, 0.0 if abs(mean) < margin else 1.0
    difference = 2 * stdtr(count - 1, -abs(mean) / error)
    return float(difference), float(stdtr(count - 1, (abs(mean) - margin) / error))


def _error(one: Comparison) -> float:
    """The standard error of the mean: of the bases, and of the luck of tuning, which is the same for all of them."""
    return math.hypot(_deviation(one.differences) / math.sqrt(len(one.differences)), one.luck)


def _power(one: Comparison, margin: float, count: int, level: float) -> float:
    """The chance that so many bases show a difference of the margin."""
    return power(margin, math.hypot(_upper_deviation(one.differences), math.sqrt(count) * one.luck), count, level)


def _further(one: Comparison, margin: float, level: float) -> int | None:
    """How many more bases give a difference of the margin a chance of SURE to be shown; None for too many."""
    low, high = len(one.differences), MOST_BASES
    if _power(one, margin, high, level) < SURE:
        return None
    while low < high:  # the least count whose power is enough, by bisection
        middle = (low + high) // 2
        low, high = (low, middle) if _power(one, margin, middle, level) >= SURE else (middle + 1, high)
    return low - len(one.differences)


def _upper_deviation(values: Sequence[float]) -> float:
    """The upper end of the one-sided 80 % confidence interval of the deviation, for power.

    With the deviation itself a contest that happens to see little spread says more power than it has, and asks for too
    few bases more often than not (Browne 1995, Statistics in Medicine 14, 1933-1940; benchmarks/contest_simulation.py).
    """
    from scipy.special import chdtri

    degrees = len(values) - 1
    return _deviation(values) * math.sqrt(degrees / float(chdtri(degrees, SURE)))


def _deviation(values: Sequence[float]) -> float:
    """The deviation of differences; exactly 0 where they differ by rounding alone."""
    found = deviation(values)
    return found if found > ROUNDING else 0.0
