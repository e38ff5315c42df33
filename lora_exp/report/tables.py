"""The tables of a report as text: which columns, in which order, with which units and decimals.

A table is its headings and its rows of cells. The gain is never shown without the cost beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from lora_exp.storage.sweep_folder import digits_of
from lora_exp.storage.trade_off import sound

Table = tuple[list[str], list[list[str]]]
NONE = "–"

# Settings that tell runs apart: the first three always, the others where they differ.
ALWAYS = ("digit", "rank", "alpha")
SETTINGS = (
    *ALWAYS,
    *("method", "origin"),
    *("seed", "learning_rate", "steps", "epochs", "batch_size", "replay", "layers", "hidden", "data", "base_seed"),
)


def percent(rate: float) -> str:
    """A rate from 0 to 1 in percent."""
    return f"{100 * rate:.2f}"


def points(difference: float) -> str:
    """A difference of two rates in percentage points, with its sign."""
    return f"{100 * difference:+.2f}"


# Column -> heading (broken where a terminal's narrow table breaks it) and how a number is written.
MEASURES: dict[str, tuple[str, Callable[[float], str]]] = {
    "target_error_before": ("target\nerror\nbefore (%)", percent),
    "target_error": ("target\nerror\nafter (%)", percent),
    "other_error_before": ("other\nerror\nbefore (%)", percent),
    "other_error": ("other\nerror\nafter (%)", percent),
    "forgetting": ("forget-\nting\n(points)", points),
    "parameters_adapter": ("adapter\npara-\nmeters", lambda count: f"{count:,.0f}"),
    "overhead_percent": ("over-\nhead\n(%)", lambda share: f"{share:.3f}"),
}


def differing(frame: pd.DataFrame) -> list[str]:
    """The settings that have more than one value in `frame`; steps that follow from epochs are none."""
    columns = [str(name) for name in frame]
    further = columns[columns.index("epochs") + 1 : columns.index("status")]
    steps = frame["steps"].where(frame["epochs"].isna())
    told = frame.assign(steps=steps)
    return [name for name in (*SETTINGS, *further) if told[name].nunique() > 1]


def runs_table(frame: pd.DataFrame) -> Table:
    """One row a sound run: job, settings, errors before and after, forgetting, parameters."""
    rows = sound(frame)
    names = list(dict.fromkeys([*ALWAYS, *differing(rows)]))
    headings = ["job", *(heading(name) for name in names), *(title for title, _ in MEASURES.values())]
    cells = [
        [str(row["job"]), *(setting_text(row[name]) for name in names), *_measured(row)]
        for row in rows.to_dict("records")
    ]
    return headings, cells


def means_table(frame: pd.DataFrame, by: Sequence[str]) -> Table:
    """Means over the sound runs that share the settings `by`, and how many runs each is of."""
    rows = sound(frame)
    groups: dict[tuple[Any, ...], pd.DataFrame] = {(): rows}
    if by:
        groups = {tuple(keys): group for keys, group in rows.groupby(list(by), sort=False, dropna=False)}
    ordered = sorted(groups, key=lambda keys: [_order(name, key) for name, key in zip(by, keys, strict=True)])
    headings = [*(heading(name) for name in by), "runs", *(title for title, _ in MEASURES.values())]
    cells = [
        [
            *(setting_text(key) for key in keys),
            str(len(groups[keys])),
            *_measured({name: float(groups[keys][name].mean()) for name in MEASURES}),
        ]
        for keys in ordered
    ]
    return headings, cells


def setting_text(value: Any) -> str:
    """A setting as short as a user would type it."""
    if pd.isna(value):
        return NONE
    return f"{value:g}" if isinstance(value, float) else str(value)


def heading(setting: str) -> str:
    """What a setting is called above its column."""
    return setting.replace("_", " ")


def _measured(row: dict[Any, Any]) -> list[str]:
    return [written(row[name]) for name, (_, written) in MEASURES.items()]


def _order(name: str, value: Any) -> Any:
    """What a setting's values sort by: digits by number, other text after the numbers, and no value last."""
    if name == "digit":
        return digits_of(value)
    if pd.isna(value):
        return (2, 0.0, "")
    return (1, 0.0, value) if isinstance(value, str) else (0, float(value), "")
