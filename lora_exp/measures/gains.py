"""What one run gained and what it cost, as numbers with their names and words; `measured` computes them.

No numpy: commands that only read results start without it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

VALIDATION_IMAGES, TEST_HALF = "validation images", "half of the test images"


@dataclass(frozen=True)
class Measures:
    """Shares from 0 to 1.

    `balanced_accuracy` is the mean recall of all classes; `precision`, `recall`, `f1` and `auroc` are the target's;
    `predicted_share` is the share of images that are predicted as the target; `calibration_error` is the expected
    calibration error over 15 bins of equal width (Guo et al. 2017, equation 3, arXiv:1706.04599).
    """

    accuracy: float
    balanced_accuracy: float
    precision: float
    recall: float
    f1: float
    auroc: float
    worst_class_error: float
    predicted_share: float
    calibration_error: float


@dataclass(frozen=True)
class Estimate:
    """A difference of rates and its 95 % interval over images."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class McNemar:
    """Images that one classifier got right and the other wrong, and how likely so uneven a split is by chance.

    `mended` were wrong before and are right after, `broken` the reverse. `chance` is the two-sided exact p value
    (McNemar 1947).
    """

    mended: int
    broken: int
    chance: float


@dataclass(frozen=True)
class MatchedShift:
    """A moved threshold at an adapter's recall, judged on the test images; rates from 0 to 1.

    `constants` has one for each part of the test images. `beyond` is the forgetting of the shift minus that of the
    adapter: above zero, the adapter forgets less.
    """

    constants: list[float]
    recall: float
    forgetting: float
    accuracy: float
    balanced_accuracy: float
    beyond: Estimate


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


def beyond_words(beyond: Estimate | None) -> str:
    """Say how a run compares with a moved threshold of the same recall."""
    if beyond is None:
        return "no moved threshold has its recall"
    if beyond.low > 0:
        return f"{100 * beyond.value:.2f} points less forgetting than a moved threshold"
    if beyond.high < 0:
        return f"{-100 * beyond.value:.2f} points more forgetting than a moved threshold"
    return "no better than moving one threshold"
