"""Errors of a classifier by class, and the errors by which runs are compared in a search or in halving."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ClassErrors:
    """Errors of a classifier on a labelled split; `confusion[true][predicted]` counts images.

    `error_rates` are shares of each class's images, 0 for a class without images. `losses` are each class's mean loss;
    empty in a result that an older version wrote.
    """

    accuracy: float
    loss: float
    counts: list[int]
    errors: list[int]
    error_rates: list[float]
    confusion: list[list[int]]
    losses: list[float] = field(default_factory=list)

    @staticmethod
    def of(confusion: list[list[int]], loss: float, losses: list[float]) -> ClassErrors:
        """Derive every number from the confusion counts, the mean loss and those of the classes."""
        counts = [sum(row) for row in confusion]
        errors = [count - row[digit] for digit, (row, count) in enumerate(zip(confusion, counts, strict=True))]
        rates = [wrong / count if count else 0.0 for wrong, count in zip(errors, counts, strict=True)]
        images = sum(counts)
        return ClassErrors((images - sum(errors)) / images, loss, counts, errors, rates, confusion, losses)

    def error_of(self, classes: Sequence[int]) -> float:
        """Mean error rate of `classes`, with equal weight for each class."""
        return _mean_rate(self.error_rates, classes)

    def loss_of(self, classes: Sequence[int]) -> float | None:
        """Mean loss of `classes`, with equal weight for each class; None where an older version wrote the result."""
        return _mean_rate(self.losses, classes) if self.losses else None


def error_of(objective: str, target: Sequence[int], before: Sequence[float], after: Sequence[float]) -> float:
    """Compute one of `config.settings.ERRORS` from the error rates of every class before and after fine-tuning."""
    rest = [digit for digit in range(len(after)) if digit not in target]
    if objective == "target_error":
        return _mean_rate(after, target)
    if objective == "forgetting":
        return _mean_rate(after, rest) - _mean_rate(before, rest)
    if objective == "balanced_error":
        return _mean_rate(after, range(len(after)))
    return _mean_rate(after, target) + _mean_rate(after, rest)


def _mean_rate(rates: Sequence[float], classes: Sequence[int]) -> float:
    return sum(rates[digit] for digit in classes) / len(classes)
