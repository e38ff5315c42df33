"""The tables of a report as text: their columns, in order, with units and decimals; the gain with its cost beside."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from lora_exp.report.document import Table
from lora_exp.storage.table import finished, target_order
from lora_exp.storage.varied import NONE, heading, label, setting_names, setting_text, varied
from lora_exp.storage.words import adapted, in_a_sentence


def percent(rate: float) -> str:
    """Write a rate from 0 to 1 in percent."""
    return f"{100 * rate:.2f}"


def points(difference: float) -> str:
    """Write a difference of two rates in percentage points, with its sign; zero has a plus."""
    return f"{100 * difference:+z.2f}"


# Column of a measurement -> its heading, with line breaks for narrow tables, and how its numbers are written.
MEASURES: dict[str, tuple[str, Callable[[float], str]]] = {
    "target_error_before": ("target\nerror\nbefore (%)", percent),
    "target_error": ("target\nerror\nafter (%)", percent),
    "other_error_before": ("other\nerror\nbefore (%)", percent),
    "other_error": ("other\nerror\nafter (%)", percent),
    "forgetting": ("forget-\nting\n(points)", points),
    "balanced_accuracy_gained": ("balanced\naccuracy\n(points)", points),
    "beyond_shift": ("beyond\na shift\n(points)", points),
    "parameters_adapter": ("adapter\npara-\nmeters", lambda count: f"{count:,.0f}"),
    "overhead_percent": ("over-\nhead\n(%)", lambda share: f"{share:.3f}"),
}


def runs_table(frame: pd.DataFrame) -> Table:
    """Make a table with one row a finished run: job, settings, errors before and after, forgetting, parameters."""
    rows = finished(frame)
    names = shown_settings(rows)
    headings = ["job", *(heading(name) for name in names), *(title for title, _ in MEASURES.values())]
    cells = [
        [str(row["job"]), *(setting_text(row[name]) for name in names), *_measured(row)]
        for row in rows.to_dict("records")
    ]
    return headings, cells


def setting_labels(runs: pd.DataFrame) -> dict[int, str]:
    """What the setting of each run is called, by job, in the order of the settings."""
    names = setting_columns(runs)
    rows = sorted(runs.to_dict("records"), key=lambda row: [_order(name, row[name]) for name in names])
    return {int(row["job"]): label(row, names) for row in rows}


def setting_columns(runs: pd.DataFrame) -> list[str]:
    """The columns that make a setting: what varies of them; where nothing does, the rank, or a method without one."""
    return setting_names(varied(runs)) or ["rank" if runs["rank"].notna().any() else "method"]


def shown_settings(runs: pd.DataFrame) -> list[str]:
    """The columns of settings that are shown of runs: what varies among them; of like ones the class."""
    return varied(runs) or ["target"]


def means_table(frame: pd.DataFrame, by: Sequence[str]) -> Table:
    """Make a table of means over the finished runs that share the settings `by`, with the number of runs."""
    rows = mean_rows(finished(frame), by, list(MEASURES))
    headings = [*(heading(name) for name in by), "runs", *(title for title, _ in MEASURES.values())]
    cells = [
        [*(setting_text(row[name]) for name in by), str(row["runs"]), *_measured(row)]
        for row in rows.to_dict("records")
    ]
    return headings, cells


def mean_rows(runs: pd.DataFrame, by: Sequence[str], measures: Sequence[str]) -> pd.DataFrame:
    """The means of these measures over the runs that share the settings `by`, with the number of `runs`, in order."""
    groups: dict[tuple[Any, ...], pd.DataFrame] = {(): runs}
    if by:
        groups = {tuple(keys): group for keys, group in runs.groupby(list(by), sort=False, dropna=False)}
    ordered = sorted(groups, key=lambda keys: [_order(name, key) for name, key in zip(by, keys, strict=True)])
    means = [groups[keys][list(measures)].mean() for keys in ordered]
    found = pd.DataFrame(means, columns=list(measures)).reset_index(drop=True)
    found.insert(0, "runs", [len(groups[keys]) for keys in ordered])
    for at, name in enumerate(by):
        found.insert(at, name, pd.Series([keys[at] for keys in ordered], dtype=runs[name].dtype))
    return found


def values_of(column: pd.Series[Any]) -> list[str]:
    """Return the distinct values of a setting's column as text, in order."""
    return [setting_text(value) for value in sorted(column.unique(), key=lambda value: _order(column.name, value))]


def run_text(row: Mapping[Any, Any] | pd.Series[Any]) -> str:
    """Name what a row's run was fine-tuned on, and how: `classes 2 and 7 at rank 4`."""
    kind = row["method"], None if pd.isna(row["rank"]) else row["rank"]
    return f"{in_a_sentence(row['target'])} {adapted(kind)}"


def errors_text(row: Mapping[Any, Any] | pd.Series[Any]) -> str:
    """Write a row's errors before and after: `target 4.00 % -> 1.00 %, others 4.00 % -> 6.00 %`."""
    target = f"target {percent(row['target_error_before'])} % -> {percent(row['target_error'])} %"
    return f"{target}, others {percent(row['other_error_before'])} % -> {percent(row['other_error'])} %"


def _measured(row: dict[Any, Any]) -> list[str]:
    return [NONE if pd.isna(row[name]) else written(row[name]) for name, (_, written) in MEASURES.items()]


def _order(name: Any, value: Any) -> Any:
    """The sort key of a setting's value: classes by number, other text after numbers, no value last."""
    if name == "target":
        return target_order(value)
    if pd.isna(value):
        return (2, 0.0, "")
    return (1, 0.0, value) if isinstance(value, str) else (0, float(value), "")
