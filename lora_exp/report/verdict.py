"""What a sweep says in a few sentences: did anything beat doing nothing and a moved threshold, and at what price?"""

from __future__ import annotations

from typing import Any

import pandas as pd

from lora_exp.measures.gains import Estimate, beyond_words
from lora_exp.report.tables import percent, points, run_text
from lora_exp.storage.table import finished
from lora_exp.storage.varied import distinct


def verdict(frame: pd.DataFrame) -> str:
    """Say what fine-tuning did to all classes together, to the target and to the others, in one paragraph."""
    frame = distinct(frame)
    runs = finished(frame)
    others = frame["status"][frame["status"] != "finished"].value_counts()
    rest = ", ".join(f"{count} {status}" for status, count in others.items())
    if runs.empty:
        return f"No finished run among {len(frame)} ({rest}): there are no errors to compare."
    means = runs[["target_error_before", "target_error", "other_error_before", "other_error"]].mean()
    target_before, target, other_before, other = map(percent, means)
    errors = (
        f"error on the target {target_before} % -> {target} %, on the other classes {other_before} % -> {other} % "
        f"(forgetting {points(runs['forgetting'].mean())} points)"
    )
    besides = f" ({rest} besides)" if rest else ""
    measured = runs[runs["balanced_accuracy_gained"].notna()]
    if len(runs) == 1:
        text = run_text(runs.iloc[0])
        standing = "" if measured.empty else f": {_one(measured.iloc[0])}"
        return f"{text[0].upper()}{text[1:]}{besides}{standing}; {errors}."
    standing = "" if measured.empty else f"{_many(measured)} "
    return f"{standing}Mean of {len(runs)} finished runs{besides}: {errors}.{_mixed(runs)}"


def _mixed(runs: pd.DataFrame) -> str:
    """A warning where the runs are on several data sets, whose errors are hardly to be compared."""
    sets = runs["data"].unique()
    if len(sets) == 1:
        return ""
    return f" They are on {len(sets)} data sets ({', '.join(sets)}): the means go across all of them."


def _one(row: Any) -> str:
    before, after = percent(row["balanced_accuracy_before"]), percent(row["balanced_accuracy"])
    than = {1: "better than doing nothing", -1: "worse than doing nothing", 0: "no difference from doing nothing shown"}
    sign = int(row["balanced_accuracy_gained_low"] > 0) - int(row["balanced_accuracy_gained_high"] < 0)
    numbers = [row[f"beyond_shift{part}"] for part in ("", "_low", "_high")]
    beyond = beyond_words(None if pd.isna(numbers[0]) else Estimate(*numbers))
    return f"balanced accuracy {before} % -> {after} %, {than[sign]}; {beyond}"


def _many(runs: pd.DataFrame) -> str:
    """The standing of several runs, each by its interval over images."""
    gained = _signs(runs, "balanced_accuracy_gained")
    before, after = (percent(runs[name].mean()) for name in ("balanced_accuracy_before", "balanced_accuracy"))
    change, count = f"balanced accuracy {before} % -> {after} % in the mean", len(runs)
    better, worse = (gained > 0).sum(), (gained < 0).sum()
    if worse == count:
        first = f"Every run is worse than doing nothing: {change}."
    elif better == 0:
        besides = f", {worse} of {count} {_are(worse)} worse" if worse else ""
        first = f"No run is better than doing nothing{besides}: {change}."
    else:
        besides = f", {worse} {_are(worse)} worse" if worse else ""
        first = f"{better} of {count} runs {_are(better)} better than doing nothing{besides}: {change}."
    matched = runs[runs["beyond_shift"].notna()]
    beyond = _signs(matched, "beyond_shift")
    less, more = (beyond > 0).sum(), (beyond < 0).sum()
    if matched.empty:
        return first
    if less == 0:
        besides = f"; {more} {_forget(more)} more" if more else ""
        second = f"None forgets less than a moved threshold of the same recall{besides}."
    else:
        besides = f", {more} more" if more else ""
        second = f"{less} of {len(matched)} {_forget(less)} less than a moved threshold of the same recall{besides}."
    return f"{first} {second}"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _forget(count: int) -> str:
    return "forgets" if count == 1 else "forget"


def _signs(runs: pd.DataFrame, name: str) -> pd.Series[int]:
    """1 where the interval of a change lies above zero, -1 where it lies below, else 0."""
    return (runs[f"{name}_low"] > 0).astype(int) - (runs[f"{name}_high"] < 0).astype(int)
