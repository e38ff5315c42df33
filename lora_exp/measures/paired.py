"""Differences between two classifiers that were tried on the same images: exact tests and 95 % intervals.

scipy and statsmodels have the test and Wilson's interval, but take a second to import, in every process that trains.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

from lora_exp.measures.gains import Estimate, McNemar
from lora_exp.measures.logits import Array

CONFIDENCE = 0.95
Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)


def mcnemar(right_before: Array, right_after: Array) -> McNemar:
    """Compare two classifiers by whether they are right about the same images, [N] each."""
    mended, broken = int((~right_before & right_after).sum()), int((right_before & ~right_after).sum())
    return McNemar(mended, broken, sign_test(mended, broken))


def sign_test(ups: int, downs: int) -> float:
    """The two-sided chance of a split as uneven as this among `ups` + `downs` fair coins."""
    count, fewer = ups + downs, min(ups, downs)
    if 2 * fewer >= count - 1:
        return 1.0
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, count + 1)))])  # of the factorials
    terms = logs[count] - logs[: fewer + 1] - logs[count - np.arange(fewer + 1)] - count * math.log(2)
    return float(min(1.0, 2 * np.exp(terms).sum()))


def change(right_before: Array, right_after: Array, groups: Array, weights: Array) -> Estimate:
    """The rise of the weighted mean of the groups' rates of right images, with its interval.

    `groups` [N] are numbers of groups, `weights` [G] their weights; a group without images must have weight 0.
    The interval of each group is Newcombe's for paired rates (1998, Statistics in Medicine 17, 2635-2650, method 10);
    those of the groups are joined as independent ones are (Zou & Donner 2008, Statistics in Medicine 27, 1693-1702).
    """
    cells = np.bincount(4 * groups.astype(int) + 2 * right_before + right_after, minlength=4 * len(weights)).reshape(
        -1, 4
    )
    used = weights != 0
    neither, mended, broken, both = cells[used].T.astype(float)
    count = neither + mended + broken + both
    old, new = (both + broken) / count, (both + mended) / count
    (old_low, old_high), (new_low, new_high) = wilson(both + broken, count), wilson(both + mended, count)
    margins = (both + broken) * (both + mended) * (neither + mended) * (neither + broken)
    phi = np.where(margins > 0, (both * neither - mended * broken) / np.sqrt(np.maximum(margins, 1)), 0.0)
    down, up = (_joined(new - new_low, old_high - old, phi), _joined(new_high - new, old - old_low, phi))
    kept = weights[used]
    value = float(kept @ (new - old))
    return Estimate(value, value - math.hypot(*(kept * down)), value + math.hypot(*(kept * up)))


def wilson(hits: Array, counts: Array) -> tuple[Array, Array]:
    """The limits of Wilson's interval of each rate `hits / counts` (Brown, Cai & DasGupta 2001, equations 4 and 5)."""
    share, z2 = hits / counts, Z**2
    middle = (share + z2 / (2 * counts)) / (1 + z2 / counts)
    half = np.sqrt(z2 * share * (1 - share) / counts + (z2 / (2 * counts)) ** 2) / (1 + z2 / counts)
    return np.maximum(middle - half, 0.0), np.minimum(middle + half, 1.0)


def _joined(one: Array, other: Array, phi: Array) -> Array:
    """The distance to a limit of a difference, from those of its two sides, whose correlation is `phi`."""
    distance: Array = np.sqrt(np.maximum(one**2 - 2 * phi * one * other + other**2, 0.0))
    return distance
