"""The matched shift: one constant on the target's logit of the untouched base that reaches an adapter's recall.

Whatever an adapter does to the target's error, a moved threshold can do too. What counts is what the others pay: the
forgetting of the shift at the adapter's own recall, minus that of the adapter.

The constant is chosen on validation images. Where there are none, it is cross-fitted: chosen on one half of the test
images and judged on the other, and the reverse, so never on images that it is judged on. Several target classes share
the constant.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lora_exp.measures.gains import Estimate, MatchedShift
from lora_exp.measures.logits import Array, Logits
from lora_exp.measures.paired import change

LEAST_IMAGES = 20  # of each target class, for a recall on validation images to be worth matching
NEAR = 0.005  # a recall that is lower by no more than this is reached


@dataclass(frozen=True)
class _Margins:
    """How the base decides between the target and the other classes on labelled images, [N] each.

    `margin` is the best other logit minus the best one of the target: with a constant above it the image goes to the
    target. `right_as_target` says whether that is right, `right_as_other` whether it is right otherwise.
    """

    margin: Array
    right_as_target: Array
    right_as_other: Array

    @staticmethod
    def of(logits: Logits, target: Sequence[int]) -> _Margins:
        values, own = logits.before.astype(np.float32), list(target)
        rest = [digit for digit in range(logits.classes) if digit not in target]
        inside, outside = values[:, own], values[:, rest]
        return _Margins(
            outside.max(axis=1) - inside.max(axis=1),
            np.array(own)[inside.argmax(axis=1)] == logits.labels,
            np.array(rest)[outside.argmax(axis=1)] == logits.labels,
        )

    def right(self, constants: Array | float) -> Array:
        """Whether the base, shifted by a constant for each image, is right."""
        return np.where(self.margin < constants, self.right_as_target, self.right_as_other)


@dataclass(frozen=True)
class _Fold:
    """Images on which a constant is chosen: the recall of the shift by its constant, and that of the adapter.

    `recalls[n]` is the recall with a constant above the first n of `margins`. `shifted` and `adapted` say which images
    of the target are right with the chosen constant and with the adapter, `labels` are theirs.
    """

    margins: Array
    recalls: Array
    recall: float
    labels: Array
    shifted: Array
    adapted: Array
    judged: Array  # [N]: the test images on which the constant is judged

    @staticmethod
    def of(held: Logits, own: _Margins, chosen: Array, weights: Array, judged: Array) -> _Fold:
        at = np.flatnonzero(chosen & (weights[held.labels] > 0))
        labels, adapted = held.labels[at], held.right_after[at]
        shares = (weights / np.maximum(np.bincount(labels, minlength=len(weights)), 1))[labels]
        margins, places = np.unique(own.margin[at], return_inverse=True)
        gained = np.cumsum(np.bincount(places, shares * own.right_as_target[at]))
        recalls, recall = np.concatenate([[0.0], gained]), float(shares @ adapted)
        fold = _Fold(margins, recalls, recall, labels, adapted, adapted, judged)
        shifted = (own.margin[at] < fold.constant(0.0)) & own.right_as_target[at]
        return replace(fold, shifted=shifted)

    def constant(self, off: float) -> float:
        """The constant whose recall is nearest to the adapter's plus `off`; the smallest of equals.

        Where images share a margin, two recalls can be equally near, but for the last bits of their sums.
        """
        best = int(np.abs(self.recalls - self.recall - off).round(12).argmin())
        # Between the last margin that it exceeds and the first that it does not.
        if best == 0:
            return float(np.nextafter(self.margins[0], -np.inf))
        if best == len(self.margins):
            return float(np.nextafter(self.margins[-1], np.inf))
        return float((self.margins[best - 1] + self.margins[best]) / 2)


def halves(labels: Array) -> Array:
    """Split images evenly within each class: [N], false for the first, third, ... image of a class, else true."""
    order = np.argsort(labels, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(labels))])
    second = np.empty(len(labels), dtype=bool)
    second[order] = (np.arange(len(labels)) - starts[labels[order]]) % 2 == 1
    return second


def matched_shift(test: Logits, validation: Logits | None, target: Sequence[int]) -> MatchedShift | None:
    """Match a shift to an adapter; None where no shift reaches its recall, but for NEAR.

    That happens with several target classes, which a shift can't tell from each other. Also None where a class has too
    few images for a half of them to be left to choose by.
    """
    judged = _Margins.of(test, target)
    classes = range(test.classes)
    others = [digit for digit in classes if digit not in target]
    own, rest, every = (mean_weights(test.labels, chosen, test.classes) for chosen in (target, others, classes))
    if validation is None or np.bincount(validation.labels, minlength=test.classes)[list(target)].min() < LEAST_IMAGES:
        second = halves(test.labels)
        if np.bincount(test.labels, minlength=test.classes)[list(target)].min() < 2:
            return None
        folds = [_Fold.of(test, judged, half, own, ~half) for half in (~second, second)]
    else:
        all_of_both = (np.ones(len(split.labels), dtype=bool) for split in (validation, test))
        chosen, on = all_of_both
        folds = [_Fold.of(validation, _Margins.of(validation, target), chosen, own, on)]
    if any(fold.recalls[-1] < fold.recall - NEAR for fold in folds):
        return None

    def right_with(off: float) -> Array:
        constants = np.empty(len(test.labels))
        for fold in folds:
            constants[fold.judged] = fold.constant(off)
        return judged.right(constants)

    right = right_with(0.0)
    beyond = change(right, test.right_after, test.labels, rest)
    kept = _mean(right, test.labels, rest)
    # The recalls are equal up to the chance of the images on which they were matched: images of the target, so that it
    # is independent of the interval above. It moves the constant, and with it the forgetting of the shift.
    labels, shifted, adapted = (
        np.concatenate([getattr(fold, name) for fold in folds]) for name in ("labels", "shifted", "adapted")
    )
    chance = change(shifted, adapted, labels, own)
    moved = [kept - _mean(right_with(limit - chance.value), test.labels, rest) for limit in (chance.low, chance.high)]
    return MatchedShift(
        [fold.constant(0.0) for fold in folds],
        recall=_mean(right, test.labels, own),
        forgetting=_mean(test.right_before, test.labels, rest) - kept,
        accuracy=float(right.mean()),
        balanced_accuracy=_mean(right, test.labels, every),
        beyond=Estimate(
            beyond.value,
            beyond.value - math.hypot(beyond.value - beyond.low, min(0.0, *moved)),
            beyond.value + math.hypot(beyond.high - beyond.value, max(0.0, *moved)),
        ),
    )


def mean_weights(labels: Array, classes: Sequence[int], count: int) -> Array:
    """The weights [C] of the mean over those of `classes` that have images among `labels`; C is `count`."""
    weights = np.zeros(count)
    weights[list(classes)] = np.bincount(labels, minlength=count)[list(classes)] > 0
    weights /= max(1.0, weights.sum())
    return weights


def _mean(right: Array, labels: Array, weights: Array) -> float:
    """The weighted mean of the classes' rates of right images; those with weight must have images."""
    used = weights != 0
    counts = np.bincount(labels, minlength=len(weights))[used]
    return float(weights[used] @ (np.bincount(labels, right, len(weights))[used] / counts))
