"""Differences between runs that share their seeds, compared with margins that were stated beforehand.

Differences are taken within a seed, so that its effect cancels out; n counts seeds. Intervals are Student's t
intervals of the mean. Holm's step-down procedure corrects the intervals of several comparisons, so that the chance of
any wrong decision among them is at most 5 % (Holm 1979, Scandinavian Journal of Statistics 6, 65-70).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

PASS, FAIL, UNDECIDED = "pass", "fail", "undecided"
CHANCE = 0.05  # of a wrong decision; a single comparison has a 95 % interval
DECIMALS = {"%": 2, "points": 2, "nats": 3, "steps": 0}


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval; the limits are NaN for a single value."""

    mean: float
    low: float
    high: float
    confidence: float = 1 - CHANCE

    def cells(self, unit: str, signed: bool = True) -> tuple[str, str]:
        """Return `+0.17` and `+0.05 to +0.29`."""
        mean, low, high = (in_unit(value, unit, signed) for value in (self.mean, self.low, self.high))
        return mean, f"{low} to {high}"

    def text(self, unit: str) -> str:
        """Return `+0.17 points (+0.05 to +0.29)`."""
        mean, limits = self.cells(unit)
        return f"{mean} {unit} ({limits})"


@dataclass(frozen=True)
class Question:
    """Whether the mean of `differences` (one a seed) of `measure` is below `margin`, as the claim says."""

    what: str
    measure: str
    unit: str
    margin: float
    differences: tuple[float, ...]


@dataclass(frozen=True)
class Answer:
    """A question and the 95 % interval of its mean difference, and the interval that Holm's procedure asks for.

    A claim passes when all its parts do, which needs no correction (an intersection-union test: Berger 1982,
    Technometrics 24, 295-300). It fails when any part does, which does.
    """

    question: Question
    interval: Interval
    corrected: Interval

    @property
    def outcome(self) -> str:
        """PASS where the interval lies below the margin, FAIL where the corrected one lies above, else UNDECIDED."""
        if self.interval.high < self.question.margin:
            return PASS
        return FAIL if self.corrected.low > self.question.margin else UNDECIDED

    def text(self) -> str:
        """Write the difference with its interval, the margin and the outcome."""
        question = self.question
        margin = in_unit(question.margin, question.unit) if question.margin else "0"
        return f"{question.what} {self.interval.text(question.unit)}, claimed below {margin}: {self.outcome}"


def answers(questions: Sequence[Question]) -> tuple[Answer, ...]:
    """Answer each question, in order."""
    by_chance = sorted(questions, key=lambda question: _mean_test(question.differences, question.margin, 0.95)[0])
    found: dict[Question, Answer] = {}
    confidence, decides = 1 - CHANCE, True
    for place, question in enumerate(by_chance):
        if decides:
            confidence = 1 - CHANCE / (len(by_chance) - place)
        corrected = interval(question.differences, confidence)
        found[question] = Answer(question, interval(question.differences), corrected)
        # After one whose margin is inside, the others are undecided at the same confidence.
        decides &= not corrected.low <= question.margin <= corrected.high
    return tuple(found[question] for question in questions)


def interval(values: Sequence[float], confidence: float = 1 - CHANCE) -> Interval:
    """Compute the mean of independent values and its confidence interval; NaN without values."""
    return _mean_test(values, 0.0, confidence)[1]


def power(effect: float, deviation: float, seeds: int, chance: float = CHANCE) -> float:
    """The chance that a t test of `seeds` differences, at level `chance`, excludes a margin `effect` from their mean.

    `deviation` is the standard deviation of the differences. (At 5 % the test is whether a 95 % interval does.)
    """
    from scipy.special import stdtrit
    from scipy.stats import nct

    if deviation == 0:
        return 1.0
    limit = float(stdtrit(seeds - 1, 1 - chance / 2))
    return float(nct.sf(limit, seeds - 1, abs(effect) / deviation * math.sqrt(seeds)))


def holm(chances: NDArray[Any]) -> NDArray[Any]:
    """Correct p values for their number, in their shape (Holm's procedure; statsmodels takes seconds to import)."""
    import numpy as np

    single = chances.ravel()
    order = np.argsort(single)
    corrected = np.empty_like(single)
    corrected[order] = np.maximum.accumulate(single[order] * np.arange(len(single), 0, -1))
    return np.minimum(corrected, 1.0).reshape(chances.shape)


def in_unit(value: float, unit: str, signed: bool = True) -> str:
    """Write a number with the decimals of its unit, without a minus zero."""
    return f"{value:{'+' if signed else ''}z.{DECIMALS[unit]}f}"


def _mean_test(values: Sequence[float], margin: float, confidence: float) -> tuple[float, Interval]:
    """The p value of a t test of the mean against `margin`, and the interval of the mean; NaN without values."""
    if not values:
        return 1.0, Interval(math.nan, math.nan, math.nan, confidence)
    mean = math.fsum(values) / len(values)
    if len(values) < 2:  # has no spread, and scipy takes a second to import
        return 1.0, Interval(mean, math.nan, math.nan, confidence)
    from scipy.stats import ttest_1samp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # for equal values
        test = ttest_1samp(values, margin)
        limits = test.confidence_interval(confidence)
    chance = float(test.pvalue)
    return 1.0 if math.isnan(chance) else chance, Interval(mean, float(limits.low), float(limits.high), confidence)
