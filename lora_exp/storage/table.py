"""The table of a sweep, one row a job: its columns, and the runs that stand out in it.

To add a column, add one line to `COLUMNS`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from lora_exp.config.images import MANY_CLASSES
from lora_exp.measures.class_errors import ClassErrors
from lora_exp.measures.gains import NUMBERS
from lora_exp.storage.result import RunResult
from lora_exp.storage.varied import distinct, task_names, varied

# Types of columns. An absent text is None in every pandas; nullable integers keep 4 a 4 beside a failed job.
TEXT, WHOLE, NUMBER, TRUTH = "object", "Int64", "float64", "boolean"


@dataclass(frozen=True)
class Column:
    """A column: its name, its pandas type, and how to get its value from a result.

    None where it comes from the job, or from `Gains.numbers`.

    A `judgement` means nothing for a diverged run and a value `of_training` is unknown for an imported adapter: their
    rows have None there.
    """

    name: str
    dtype: str
    value: Callable[[RunResult], Any] | None = None
    judgement: bool = False
    of_training: bool = False


def _on_validation(measure: Callable[[ClassErrors, Sequence[int]], float | None], run: RunResult) -> float | None:
    """A measure of the target on the validation images; None without any."""
    after = run.outcome.validation_after
    return None if after is None else measure(after, run.target)


COLUMNS: dict[str, Column] = {
    column.name: column
    for column in (
        Column("job", "int64"),
        Column("sweep", TEXT),
        Column("name", TEXT, lambda run: run.name),
        Column("target", TEXT, lambda run: run.target_text),
        Column("method", TEXT, lambda run: run.spec.adapter.method),
        Column("origin", TEXT, lambda run: "imported" if run.imported else "trained here"),
        Column("rank", WHOLE, lambda run: run.kind[1]),
        Column("alpha", TEXT, lambda run: _alpha(run)),
        Column("scaling", NUMBER, lambda run: run.spec.adapter.scaling),
        Column("seed", WHOLE, lambda run: run.spec.finetune.seed, of_training=True),
        Column("learning_rate", NUMBER, lambda run: run.spec.finetune.learning_rate, of_training=True),
        Column("batch_size", WHOLE, lambda run: run.spec.finetune.batch_size, of_training=True),
        Column("replay", NUMBER, lambda run: run.spec.finetune.replay, of_training=True),
        Column("layers", TEXT, lambda run: ",".join(run.spec.adapter.layers)),
        Column("hidden", TEXT, lambda run: run.spec.model.label),
        Column("data", TEXT, lambda run: _data(run)),
        Column("base_seed", WHOLE, lambda run: run.spec.base.seed),
        Column("steps", WHOLE, lambda run: run.outcome.steps, of_training=True),
        Column("epochs", NUMBER, lambda run: run.spec.finetune.epochs, of_training=True),
        Column("status", TEXT, lambda run: "diverged" if run.diverged else "finished"),
        Column("target_error_before", NUMBER, lambda run: run.outcome.target_error_before, judgement=True),
        Column("target_error", NUMBER, lambda run: run.outcome.target_error, judgement=True),
        Column("other_error_before", NUMBER, lambda run: run.outcome.other_error_before, judgement=True),
        Column("other_error", NUMBER, lambda run: run.outcome.other_error, judgement=True),
        Column("forgetting", NUMBER, lambda run: run.outcome.forgetting, judgement=True),
        Column("accuracy_before", NUMBER, lambda run: run.outcome.before.accuracy, judgement=True),
        Column("accuracy", NUMBER, lambda run: run.outcome.after.accuracy, judgement=True),
        Column("parameters_base", WHOLE, lambda run: run.outcome.parameters_base),
        Column("parameters_adapter", WHOLE, lambda run: run.outcome.parameters_adapter),
        Column("parameters_total", WHOLE, lambda run: run.outcome.parameters_total),
        Column("overhead_percent", NUMBER, lambda run: run.outcome.overhead_percent),
        Column("base_unchanged", TRUTH, lambda run: run.outcome.base_unchanged),
        Column("adapter_off_equals_base", TRUTH, lambda run: run.outcome.adapter_off_equals_base),
        Column("final_loss", NUMBER, lambda run: run.outcome.final_loss, of_training=True),
        Column("target_loss", NUMBER, lambda run: run.outcome.after.loss_of(run.target), judgement=True),
        *(
            Column(f"validation_target_{name}", NUMBER, functools.partial(_on_validation, measure), judgement=True)
            for name, measure in (("loss", ClassErrors.loss_of), ("error", ClassErrors.error_of))
        ),
        *(Column(name, NUMBER, judgement=True) for name in NUMBERS),
        Column("chosen_on", TEXT, lambda run: run.outcome.choice.images, judgement=True),
        Column("chosen_gained", NUMBER, lambda run: run.outcome.choice.gained, judgement=True),
        Column("chosen_forgetting", NUMBER, lambda run: run.outcome.choice.forgetting, judgement=True),
        Column("elsewhere_gained", NUMBER, lambda run: run.outcome.choice.gained_elsewhere, judgement=True),
        Column("elsewhere_forgetting", NUMBER, lambda run: run.outcome.choice.forgetting_elsewhere, judgement=True),
        Column("spec_key", TEXT, lambda run: run.spec.key, of_training=True),
        Column("error", TEXT),
        Column("folder", TEXT),
        Column("overrides", TEXT),
    )
}
SECONDS = "seconds_"  # starts the columns of times, which stand before `spec_key`
# Starts those of the wrongly classified test images of a class by its name, `errors_before_shirt` and `errors_shirt`.
CLASS_ERRORS = "errors_"
# Names in `RunResult.parameters` of settings that have a column of another name, or that follow from columns.
OTHER_NAMES = ("model", "model_hidden", "model_channels", "model_kernel")


def row_of(result: RunResult) -> dict[str, Any]:
    """Return the row of a result: every column that has a value from it, class errors, and `seconds_STAGE`."""
    row: dict[str, Any] = {}
    for name, column in COLUMNS.items():
        if column.value is not None:
            meaningless = (column.judgement and result.diverged) or (column.of_training and result.imported)
            row[name] = None if meaningless else column.value(result)
    if result.outcome.gains is not None:
        row |= result.outcome.gains.numbers()
    return row | _class_errors(result) | {f"{SECONDS}{stage}": seconds for stage, seconds in result.times.items()}


def frame_of(rows: Sequence[Mapping[str, Any]], results: Mapping[int, RunResult]) -> pd.DataFrame:
    """Return rows, one a job, as a table with the types and the order of COLUMNS.

    Further settings in which the `results` (by job) differ stand before `status`, class errors and times before
    `spec_key`.
    """
    further = _further_settings(results)
    known = list(COLUMNS)
    names = dict.fromkeys(name for row in rows for name in row if name not in COLUMNS)
    errors, times = ([name for name in names if name.startswith(start)] for start in (CLASS_ERRORS, SECONDS))
    status, key = known.index("status"), known.index("spec_key")
    columns = {}
    for name in [*known[:status], *further, *known[status:key], *errors, *times, *known[key:]]:
        values = [further[name].get(row["job"]) if name in further else row.get(name) for row in rows]
        if name == "alpha":
            values, dtype = _alphas(values)
        elif name in COLUMNS:
            dtype = COLUMNS[name].dtype
        elif name in errors:
            dtype = WHOLE
        else:
            numbers = name in times or all(value is None or isinstance(value, float) for value in values)
            dtype = NUMBER if numbers else TEXT
        columns[name] = pd.Series(values, dtype=dtype)
    return pd.DataFrame(columns)


def finished(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of finished runs, which have errors to compare; a diverged run is not among them."""
    return frame[frame["status"] == "finished"]


def pareto_front(frame: pd.DataFrame) -> list[int]:
    """The finished jobs that no other of the same task beats in target error and forgetting, as `unbeaten` does."""
    runs = finished(distinct(frame))
    task = task_names(varied(runs))
    groups = runs.groupby(task, sort=False, dropna=False) if task else [((), runs)]
    front: list[int] = []
    for _, own in groups:
        errors = own[["job", "target_error", "forgetting"]].itertuples(index=False)
        front += unbeaten({int(job): values for job, *values in errors})
    return front


def unbeaten(values: Mapping[int, Sequence[float]]) -> list[int]:
    """Return the jobs for which no other has less of one value and no more of any, in the order of their values.

    Of several jobs with the same values, all are in.
    """
    front: list[int] = []
    # A job that beats another comes before it in this order, and is in the front itself or beaten by one that is.
    for job, own in sorted(values.items(), key=lambda item: tuple(item[1])):
        others = [values[other] for other in front]
        if not any(all(a <= b for a, b in zip(other, own, strict=True)) and other != own for other in others):
            front.append(job)
    return front


def target_order(label: str) -> tuple[tuple[int, str], ...]:
    """Return what values of the column `target` sort by: names that are numbers by value, others after them."""
    return tuple((int(name), "") if name.isdecimal() else (10**9, name) for name in label.split(","))


def _class_errors(result: RunResult) -> dict[str, int | None]:
    """The columns of the errors of each class; none where there are many classes."""
    found: dict[str, int | None] = {}
    for label, name in enumerate(result.facts.classes if len(result.facts.classes) <= MANY_CLASSES else ()):
        for start, errors in ((f"{CLASS_ERRORS}before_", result.outcome.before), (CLASS_ERRORS, result.outcome.after)):
            found[start + name] = None if result.diverged else errors.errors[label]
    return found


def _data(result: RunResult) -> str:
    """The data set, and where data of one's own came from: `folder my/pictures`."""
    source = result.provenance.get("data_source")
    return result.spec.data.name if source is None else f"{result.spec.data.name} {source}"


def _alpha(result: RunResult) -> float | str | None:
    adapter = result.spec.adapter
    if adapter.scaling is None:
        return None
    return adapter.alpha if isinstance(adapter.alpha, str) else float(adapter.alpha)


def _alphas(values: list[Any]) -> tuple[list[Any], str]:
    """Return the values and their type: numbers if all are, else text, since parquet has no column of both."""
    if any(isinstance(value, str) for value in values):
        return [f"{v:g}" if isinstance(v, float) else v for v in values], TEXT
    return values, NUMBER


def _further_settings(results: Mapping[int, RunResult]) -> dict[str, dict[int, Any]]:
    """Return settings without a column in which the results differ: name -> job -> number or text."""
    parameters = {job: result.parameters() for job, result in results.items()}
    found: dict[str, dict[int, Any]] = {}
    for name in dict.fromkeys(name for own in parameters.values() for name in own):
        values: dict[int, Any] = {job: own[name] for job, own in parameters.items() if name in own}
        if name not in COLUMNS and name not in OTHER_NAMES and len(set(values.values())) > 1:
            with contextlib.suppress(ValueError):
                values = {job: float(value) for job, value in values.items()}
            found[name] = values
    return found
