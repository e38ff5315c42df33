"""Measures of one classifier on labelled images, for a target of one class or several.

Those of the target are means over its classes, each against all others. scikit-learn has them all, but takes a second
to import, in every process that trains; `benchmarks/recompute.py` and a test compare with it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lora_exp.measures.gains import Measures
from lora_exp.measures.logits import Array, probabilities

BINS = 15  # of the calibration error, as in the paper


def measures(labels: Array, logits: Array, target: Sequence[int]) -> Measures:
    """Measure a classifier by its logits [N, C], as `compact` stores them, for images with labels [N]."""
    predicted = logits.argmax(axis=1)
    right = predicted == labels
    classes = logits.shape[1]
    counts = np.bincount(labels, minlength=classes)
    hits = np.bincount(labels[right], minlength=classes)
    claimed = np.bincount(predicted, minlength=classes)
    recalls = hits[counts > 0] / counts[counts > 0]
    own = list(target)
    precision, recall = hits[own] / np.maximum(claimed[own], 1), hits[own] / np.maximum(counts[own], 1)
    chances = probabilities(logits)
    return Measures(
        accuracy=float(right.mean()),
        balanced_accuracy=float(recalls.mean()),
        precision=float(precision.mean()),
        recall=float(recall.mean()),
        f1=float((2 * hits[own] / np.maximum(claimed[own] + counts[own], 1)).mean()),
        auroc=float(np.mean([auroc(chances[:, digit], labels == digit) for digit in own])),
        worst_class_error=float(1 - recalls.min()),
        predicted_share=float(claimed[own].sum() / len(labels)),
        calibration_error=calibration_error(chances.max(axis=1), right),
    )


def auroc(scores: Array, positive: Array) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties count half; NaN without both.

    The statistic of Mann & Whitney, from ranks (Hanley & McNeil 1982, Radiology 143, 29-36).
    """
    positives = int(positive.sum())
    negatives = len(positive) - positives
    if positives == 0 or negatives == 0:
        return float("nan")
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]  # equal scores share the mean of their ranks
    return float((ranks[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def calibration_error(confidence: Array, right: Array) -> float:
    """The mean gap between confidence and accuracy in a bin, weighted by its images."""
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, right, BINS) - np.bincount(bins, confidence, BINS)
    return float(np.abs(gaps).sum() / len(confidence))
