"""Are the measures in `result.json` right? python benchmarks/recompute.py FOLDER

Computes every measure of a run, or of each job of a sweep, from the logits in `predictions.safetensors` alone, with
scikit-learn, statsmodels and numpy, and compares it with `result.json`. Prints the largest difference, and exits with 1
if one is above 1e-6. It imports nothing of lora_exp; docs/gains.md has the definitions.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from sklearn import metrics
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

Array = NDArray[Any]
ALLOWED = 1e-6
BINS = 15  # of the calibration error
LEAST_IMAGES = 20  # of each target class, for the constant to be chosen on validation images
NEAR = 0.005  # a shift whose highest recall is lower than the adapter's by more than this does not match it


def rates(right: Array, labels: Array, classes: Sequence[int]) -> float:
    """The mean over the classes that have images of the share of right images."""
    return float(np.mean([right[labels == own].mean() for own in classes if (labels == own).any()]))


def measured(labels: Array, logits: Array, target: list[int]) -> dict[str, float]:
    """The measures of one classifier."""
    predicted, powers = logits.argmax(axis=1), np.exp(logits.astype(float))
    chances = powers / powers.sum(axis=1, keepdims=True)
    confidence, right = chances.max(axis=1), predicted == labels
    gaps = 0.0
    for number in range(BINS):
        inside = (confidence >= number / BINS) & ((confidence < (number + 1) / BINS) | (number == BINS - 1))
        gaps += abs(float(right[inside].sum() - confidence[inside].sum()))
    of_target = {"labels": target, "average": "macro", "zero_division": 0}
    present = np.unique(labels).tolist()
    recalls = metrics.recall_score(labels, predicted, labels=present, average=None)
    return {
        "accuracy": metrics.accuracy_score(labels, predicted),
        "balanced_accuracy": float(recalls.mean()),
        "precision": metrics.precision_score(labels, predicted, **of_target),
        "recall": metrics.recall_score(labels, predicted, **of_target),
        "f1": metrics.f1_score(labels, predicted, **of_target),
        "auroc": float(np.mean([metrics.roc_auc_score(labels == own, chances[:, own]) for own in target])),
        "worst_class_error": float(1 - recalls.min()),
        "predicted_share": float(np.isin(predicted, target).mean()),
        "calibration_error": gaps / len(labels),
    }


def tested(before: Array, after: Array) -> dict[str, float]:
    """McNemar's exact test."""
    mended, broken = int((~before & after).sum()), int((before & ~after).sum())
    chance = min(1.0, float(mcnemar([[0, broken], [mended, 0]], exact=True).pvalue)) if mended + broken else 1.0
    return {"mended": mended, "broken": broken, "chance": chance}


def rise(before: Array, after: Array, labels: Array, classes: Sequence[int]) -> dict[str, float]:
    """The rise of the mean rate of right images of the classes, with Newcombe's paired interval, squared and added."""
    values, downs, ups = [], [], []
    for own in classes:
        one, two = before[labels == own], after[labels == own]
        if not len(one):
            continue
        count, old, new = len(one), one.mean(), two.mean()
        both, mended = int((one & two).sum()), int((~one & two).sum())
        broken, neither = int((one & ~two).sum()), int((~one & ~two).sum())
        margins = (both + broken) * (both + mended) * (neither + mended) * (neither + broken)
        phi = (both * neither - mended * broken) / math.sqrt(margins) if margins else 0.0
        old_low, old_high = proportion_confint(int(one.sum()), count, method="wilson")
        new_low, new_high = proportion_confint(int(two.sum()), count, method="wilson")
        values.append(new - old)
        downs.append(joined(new - new_low, old_high - old, phi))
        ups.append(joined(new_high - new, old - old_low, phi))
    value = float(np.mean(values))
    return interval(value, math.hypot(*downs) / len(values), math.hypot(*ups) / len(values))


def joined(one: float, other: float, phi: float) -> float:
    """A limit of the difference of two rates with correlation phi, as a distance from the difference."""
    return math.sqrt(max(0.0, one**2 - 2 * phi * one * other + other**2))


def interval(value: float, down: float, up: float) -> dict[str, float]:
    """A difference with limits at these distances."""
    return {"value": value, "low": value - down, "high": value + up}


def fall(before: Array, after: Array, labels: Array, classes: Sequence[int]) -> dict[str, float]:
    """The fall of the mean rate of right images: the rise of the error."""
    return rise(after, before, labels, classes)


def second_half(labels: Array) -> Array:
    """The second, fourth, ... image of each class."""
    chosen = np.zeros(len(labels), dtype=bool)
    for own in np.unique(labels):
        chosen[np.flatnonzero(labels == own)[1::2]] = True
    return chosen


def moved(logits: Array, constant: float, target: list[int]) -> Array:
    """The classes that the logits predict with the constant added to the target's."""
    rest = [own for own in range(logits.shape[1]) if own not in target]
    inside, outside = logits[:, target], logits[:, rest]
    claimed = outside.max(axis=1) - inside.max(axis=1) < constant
    return np.where(claimed, np.array(target)[inside.argmax(axis=1)], np.array(rest)[outside.argmax(axis=1)])


class Chooser:
    """Chooses the constant by its recall on labelled images of the target, beside the adapter's `recall` there."""

    def __init__(self, labels: Array, before: Array, after: Array, target: list[int]) -> None:
        own = np.isin(labels, target)
        self.labels, self.target, logits = labels[own], target, before[own].astype(np.float32)
        self.logits, self.adapted = logits, after[own].argmax(axis=1) == labels[own]
        rest = [other for other in range(logits.shape[1]) if other not in target]
        margins = np.unique(logits[:, rest].max(axis=1) - logits[:, target].max(axis=1))
        ends = np.nextafter(margins[[0, -1]], np.float32([-np.inf, np.inf]))
        self.constants = [float(ends[0]), *((margins[1:] + margins[:-1]) / 2).tolist(), float(ends[1])]
        self.recall = rates(self.adapted, self.labels, target)
        self.recalls = np.array([rates(self.right(one), self.labels, target) for one in self.constants])

    def right(self, constant: float) -> Array:
        """Which images of the target the shifted base has right."""
        return moved(self.logits, constant, self.target) == self.labels

    def constant(self, off: float) -> float:
        """The constant whose recall is nearest to the adapter's plus `off`; the smallest of equals."""
        return self.constants[int(np.abs(self.recalls - self.recall - off).round(12).argmin())]


def shifted(test: Sequence[Array], validation: Sequence[Array] | None, target: list[int]) -> dict[str, Any] | None:
    """The matched shift; None where no constant reaches the recall of the adapter."""
    labels, before, after = test
    logits, classes = before.astype(np.float32), range(before.shape[1])
    rest = [own for own in classes if own not in target]
    if validation is None or min((validation[0] == own).sum() for own in target) < LEAST_IMAGES:
        second = second_half(labels)
        choosers = [Chooser(*(part[half] for part in test), target) for half in (~second, second)]
        judged = [second, ~second]
    else:
        choosers, judged = [Chooser(*validation, target)], [np.ones(len(labels), dtype=bool)]
    if any(own.recalls.max() < own.recall - NEAR for own in choosers):
        return None

    def right_with(off: float) -> Array:
        right = np.zeros(len(labels), dtype=bool)
        for chooser, images in zip(choosers, judged, strict=True):
            right[images] = (moved(logits, chooser.constant(off), target) == labels)[images]
        return right

    right, adapted = right_with(0.0), after.argmax(axis=1) == labels
    difference = fall(adapted, right, labels, rest)
    # The recalls are equal up to the chance of the images on which they were matched.
    base = np.concatenate([chooser.right(chooser.constant(0.0)) for chooser in choosers])
    own, images = (np.concatenate([getattr(chooser, name) for chooser in choosers]) for name in ("adapted", "labels"))
    recall = rise(base, own, images, target)
    offs = [recall[end] - recall["value"] for end in ("low", "high")]
    besides = [rates(right, labels, rest) - rates(right_with(off), labels, rest) for off in offs]
    value = difference["value"]
    return {
        "constants": [chooser.constant(0.0) for chooser in choosers],
        "recall": rates(right, labels, target),
        "forgetting": rates(before.argmax(axis=1) == labels, labels, rest) - rates(right, labels, rest),
        "accuracy": float(right.mean()),
        "balanced_accuracy": rates(right, labels, classes),
        "beyond": interval(
            value,
            math.hypot(value - difference["low"], min(0.0, *besides)),
            math.hypot(difference["high"] - value, max(0.0, *besides)),
        ),
    }


def choice(test: Sequence[Array], validation: Sequence[Array] | None, rest: list[int]) -> dict[str, Any]:
    """By what the run is chosen, and what it achieves on other images."""
    images, parts = "validation images", (validation, test)
    if validation is None:
        second = second_half(test[0])
        images, parts = "half of the test images", tuple([part[half] for part in test] for half in (~second, second))
    found: list[float] = []
    for labels, *logits in parts:
        before, after = (own.argmax(axis=1) == labels for own in logits)
        gained = rise(before, after, labels, range(logits[0].shape[1]))
        found += [gained["value"], fall(before, after, labels, rest)["value"]]
    names = ("gained", "forgetting", "gained_elsewhere", "forgetting_elsewhere")
    return {"images": images, **dict(zip(names, found, strict=True))}


def recomputed(tensors: dict[str, Array], target: list[int]) -> dict[str, Any]:
    """All of `outcome.gains`, and the errors, of the logits of a run."""
    names = ("labels", "logits_before", "logits")
    test = [tensors[name] for name in names]
    validation = [tensors[f"validation_{name}"] for name in names] if "validation_labels" in tensors else None
    labels, *logits = test
    before, after = (own.argmax(axis=1) == labels for own in logits)
    classes = range(logits[0].shape[1])
    rest, own = [one for one in classes if one not in target], np.isin(labels, target)
    errors = {
        name: 1 - rates(right, labels, of)
        for name, right, of in (
            ("target_error_before", before, target),
            ("target_error", after, target),
            ("other_error_before", before, rest),
            ("other_error", after, rest),
        )
    }
    gains = {
        "before": measured(labels, logits[0], target),
        "after": measured(labels, logits[1], target),
        "all_images": tested(before, after),
        "target_images": tested(before[own], after[own]),
        "accuracy": rise(before, after, np.zeros(len(labels)), [0]),
        "balanced_accuracy": rise(before, after, labels, classes),
        "target_error": fall(before, after, labels, target),
        "forgetting": fall(before, after, labels, rest),
        "shift": shifted(test, validation, target),
        "choice": choice(test, validation, rest),
    }
    return {**errors, "forgetting": errors["other_error"] - errors["other_error_before"], "gains": gains}


def differences(found: Any, stored: Any, name: str) -> Iterator[tuple[float, str]]:
    """The difference of each number, by its name; infinite where one of both is no number or absent."""
    if isinstance(found, dict) and isinstance(stored, dict):
        for key in found.keys() | stored.keys():
            yield from differences(found.get(key), stored.get(key), f"{name}.{key}")
    elif isinstance(found, list) and isinstance(stored, list) and len(found) == len(stored):
        for at, (one, other) in enumerate(zip(found, stored, strict=True)):
            yield from differences(one, other, f"{name}.{at}")
    elif isinstance(found, int | float) and isinstance(stored, int | float | str):
        one, other = float(found), float(stored)  # NaN is a text in JSON
        yield 0.0 if math.isnan(one) and math.isnan(other) else abs(one - other), name
    else:
        yield 0.0 if found == stored else math.inf, name


def _target(result: dict[str, Any]) -> list[int]:
    """The labels of the target; a class may be named, by its name or by its number."""
    classes = result["facts"]["classes"]
    return [
        classes.index(str(one)) if str(one) in classes else int(one) for one in result["spec"]["finetune"]["target"]
    ]


def main(folder: Path) -> int:
    """Compare each run in the folder; return the exit code."""
    runs = [folder] if (folder / "result.json").is_file() else sorted(p.parent for p in folder.glob("*/result.json"))
    worst, numbers, compared = (0.0, "all equal"), 0, 0
    for run in runs:
        result = json.loads((run / "result.json").read_text(encoding="utf-8"))
        outcome = result["outcome"]
        if outcome.get("gains") is None:
            print(f"{run}: diverged, or an older version wrote it: nothing to compare")
            continue
        found = recomputed(load_file(run / "predictions.safetensors"), _target(result))
        # A NaN is further than any number.
        own = [
            (math.inf if math.isnan(off) else off, name)
            for off, name in differences(found, {name: outcome[name] for name in found}, str(run))
        ]
        worst, numbers, compared = max(worst, *own), numbers + len(own), compared + 1
    print(f"{numbers} numbers of {compared} runs; largest difference {worst[0]:.2g} ({worst[1]})")
    return int(compared == 0 or worst[0] > ALLOWED)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1])))
