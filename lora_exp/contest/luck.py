"""How much of a difference of two tuned arms may be the luck of their tuning.

An arm is judged at the rate that was best over a few bases. Over others it might have been another, as good as that in
these but not in truth. So two methods with the same curve of rates can differ truly at the rates that they picked, and
more judging bases only make that clearer. The luck of an arm is how far, in the root mean square, its measure at the
point that was picked lies from that at the points which other selection bases might have led to; `comparison` adds its
square to that of the standard error. benchmarks/contest_simulation.py shows what that does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

SURE = 0.8  # that the noise is no larger than assumed
NEAREST = 3  # points by which the noise of selection is estimated: that of far worse ones is often much larger
NORMAL = np.linspace(-6.0, 6.0, 121)  # where the density of the noise of a mean is summed, in deviations


def luck(points: Sequence[Mapping[int, float]]) -> float:
    """How far an arm's measure at its best point may lie, by chance, from that at another pick, in points.

    `points` hold the measure by base of each point that could be picked, in percent. It is 0 for a single point, and
    infinite for none, or where fewer than two bases have all points: then nothing tells noise from truth.
    """
    from scipy.special import chdtri

    if len(points) == 1:
        return 0.0
    bases = sorted(set.intersection(*map(set, points))) if points else []
    if len(bases) < 2:
        return math.inf
    measures = np.array([[own[base] for base in bases] for own in points])
    means = measures.mean(axis=1)
    near = measures[np.argsort(means)[:NEAREST]]
    rest = near - near.mean(axis=0) - near.mean(axis=1, keepdims=True) + near.mean()
    freedom = (len(near) - 1) * (len(bases) - 1)
    # The upper end of a one-sided 80 % interval: with the estimate itself, few bases too often seem to agree.
    noise = math.sqrt(float((rest**2).sum()) / float(chdtri(freedom, SURE)))
    return math.sqrt(float(_picked(means, noise / math.sqrt(len(bases))) @ (means - means.min()) ** 2))


def _picked(means: NDArray[np.float64], noise: float) -> NDArray[np.float64]:
    """How likely each point is to be the least, if normal noise of this deviation is added to the means."""
    from scipy.special import ndtr

    if noise == 0:
        return np.asarray(np.arange(len(means)) == means.argmin(), dtype=np.float64)
    ahead = (means[None, :] - means[:, None]) / noise
    larger = ndtr(ahead[:, :, None] - NORMAL)  # of one point's noise: how likely another point's measure is larger
    larger[np.arange(len(means)), np.arange(len(means))] = 1.0
    chances = larger.prod(axis=1) @ np.exp(-(NORMAL**2) / 2)
    return np.asarray(chances / chances.sum())
