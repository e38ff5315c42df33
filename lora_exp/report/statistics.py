"""Differences between runs that share their seeds, each held against a margin that was stated beforehand.

A difference is taken within a seed, so that what the seed does to both sides cancels out, and n counts seeds.
Intervals are Student's t intervals of the mean. Where several comparisons are made for one claim, they are as wide
as Holm's step-down procedure asks (Holm 1979, "A simple sequentially rejective multiple test procedure", Scandinavian
Journal of Statistics 6, 65-70), so that the chance of any wrong decision among them stays at 5 %.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

PASS, FAIL, UNDECIDED = "pass", "fail", "undecided"
CHANCE = 0.05  # of a wrong decision; intervals are of 95 % where one comparison is made
DECIMALS = {"%": 2, "points": 2, "nats": 3, "steps": 0}


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval; the limits are NaN for a single value."""

    mean: float
    low: float
    high: float
    confidence: float = 1 - CHANCE

    def text(self, unit: str) -> str:
        """`+0.17 points (+0.05 to +0.29)`."""
        mean, low, high = (written(value, unit) for value in (self.mean, self.low, self.high))
        return f"{mean} {unit} ({low} to {high})"


@dataclass(frozen=True)
class Question:
    """The claim says that the mean of `differences`, one a seed, is below `margin`; `measure` is what differs."""

    what: str
    measure: str
    unit: str
    margin: float
    differences: tuple[float, ...]


@dataclass(frozen=True)
class Answer:
    """A question and the interval of its mean difference, which decides it when the margin lies outside."""

    question: Question
    interval: Interval

    @property
    def outcome(self) -> str:
        """On which side of the margin the interval lies."""
        if self.interval.high < self.question.margin:
            return PASS
        return FAIL if self.interval.low > self.question.margin else UNDECIDED

    def text(self) -> str:
        """In words: what differs by how much, within which limits, and what was asked."""
        question = self.question
        margin = written(question.margin, question.unit) if question.margin else "0"
        return f"{question.what} {self.interval.text(question.unit)}, to lie below {margin}: {self.outcome}"


def answers(questions: Sequence[Question]) -> tuple[Answer, ...]:
    """Each question's answer, in order, with intervals of the confidence at which Holm's procedure decides it."""
    by_chance = sorted(questions, key=lambda question: _mean_test(question.differences, question.margin, 0.95)[0])
    found: dict[Question, Answer] = {}
    confidence, decides = 1 - CHANCE, True
    for place, question in enumerate(by_chance):
        if decides:
            confidence = 1 - CHANCE / (len(by_chance) - place)
        answer = Answer(question, interval(question.differences, confidence))
        decides = decides and answer.outcome != UNDECIDED  # the others are as undecided, at this confidence
        found[question] = answer
    return tuple(found[question] for question in questions)


def interval(values: Sequence[float], confidence: float = 1 - CHANCE) -> Interval:
    """The mean of independent values and its confidence interval."""
    return _mean_test(values, 0.0, confidence)[1]


def written(value: float, unit: str, signed: bool = True) -> str:
    """A number with the decimals of its unit; no minus zero."""
    return f"{value:{'+' if signed else ''}z.{DECIMALS[unit]}f}"


def _mean_test(values: Sequence[float], margin: float, confidence: float) -> tuple[float, Interval]:
    """The p value of a t test of the mean against `margin`, and the interval of the mean."""
    from scipy.stats import ttest_1samp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of values that are all the same, or of one value
        test = ttest_1samp(values, margin)
        limits = test.confidence_interval(confidence)
    chance = float(test.pvalue)
    mean = math.fsum(values) / len(values)
    return 1.0 if math.isnan(chance) else chance, Interval(mean, float(limits.low), float(limits.high), confidence)
