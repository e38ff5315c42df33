"""What a search or halving makes small: errors on validation images, never on test images, and the adapter's size."""

from __future__ import annotations

from collections.abc import Sequence

from lora_exp.storage.result import RunResult


def error_of(objective: str, target: Sequence[int], before: Sequence[float], after: Sequence[float]) -> float:
    """One of ERRORS, from the error rates of every class before and after fine-tuning on the classes `target`."""

    def mean(rates: Sequence[float], classes: Sequence[int]) -> float:
        return sum(rates[digit] for digit in classes) / len(classes)

    rest = [digit for digit in range(len(after)) if digit not in target]
    if objective == "target_error":
        return mean(after, target)
    if objective == "forgetting":
        return mean(after, rest) - mean(before, rest)
    return mean(after, target) + mean(after, rest)


def values_of(result: RunResult, objectives: Sequence[str]) -> list[float]:
    """The objectives of a sound result, in their order. Raises ValueError for a run without validation images."""
    before, after = result.outcome.validation_before, result.outcome.validation_after
    if before is None or after is None:
        raise ValueError(f"{result.name}: has no errors on validation images")
    size, digits = float(result.outcome.parameters_adapter), result.spec.finetune.digit
    rates = before.error_rates, after.error_rates
    return [size if name == "parameters" else error_of(name, digits, *rates) for name in objectives]
