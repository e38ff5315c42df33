"""What one run gained and what it cost: all measures before and after, paired differences, and the matched shift."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lora_exp.measures.classification import Measures, measures
from lora_exp.measures.logits import Logits
from lora_exp.measures.paired import Estimate, McNemar, change, mcnemar
from lora_exp.measures.shift import MatchedShift, halves, matched_shift, mean_weights

VALIDATION_IMAGES, TEST_HALF = "validation images", "half of the test images"

MEASURES = tuple(field.name for field in dataclasses.fields(Measures) if field.name != "accuracy")
_ESTIMATES = ("accuracy_gained", "balanced_accuracy_gained", "target_error_change", "forgetting", "beyond_shift")
# What a run gained, by name; `accuracy` and `forgetting` themselves are among the oldest columns.
NUMBERS = (
    *(f"{name}{when}" for name in MEASURES for when in ("_before", "")),
    *(f"{name}{part}" for name in _ESTIMATES for part in ("", "_low", "_high") if name + part != "forgetting"),
    *(f"shift_{name}" for name in ("recall", "forgetting", "accuracy", "balanced_accuracy")),
    *(f"{prefix}{name}" for prefix in ("", "target_") for name in ("mended", "broken", "mcnemar")),
)


@dataclass(frozen=True)
class Choice:
    """By what a run is chosen among others, and what it then achieves on images that took no part in the choice.

    `images` says on which images the choice is made; the gained balanced accuracy and the forgetting are rates.
    """

    images: str
    gained: float
    forgetting: float
    gained_elsewhere: float
    forgetting_elsewhere: float


@dataclass(frozen=True)
class Gains:
    """The measures of a run on the test images; differences are rates, above zero where they rose.

    `shift` is None where no moved threshold reaches the recall of the run.
    """

    before: Measures
    after: Measures
    all_images: McNemar
    target_images: McNemar
    accuracy: Estimate
    balanced_accuracy: Estimate
    target_error: Estimate
    forgetting: Estimate
    shift: MatchedShift | None
    choice: Choice

    @property
    def beyond(self) -> Estimate | None:
        """The forgetting of the matched shift minus that of the run; None without a shift of the same recall."""
        return None if self.shift is None else self.shift.beyond

    def numbers(self) -> dict[str, float | None]:
        """All numbers of the run by the names that tables and MLflow use, in the order of NUMBERS.

        Those of the shift are None where no shift has the recall of the run.
        """
        found: dict[str, float | None] = {}
        for name in MEASURES:
            found |= {f"{name}_before": getattr(self.before, name), name: getattr(self.after, name)}
        estimates = (self.accuracy, self.balanced_accuracy, self.target_error, self.forgetting, self.beyond)
        for name, estimate in zip(_ESTIMATES, estimates, strict=True):
            for part, field in (("", "value"), ("_low", "low"), ("_high", "high")):
                found[name + part] = None if estimate is None else getattr(estimate, field)
        for name in ("recall", "forgetting", "accuracy", "balanced_accuracy"):
            found[f"shift_{name}"] = None if self.shift is None else getattr(self.shift, name)
        for prefix, test in (("", self.all_images), ("target_", self.target_images)):
            found |= {f"{prefix}mended": test.mended, f"{prefix}broken": test.broken, f"{prefix}mcnemar": test.chance}
        return {name: found[name] for name in NUMBERS}


def gains(test: Logits, validation: Logits | None, target: Sequence[int]) -> Gains:
    """Measure a run by the logits of its test images, and of its validation images, if there are any."""
    classes = range(test.classes)
    others = [digit for digit in classes if digit not in target]
    own, rest, every = (mean_weights(test.labels, chosen, test.classes) for chosen in (target, others, classes))
    is_target = np.isin(test.labels, target)
    before, after = test.right_before, test.right_after
    one_group = np.zeros(len(test.labels), dtype=int)
    return Gains(
        before=measures(test.labels, test.before, target),
        after=measures(test.labels, test.after, target),
        all_images=mcnemar(before, after),
        target_images=mcnemar(before[is_target], after[is_target]),
        accuracy=change(before, after, one_group, np.ones(1)),
        balanced_accuracy=change(before, after, test.labels, every),
        # An error rises where the rate of right images falls.
        target_error=change(after, before, test.labels, own),
        forgetting=change(after, before, test.labels, rest),
        shift=matched_shift(test, validation, target),
        choice=_choice(test, validation, others),
    )


def _choice(test: Logits, validation: Logits | None, others: Sequence[int]) -> Choice:
    second = halves(test.labels)
    images, chosen, judged = TEST_HALF, test.where(~second), test.where(second)
    if validation is not None:
        images, chosen, judged = VALIDATION_IMAGES, validation, test
    numbers: list[float] = []
    for on in (chosen, judged):
        every, rest = (mean_weights(on.labels, own, on.classes) for own in (range(on.classes), others))
        numbers.append(change(on.right_before, on.right_after, on.labels, every).value)
        numbers.append(change(on.right_after, on.right_before, on.labels, rest).value)
    return Choice(images, *numbers)


def from_dict(values: Mapping[str, Any]) -> Gains:
    """The gains that `dataclasses.asdict` was taken of."""

    def measured(name: str) -> Measures:
        return Measures(**{key: float(own) for key, own in values[name].items()})

    def estimated(name: str) -> Estimate:
        return Estimate(**values[name])

    shift = values["shift"]
    return Gains(
        before=measured("before"),
        after=measured("after"),
        all_images=McNemar(**values["all_images"]),
        target_images=McNemar(**values["target_images"]),
        accuracy=estimated("accuracy"),
        balanced_accuracy=estimated("balanced_accuracy"),
        target_error=estimated("target_error"),
        forgetting=estimated("forgetting"),
        shift=None if shift is None else MatchedShift(**{**shift, "beyond": Estimate(**shift["beyond"])}),
        choice=Choice(**values["choice"]),
    )
