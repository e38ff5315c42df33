"""What a search makes small: errors on the validation images, never on the test set, and the adapter's size."""

from __future__ import annotations

from collections.abc import Sequence

from lora_exp.result import ClassErrors, RunResult


def values_of(result: RunResult, objectives: Sequence[str]) -> list[float]:
    """The objectives of a sound result, in their order. Raises ValueError for a run without validation images."""
    before, after = result.outcome.validation_before, result.outcome.validation_after
    if before is None or after is None:
        raise ValueError(f"{result.name}: has no errors on validation images")
    digits = set(result.spec.finetune.digit)
    others = set(range(len(after.counts))) - digits
    measures = {
        "target_error": _mean(after, digits),
        "forgetting": _mean(after, others) - _mean(before, others),
        "both_errors": _mean(after, digits) + _mean(after, others),
        "parameters": float(result.outcome.parameters_adapter),
    }
    return [measures[name] for name in objectives]


def _mean(judged: ClassErrors, digits: set[int]) -> float:
    """Mean error rate of the classes in `digits`, each class weighing the same."""
    return sum(judged.error_rates[digit] for digit in sorted(digits)) / len(digits)
