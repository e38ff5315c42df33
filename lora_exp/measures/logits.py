"""The logits of a run's images before and after fine-tuning, and their form on disk.

Shapes: N images, C classes.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
# Names of the tensors on disk; those of validation images begin with VALIDATION.
LABELS, BEFORE, AFTER = "labels", "logits_before", "logits"
VALIDATION = "validation_"


@dataclass(frozen=True)
class Logits:
    """Labels [N] of images, and their logits [N, C] before and after fine-tuning, as they are stored."""

    labels: Array
    before: Array
    after: Array

    @property
    def classes(self) -> int:
        """C."""
        return int(self.before.shape[1])

    @functools.cached_property
    def right_before(self) -> Array:
        """Whether the base is right, [N]."""
        right: Array = self.before.argmax(axis=1) == self.labels
        return right

    @functools.cached_property
    def right_after(self) -> Array:
        """Whether the adapted classifier is right, [N]."""
        right: Array = self.after.argmax(axis=1) == self.labels
        return right

    def where(self, chosen: Array) -> Logits:
        """Return the images for which `chosen` [N] is true."""
        return Logits(self.labels[chosen], self.before[chosen], self.after[chosen])


def compact(logits: Array) -> Array:
    """Return logits [N, C] minus the largest of each image: in float16, or float32 where that changed a prediction.

    Softmax and argmax stay what they are, and near ties keep their precision, since floats are finest around zero.
    """
    centred: Array = logits - logits.max(axis=1, keepdims=True)
    with np.errstate(over="ignore"):  # of a diverged run
        half: Array = centred.astype(np.float16)
    if np.isfinite(half).all() and (half.argmax(axis=1) == logits.argmax(axis=1)).all():
        return half
    return centred.astype(np.float32)


def probabilities(logits: Array) -> Array:
    """Softmax of stored logits [N, C], as float64."""
    powers: Array = np.exp(logits.astype(np.float64))
    shares: Array = powers / powers.sum(axis=1, keepdims=True)
    return shares


def to_tensors(test: Logits, validation: Logits | None) -> dict[str, Array]:
    """Name the tensors of a run's file."""
    named: dict[str, Array] = {}
    for prefix, split in (("", test), (VALIDATION, validation)):
        if split is not None:
            named |= {prefix + LABELS: split.labels, prefix + BEFORE: split.before, prefix + AFTER: split.after}
    return named


def from_tensors(tensors: Mapping[str, Array]) -> tuple[Logits, Logits | None]:
    """Return the logits of the test images, and those of the validation images, if any.

    Raises ValueError for a file without logits, as older versions wrote it, or with logits that fit no labels.
    """
    found: list[Logits | None] = []
    for prefix in ("", VALIDATION):
        parts = [tensors.get(prefix + name) for name in (LABELS, BEFORE, AFTER)]
        labels, before, after = parts
        if labels is None or before is None or after is None:
            found.append(None)
        elif before.ndim != 2 or before.shape != after.shape or labels.shape != before.shape[:1]:
            raise ValueError("its logits don't fit its labels")
        else:
            found.append(Logits(labels, before, after))
    test, validation = found
    if test is None:
        raise ValueError("it holds no logits (an older version wrote it)")
    return test, validation
