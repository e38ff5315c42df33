"""What a run of a sweep is called in MLflow: by what varies among the jobs, in the words of `storage.varied`.

A run is recorded before the others have ended. So its name follows from the overrides in `sweep.json` and its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_exp.storage.varied import SETTINGS, column_of, heading, label, overrides_by_key, value_of

LIMIT = 200  # characters; MLflow takes 250


def varied_keys(about: Mapping[str, Any]) -> list[str]:
    """The keys, and groups, in which the jobs of a sweep differ; `about` is the content of `sweep.json`.

    Those of a search are its space, which is known before its jobs are.
    """
    if (search := about.get("search")) is not None:
        return sorted(search.get("space", ()), key=_place)
    values: dict[str, set[str]] = {}
    for overrides in about["jobs"]:
        for key, text in overrides_by_key(overrides).items():
            values.setdefault(key, set()).add(text)
    return sorted((key for key, own in values.items() if len(own) > 1), key=_place)


def run_name(keys: Sequence[str], overrides: Sequence[str], folder: Path, target: str | None = None) -> str | None:
    """`class 3, dora, rank 4`: what the job in `folder` is called among others that differ in `keys`.

    None where they don't differ. Other overrides have another name: where a number was rounded, or the name was cut, it
    ends with the job's number. `target` are the names of the classes, where they are known.
    """
    given = overrides_by_key(overrides)
    row: dict[str, Any] = {}
    is_exact = True
    for key in sorted(keys, key=_place):
        if key in given:
            column = column_of(key)
            value, is_same = value_of(given[key])
            is_exact = is_exact and is_same
            row[key if column in row else column] = target if column == "target" and target else value
    if not row:
        return None
    name = label(row, list(row))
    if len(name) > LIMIT:
        name, is_exact = f"{name[:LIMIT]}…", False
    return name if is_exact else f"{name}, job {folder.name}"


def varied_words(keys: Sequence[str]) -> str:
    """What varies, as the table of sweeps shows it: `class, method, rank`."""
    return ", ".join(dict.fromkeys(heading(column_of(key)) for key in keys))


def _place(key: str) -> int:
    """Where a key's value stands in a name."""
    column = column_of(key)
    return SETTINGS.index(column) if column in SETTINGS else len(SETTINGS)
