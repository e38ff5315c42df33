"""What a run yields, and its JSON form `result.json`.

Numbers are split by what they promise: `Outcome` is the same bits each time a spec is run on the same kind of
machine; times and provenance tell of this one run.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_exp.config.spec import AdapterSpec, RunSpec, from_dict
from lora_exp.errors import LoraExpError

RESULT, ADAPTER, PREDICTIONS = "result.json", "adapter.safetensors", "predictions.safetensors"
# Provenance of an adapter that was trained elsewhere: the folder it came from.
IMPORTED_FROM = "imported_from"
# What is not known of such an adapter: parts of its spec, and columns of its row.
UNKNOWN_SETTINGS = {
    "adapter": ("init", "init_std", "learning_rate_ratio"),
    "finetune": ("steps", "epochs", "batch_size", "learning_rate", "seed", "replay"),
}
UNKNOWN_COLUMNS = ("seed", "learning_rate", "batch_size", "replay", "steps", "epochs", "final_loss", "spec_key")


@dataclass(frozen=True)
class ClassErrors:
    """Errors of a classifier on a labelled split; `confusion[true][predicted]` counts images.

    `error_rates` are shares of each class's images, 0 for a class without images.
    """

    accuracy: float
    loss: float
    counts: list[int]
    errors: list[int]
    error_rates: list[float]
    confusion: list[list[int]]

    @staticmethod
    def of(confusion: list[list[int]], loss: float) -> ClassErrors:
        """Derive every number from the confusion counts and the mean loss."""
        counts = [sum(row) for row in confusion]
        errors = [count - row[digit] for digit, (row, count) in enumerate(zip(confusion, counts, strict=True))]
        rates = [wrong / count if count else 0.0 for wrong, count in zip(errors, counts, strict=True)]
        images = sum(counts)
        return ClassErrors((images - sum(errors)) / images, loss, counts, errors, rates, confusion)

    def error_of(self, classes: Sequence[int]) -> float:
        """Mean error rate of `classes`, with equal weight for each class."""
        return sum(self.error_rates[digit] for digit in classes) / len(classes)


@dataclass(frozen=True)
class Outcome:
    """The numbers of a run. Errors are rates from 0 to 1; several classes count as the mean of their rates.

    `forgetting` is the rise of the error on the classes that were not fine-tuned on; `layers` has one row a
    layer with its shape and parameter counts; an imported adapter has 0 `steps` and no losses; `diverged_at` is the
    step (from 1) of the first loss that was not finite, or after which it was not; None for a sound run.
    """

    before: ClassErrors
    after: ClassErrors
    target_error_before: float
    target_error: float
    other_error_before: float
    other_error: float
    forgetting: float
    parameters_base: int
    parameters_adapter: int
    parameters_total: int
    overhead_percent: float
    layers: list[dict[str, Any]]
    steps: int
    loss_curve: list[float]
    base_sha256_before: str
    base_sha256_after: str
    base_unchanged: bool
    adapter_off_equals_base: bool
    adapter_sha256: str
    diverged_at: int | None = None
    validation_before: ClassErrors | None = None
    validation_after: ClassErrors | None = None


@dataclass(frozen=True)
class RunResult:
    """A finished run: what was asked, what came out, how long it took, and where it comes from.

    `times` are seconds: `base_training` (of the base, when it was trained, perhaps by an earlier run),
    `fine_tuning` and `evaluation` (this job's share of its pack). `provenance` holds versions, commit, data
    hash, device, threads and the promise about bits.
    """

    spec: RunSpec
    outcome: Outcome
    times: dict[str, float] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def imported(self) -> bool:
        """Whether the adapter was trained elsewhere: nothing is known of its training."""
        return IMPORTED_FROM in self.provenance

    @property
    def name(self) -> str:
        """That of the spec; `digit-9_lora_rank-4_alpha-1_imported` for an imported adapter."""
        return f"{self.spec.name.rpartition('_seed-')[0]}_imported" if self.imported else self.spec.name

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """The spec by group and key, without what isn't known of an imported adapter."""
        unknown = UNKNOWN_SETTINGS if self.imported else {}
        return {
            group: {name: value for name, value in own.items() if name not in unknown.get(group, ())}
            for group, own in dataclasses.asdict(self.spec).items()
        }

    @property
    def diverged(self) -> bool:
        """Whether the loss stopped being finite: such a run has no errors worth comparing."""
        return self.outcome.diverged_at is not None

    def to_json(self) -> str:
        """Readable JSON; losses that are not finite are written as strings, since JSON has no NaN."""
        return json.dumps(_plain(dataclasses.asdict(self)), indent=1, allow_nan=False, ensure_ascii=False)

    def write(self, folder: Path) -> None:
        """Write `result.json` into `folder`."""
        (folder / RESULT).write_text(self.to_json() + "\n", encoding="utf-8")

    def row(self) -> dict[str, Any]:
        """One flat row for tables: setting, main numbers, errors of every digit before and after, times."""
        spec, out = self.spec, self.outcome
        row: dict[str, Any] = {
            "name": self.name,
            "digit": ",".join(str(digit) for digit in spec.finetune.digit),
            "method": spec.adapter.method,
            "origin": "imported" if self.imported else "trained here",
            "rank": spec.adapter.rank if spec.adapter.scaling is not None else None,
            "alpha": _alpha(spec.adapter),
            "scaling": spec.adapter.scaling,
            "seed": spec.finetune.seed,
            "learning_rate": spec.finetune.learning_rate,
            "batch_size": spec.finetune.batch_size,
            "replay": spec.finetune.replay,
            "layers": ",".join(spec.adapter.layers),
            "hidden": spec.model.label,
            "data": spec.data.name,
            "base_seed": spec.base.seed,
            "steps": out.steps,
            "epochs": spec.finetune.epochs,
            "status": "diverged" if self.diverged else "finished",
            "target_error_before": out.target_error_before,
            "target_error": out.target_error,
            "other_error_before": out.other_error_before,
            "other_error": out.other_error,
            "forgetting": out.forgetting,
            "accuracy_before": out.before.accuracy,
            "accuracy": out.after.accuracy,
            "parameters_base": out.parameters_base,
            "parameters_adapter": out.parameters_adapter,
            "parameters_total": out.parameters_total,
            "overhead_percent": out.overhead_percent,
            "base_unchanged": out.base_unchanged,
            "adapter_off_equals_base": out.adapter_off_equals_base,
            "final_loss": out.loss_curve[-1] if out.loss_curve else None,
        }
        for digit in range(len(out.before.errors)):
            row[f"errors_before_{digit}"] = out.before.errors[digit]
            row[f"errors_{digit}"] = out.after.errors[digit]
        row.update({f"seconds_{stage}": seconds for stage, seconds in self.times.items()})
        row["spec_key"] = spec.key
        return row | (dict.fromkeys(UNKNOWN_COLUMNS) if self.imported else {})


def from_json(text: str) -> RunResult:
    """The result that `to_json` wrote.

    Raises ValueError or KeyError or TypeError when the text is not such a result.
    """
    values = json.loads(text)
    outcome = dict(values["outcome"])
    for name in ("before", "after", "validation_before", "validation_after"):
        if outcome.get(name) is not None:
            outcome[name] = ClassErrors(**_floats(outcome[name], ("loss",)))
    outcome["loss_curve"] = [float(loss) for loss in outcome["loss_curve"]]
    return RunResult(from_dict(values["spec"]), Outcome(**outcome), values["times"], values["provenance"])


def read(folder: Path) -> RunResult:
    """The result stored in a run's folder."""
    return from_json((folder / RESULT).read_text(encoding="utf-8"))


def read_run(folder: Path) -> RunResult:
    """The result of the run (or the job of a sweep) in `folder`. Raises LoraExpError when there is none."""
    try:
        return read(folder)
    except FileNotFoundError as error:
        raise LoraExpError(f"{folder}: holds no {RESULT}, so it is not the folder of a finished run") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LoraExpError(f"{folder / RESULT}: can't be read ({' '.join(repr(error).split())})") from error


def _alpha(spec: AdapterSpec) -> float | str | None:
    if spec.scaling is None:
        return None
    return spec.alpha if isinstance(spec.alpha, str) else float(spec.alpha)


def _floats(values: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: float(value) if name in names else value for name, value in values.items()}


def _plain(value: Any) -> Any:
    """Floats that JSON can't hold become the strings 'nan', 'inf', '-inf', which float() reads back."""
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value
