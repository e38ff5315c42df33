"""The points that an arm tries: at first every combination of its values, then rates around or beyond the best.

In a widening every arm gets as many further points, so that no arm is tuned with more effort than another.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from lora_exp.config.contest import RATE
from lora_exp.contest.protocol import Arm
from lora_exp.storage.words import as_text

FURTHER = 2  # points of an arm in a widening
LOWEST, HIGHEST = "lowest", "highest"


@dataclass(frozen=True)
class Point:
    """A learning rate, and the values of further keys that an arm tries with it."""

    rate: float
    more: tuple[tuple[str, Any], ...] = ()

    @property
    def overrides(self) -> list[str]:
        """The point as overrides of a job."""
        return [f"{key}={as_text(value)}" for key, value in ((RATE, self.rate), *self.more)]

    @property
    def label(self) -> str:
        """`0.001`, or `0.001, learning rate ratio 4`."""
        more = (f"{key.rpartition('.')[2].replace('_', ' ')} {value}" for key, value in self.more)
        return ", ".join([f"{self.rate:g}", *more])


def first_points(arm: Arm) -> list[Point]:
    """Every combination of the values of an arm's space."""
    space = dict(arm.space)
    keys = [key for key in space if key != RATE]
    return [
        Point(float(rate), tuple(zip(keys, values, strict=True)))
        for rate in space[RATE]
        for values in itertools.product(*(space[key] for key in keys))
    ]


def end_of(best: Point, tried: Sequence[Point]) -> str | None:
    """LOWEST or HIGHEST where the best point has that rate of those tried, so that a better one may lie beyond."""
    rates = [point.rate for point in tried]
    return LOWEST if best.rate == min(rates) else HIGHEST if best.rate == max(rates) else None


def further_points(best: Point, tried: Sequence[Point]) -> list[Point]:
    """FURTHER points: beyond the end at which the best lies, as far apart as the last two; else on both its sides."""
    rates = sorted({point.rate for point in tried})
    at = rates.index(best.rate)
    if at == 0 or at == len(rates) - 1:
        factor = rates[1] / rates[0] if at == 0 else rates[-1] / rates[-2]
        found = [best.rate * factor ** (-step if at == 0 else step) for step in range(1, FURTHER + 1)]
    else:
        found = [math.sqrt(best.rate * rates[at + side]) for side in (-1, 1)]
    new: list[float] = []
    for rate in found:
        new.append(_short(rate, {*rates, *new}))
    return [Point(rate, best.more) for rate in new]


def _short(rate: float, taken: Collection[float]) -> float:
    """A rate in two digits, or in as many as tell it from those that are taken."""
    return next(own for digits in range(2, 18) if (own := float(f"{rate:.{digits}g}")) not in taken)
