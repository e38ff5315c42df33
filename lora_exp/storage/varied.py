"""What varies among the runs of a sweep, which is what tables, charts and names show of them.

A *task* is what the runs are judged by: the class, and the data set and the classifier where these vary. Errors of
different tasks are not compared. A *setting* is all else but the seeds, which only repeat it.
"""

from __future__ import annotations

import contextlib
import functools
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from lora_exp.storage.words import in_a_sentence

NONE = "–"
# Columns of settings in the order of tables; settings without a column of their own follow (`table.frame_of`).
SETTINGS = (
    *("target", "method", "rank", "alpha", "origin", "learning_rate", "steps", "epochs", "batch_size", "replay"),
    *("layers", "hidden", "data", "seed", "base_seed"),
)
SEEDS = ("seed", "base_seed")
TASK, TASK_GROUPS = ("target", "hidden", "data"), ("model_", "data_", "base_")
# Columns whose heading is another word, and those whose values say enough without it.
HEADINGS = {"hidden": "model", "target": "class"}
WITHOUT_NAME = ("method", "data", "origin")
# Keys whose columns have another name than `GROUP_KEY`, or `KEY` of `adapter` and `finetune`.
COLUMNS = {"finetune.digit": "target", "adapter": "method", "model": "hidden", "model.hidden": "hidden"}
COLUMNS |= {"data.name": "data"}
RESULTS = ("finished", "diverged")


def distinct(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows without repeats of a spec: a job that was asked for twice counts once. Unknown specs all count."""
    return frame[~frame.duplicated("spec_key") | frame["spec_key"].isna()]


def varied(frame: pd.DataFrame) -> list[str]:
    """The settings with more than one value in `frame`.

    `steps` do not count where `epochs` set them, nor do seeds of fine-tuning that are those of the bases.
    """
    columns = [str(name) for name in frame]
    further = columns[columns.index("epochs") + 1 : columns.index("status")]
    given = frame.assign(steps=frame["steps"].where(frame["epochs"].isna()))
    names = [name for name in (*SETTINGS, *further) if given[name].nunique() > 1]
    if "seed" in names and given["seed"].equals(given["base_seed"]):
        names.remove("seed")
    return names


def asked(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows, with what varies taken from their overrides where a job has no result to tell it.

    A stopped job's steps are those after which halving stopped it, and no setting.
    """
    without = ~frame["status"].isin(RESULTS)
    if not without.any():
        return frame
    filled = frame.copy()
    filled["steps"] = filled["steps"].mask(without)
    given = {place: overrides_by_key(shlex.split(text)) for place, text in frame["overrides"].dropna().items()}
    for key in dict.fromkeys(key for own in given.values() for key in own):
        column = column_of(key)
        values = [own.get(key) for own in given.values()]  # a grid gives each key to every job
        if column not in SETTINGS or column == "hidden" or None in values or len(set(values)) < 2:
            continue
        is_number = pd.api.types.is_numeric_dtype(filled[column])
        for place in frame.index[without & filled[column].isna()]:
            value, _ = value_of(given.get(place, {}).get(key, ""))
            if not is_number or not isinstance(value, str):
                filled.loc[place, column] = value if is_number else str(value) or None
    return filled


def overrides_by_key(overrides: Sequence[str]) -> dict[str, str]:
    """The text of each override by its key; the last of a key counts."""
    parts = (override.lstrip("+~").partition("=") for override in overrides)
    return {key: text for key, equals, text in parts if equals}


def column_of(key: str) -> str:
    """The column of the table of a sweep that holds the values of a key."""
    group, dot, name = key.partition(".")
    return COLUMNS.get(key, name if dot and group in ("adapter", "finetune") else key.replace(".", "_"))


def value_of(text: str) -> tuple[Any, bool]:
    """What an override gives, as `label` writes it, and whether it then is as exact as the override."""
    with contextlib.suppress(ValueError):
        return int(text), True
    with contextlib.suppress(ValueError):
        value = float(text)
        return value, float(f"{value:g}") == value
    return text.strip("[]{}'\" ").replace(", ", ","), True


def having(rows: pd.DataFrame, values: Mapping[str, Any]) -> pd.DataFrame:
    """The rows with these values in these columns; an absent value equals another."""
    same = functools.reduce(
        lambda kept, item: kept & _equal(rows[item[0]], item[1]), values.items(), pd.Series(True, index=rows.index)
    )
    return rows[same]


def _equal(column: pd.Series[Any], value: Any) -> pd.Series[bool]:
    return column.isna() if pd.isna(value) else column.eq(value).fillna(False).astype(bool)


def is_of_task(name: str) -> bool:
    """Whether a setting's column is part of the task."""
    return name in TASK or (name.startswith(TASK_GROUPS) and name not in SEEDS)


def task_names(names: Sequence[str]) -> list[str]:
    """Those of the varied columns that make tasks."""
    return [name for name in names if is_of_task(name)]


def setting_names(names: Sequence[str]) -> list[str]:
    """Those of the varied columns that make settings."""
    return [name for name in names if not is_of_task(name) and name not in SEEDS]


def label(row: Mapping[Any, Any], names: Sequence[str]) -> str:
    """What a run, or a setting, is called among others that differ in `names`: `class 3, dora, rank 4`."""
    return ", ".join(value_label(name, row[name]) for name in names if not pd.isna(row[name]))


def value_label(name: str, value: Any) -> str:
    """A setting's value with its name, where it needs one: `rank 4`, `dora`, `class 3`, `shirt`."""
    if name == "target":
        return in_a_sentence(str(value))
    text = setting_text(value)
    return text if name in WITHOUT_NAME else f"{heading(name)} {text}"


def setting_text(value: Any) -> str:
    """Write a setting as a user would type it."""
    if pd.isna(value):
        return NONE
    return f"{value:g}" if isinstance(value, float) else str(value)


def heading(setting: str) -> str:
    """Return the heading of a setting's column."""
    return HEADINGS.get(setting, setting).replace("_", " ")
