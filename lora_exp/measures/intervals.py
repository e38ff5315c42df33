"""The mean of independent values, such as one a base: its interval, and how many more values would decide its sign.

scipy.stats has the interval too, but takes a second to import.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

CONFIDENCE = 0.95
MOST_VALUES = 100  # beyond these nobody would go to decide a sign


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float, float]:
    """The mean and the limits of Student's t interval; limits of NaN for a single value."""
    mean, count = math.fsum(values) / len(values), len(values)
    if count < 2:
        return mean, math.nan, math.nan
    half = t_quantile(count, confidence) * deviation(values) / math.sqrt(count)
    return mean, mean - half, mean + half


def deviation(values: Sequence[float]) -> float:
    """The standard deviation of a population of which these are a sample of at least two."""
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def further_values(values: Sequence[float]) -> int | None:
    """How many more values would move the interval off zero, were their mean and deviation those of `values`.

    0 where it is off zero already; None where more than MOST_VALUES would be needed. Of a single value the spread is
    not known: then 2, the least that gives an interval of use.
    """
    if len(values) < 2:
        return 2
    mean, spread = abs(math.fsum(values) / len(values)), deviation(values)
    for count in range(len(values), MOST_VALUES + 1):
        if mean > t_quantile(count) * spread / math.sqrt(count):
            return count - len(values)
    return None


def t_quantile(count: int, confidence: float = CONFIDENCE) -> float:
    """The quantile of Student's t with `count` - 1 degrees of freedom that a two-sided interval needs."""
    from scipy.special import stdtrit

    return float(stdtrit(count - 1, (1 + confidence) / 2))
