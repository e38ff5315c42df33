"""Which test images fine-tuning mended, which it broke, and which stayed wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora_exp.config.spec import CLASSES
from lora_exp.storage.result import RunResult


@dataclass(frozen=True)
class Changes:
    """Positions of test images, in order: wrong before and right after, the reverse, and wrong both times."""

    mended: NDArray[np.intp]
    broken: NDArray[np.intp]
    still_wrong: NDArray[np.intp]


def changes(result: RunResult, predictions: Mapping[str, NDArray[Any]], labels: NDArray[Any]) -> Changes:
    """What fine-tuning changed of images whose true digits are `labels` [N].

    `predictions` is as of `Sweep.predictions`.
    Raises ValueError when the predictions are not this result's for these labels.
    """
    before, after = predictions["before_predicted"], predictions["predicted"]
    if len(before) != len(labels) or (
        np.bincount(labels[after != labels], minlength=CLASSES).tolist() != result.outcome.after.errors
    ):
        raise ValueError("the predictions are not of this result and these labels")
    was_right, is_right = before == labels, after == labels
    parts = ~was_right & is_right, was_right & ~is_right, ~was_right & ~is_right
    return Changes(*(np.flatnonzero(part) for part in parts))


def spread(indices: NDArray[np.intp], most: int) -> NDArray[np.intp]:
    """At most `most` of `indices`, evenly spread over them."""
    if len(indices) <= most:
        return indices
    return np.asarray(indices[np.linspace(0, len(indices) - 1, most).astype(int)], dtype=np.intp)
