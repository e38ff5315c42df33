"""What was gained, as text: every measure before and after, McNemar's tests, and the moved threshold beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from lora_exp.measures.gains import Gains, beyond_words
from lora_exp.report.document import Block, Grid, Section
from lora_exp.report.tables import percent, points
from lora_exp.storage.result import RunResult
from lora_exp.storage.table import finished
from lora_exp.storage.varied import NONE, distinct

Row = Mapping[Any, Any]


@dataclass(frozen=True)
class Measure:
    """A line of the table: its title and its column, which `<column>_before` belongs to.

    `change` is the column of its change, if it has an interval. `shifted` gives a moved threshold's value, if known.
    """

    title: str
    column: str
    change: str = ""
    shifted: Callable[[Row], float] | None = None


MEASURES = (
    Measure("accuracy", "accuracy", "accuracy_gained", lambda row: row["shift_accuracy"]),
    Measure(
        "balanced accuracy",
        "balanced_accuracy",
        "balanced_accuracy_gained",
        lambda row: row["shift_balanced_accuracy"],
    ),
    Measure("error on the target", "target_error", "target_error_change", lambda row: 1 - row["shift_recall"]),
    Measure(
        "error on the other classes (change: forgetting)",
        "other_error",
        "forgetting",
        lambda row: row["other_error_before"] + row["shift_forgetting"],
    ),
    Measure("precision of the target", "precision"),
    Measure("recall of the target", "recall", shifted=lambda row: row["shift_recall"]),
    Measure("F1 of the target", "f1"),
    Measure("AUROC of the target", "auroc"),
    Measure("worst class error", "worst_class_error"),
    Measure("share predicted as the target", "predicted_share"),
    Measure("expected calibration error", "calibration_error"),
)
TITLES = tuple(measure.title for measure in MEASURES)
BEFORE_AFTER = ("measure", "before (%)", "after (%)", "change (points)")
INTERVAL = "95 % interval"
SHIFTED = ("moved threshold (%)", "its change (points)")
# Of the table of one run, that of the means, McNemar's tests, and the moved threshold.
HEADINGS = (*BEFORE_AFTER, INTERVAL, *SHIFTED)
MEANS_HEADINGS = (*BEFORE_AFTER, *SHIFTED)
TESTS_HEADINGS = ("test images", "mended", "broken", "p (McNemar, exact)")
TESTS_TITLES = ("all", "of the target")
SHIFT_HEADINGS = ("constant on the target's logit", "its forgetting minus the run's (points)", INTERVAL)
SHIFT_NOTE = (
    "The moved threshold is the base with one constant added to the target's logit, which gives it the run's own "
    "recall. It is chosen on validation images, or, without them, on one half of the test images for the other."
)
NO_GAINS = "An older version wrote this result: it has no measures beyond the errors."


def gained_section(frame: pd.DataFrame, results: Mapping[int, RunResult]) -> list[Section]:
    """The means of every measure before and after, or those of the only run; no section where no run has measures."""
    runs = finished(distinct(frame))
    measured = runs[runs["balanced_accuracy_gained"].notna()]
    if measured.empty:
        return []
    if len(runs) == 1:
        [row] = measured.to_dict("records")
        gains = results[int(row["job"])].outcome.gains
        assert gains is not None, "its columns come from them"
        return [Section("What was gained", _blocks(row, gains), folded=True)]
    matched = measured[measured["shift_recall"].notna()]
    means, shifted = (own.select_dtypes("float64").mean().to_dict() for own in (measured, matched))
    rows = [[measure.title, *_change(measure, means), *_shifted(measure, shifted)] for measure in MEASURES]
    note = f"{_runs_text(len(runs), len(measured), len(matched))} {SHIFT_NOTE}"
    return [Section("What was gained", [note, Grid((list(MEANS_HEADINGS), rows), words=1)], folded=True)]


def _blocks(row: Row, gains: Gains) -> list[Block]:
    """All that is known of one run."""
    measures = [[title, *cells] for title, cells in zip(TITLES, run_cells(row), strict=True)]
    tests = [[title, *cells] for title, cells in zip(TESTS_TITLES, mcnemar_cells(gains), strict=True)]
    shift = shift_cells(gains)
    return [
        f"{said_of(gains)} {SHIFT_NOTE}",
        Grid((list(HEADINGS), measures), words=1),
        *([] if shift is None else [Grid((list(SHIFT_HEADINGS), [shift]), words=1)]),
        Grid((list(TESTS_HEADINGS), tests), words=1),
    ]


def run_cells(row: Row) -> list[list[str]]:
    """The cells of a finished run with measures, below HEADINGS without the first; a list for each of TITLES."""
    return [[*_change(own, row), _interval(own, row), *_shifted(own, row)] for own in MEASURES]


def mcnemar_cells(gains: Gains) -> list[list[str]]:
    """The cells of McNemar's tests, below TESTS_HEADINGS without the first; a list for each of TESTS_TITLES."""
    tests = (gains.all_images, gains.target_images)
    return [[f"{test.mended:,}", f"{test.broken:,}", f"{test.chance:.2g}"] for test in tests]


def said_of(gains: Gains) -> str:
    """How the run compares with a moved threshold, as a sentence."""
    words = beyond_words(gains.beyond)
    return f"{words[0].upper()}{words[1:]}."


def shift_cells(gains: Gains) -> list[str] | None:
    """The cells of the moved threshold, below SHIFT_HEADINGS; None where none has the run's recall."""
    if gains.shift is None:
        return None
    beyond = gains.shift.beyond
    constants = " and ".join(f"{constant:+.3f}" for constant in gains.shift.constants)
    return [constants, points(beyond.value), f"{points(beyond.low)} to {points(beyond.high)}"]


def _change(measure: Measure, row: Row) -> list[str]:
    before, after = row[f"{measure.column}_before"], row[measure.column]
    change = row[measure.change] if measure.change else after - before
    return [_written(before, percent), _written(after, percent), _written(change, points)]


def _interval(measure: Measure, row: Row) -> str:
    if not measure.change:
        return NONE
    low, high = (row[f"{measure.change}_{end}"] for end in ("low", "high"))
    return f"{points(low)} to {points(high)}"


def _shifted(measure: Measure, row: Row) -> list[str]:
    if measure.shifted is None:
        return [NONE, NONE]
    value = measure.shifted(row)
    return [_written(value, percent), _written(value - row[f"{measure.column}_before"], points)]


def _written(value: float, write: Callable[[float], str]) -> str:
    return NONE if pd.isna(value) else write(value)


def _runs_text(runs: int, measured: int, matched: int) -> str:
    """Say over which runs the means are."""
    some = f" with measures, of {runs} (an older version wrote the others)" if measured < runs else ""
    few = f", those of the moved threshold over the {matched} whose recall one has" if matched < measured else ""
    return f"Means over the {measured} finished runs{some}{few}."
