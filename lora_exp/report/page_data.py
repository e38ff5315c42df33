"""The data of the interactive page: one row a finished run, with its settings, measures, loss curve and images.

Numbers are those of the table; their text comes from `tables.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lora_exp.measures.class_errors import ClassErrors
from lora_exp.measures.intervals import MOST_VALUES, t_quantile
from lora_exp.measures.paired import wilson
from lora_exp.report import gained
from lora_exp.report.importance import importances
from lora_exp.report.page_images import CHANGES, gallery, sprite
from lora_exp.report.shown import folded, is_dark, shown_classes, shown_names, thumbnails
from lora_exp.report.tables import MEASURES, runs_table, setting_labels, shown_settings, values_of
from lora_exp.storage.recommendation import representative
from lora_exp.storage.result import RunResult
from lora_exp.storage.sweep_file import run_command
from lora_exp.storage.sweep_folder import Sweep
from lora_exp.storage.table import finished
from lora_exp.storage.varied import (
    SEEDS,
    asked,
    distinct,
    heading,
    is_of_task,
    label,
    setting_names,
    setting_text,
    varied,
)
from lora_exp.storage.words import KEEP

FEW_RUNS = 100  # with more, the page holds less of each, so that it stays small and fast
CURVE_POINTS = {True: 60, False: 25}  # of a loss curve, with few or many runs
IMAGES = {True: (14, 28), False: (8, 12)}  # mended and broken images of a run, with few or many runs
MOST_SETTINGS = 60  # of the key that holds a whole setting; more are no axis to read
SETTING = "setting"


@dataclass(frozen=True)
class Charted:
    """A measure that charts can show: its unit, and whether more (1) or less (-1) of it is better; 0 for neither."""

    title: str
    unit: str
    better: int


CHARTED = {
    "balanced_accuracy_gained": Charted("balanced accuracy gained", "points", 1),
    "forgetting": Charted("forgetting", "points", -1),
    "target_error": Charted("error on the target", "%", -1),
    "other_error": Charted("error on the other classes", "%", -1),
    "beyond_shift": Charted("forgetting below a moved threshold", "points", 1),
    "balanced_accuracy": Charted("balanced accuracy", "%", 1),
    "accuracy": Charted("accuracy", "%", 1),
    "worst_class_error": Charted("worst class error", "%", -1),
    "auroc": Charted("AUROC of the target", "%", 1),
    "f1": Charted("F1 of the target", "%", 1),
    "calibration_error": Charted("calibration error", "%", -1),
    "final_loss": Charted("last loss", "nats", -1),
    "parameters_adapter": Charted("adapter parameters", "", -1),
    "overhead_percent": Charted("overhead", "% of the base", -1),
    "seconds_fine_tuning": Charted("fine-tuning", "s", -1),
}
EXPLAINED = ("balanced_accuracy_gained", "forgetting", "target_error")
# Of the recommendation, besides those of charts.
FURTHER = (
    *("target_error_before", "other_error_before", "balanced_accuracy_before"),
    *("chosen_gained", "chosen_forgetting", "elsewhere_gained", "elsewhere_forgetting"),
)


def page_data(sweep: Sweep, pictures: NDArray[np.uint8], labels: NDArray[Any]) -> dict[str, Any]:
    """Collect the data; `pictures` (uint8 [N, C, H, W]) and `labels` [N] are the test images of the evaluation."""
    runs = finished(sweep.frame)
    names = shown_settings(runs)
    tried = [] if runs.empty else varied(asked(distinct(sweep.frame)))
    fixed = [name for name in setting_names(tried) if runs[name].nunique() == 1 and name not in names]
    every = [name for name in tried if name in (*names, *fixed)] or names
    whole = setting_labels(runs) if len(setting_names(names)) > 1 else {}
    if len(set(whole.values())) > MOST_SETTINGS:
        whole = {}
    results = {int(job): sweep.results[int(job)] for job in runs["job"]}
    bases = {result.outcome.base_sha256_before: result for result in results.values()}
    charts = {
        sha256: _charted([own for own in results.values() if own.outcome.base_sha256_before == sha256])
        for sha256 in bases
    }
    few = len(runs) <= FEW_RUNS
    galleries = {job: gallery(sweep, job, labels, IMAGES[few]) for job in results}
    shown = sorted({image[0] for own in galleries.values() for part in CHANGES for image in own.get(part, [])})
    classes = next(iter(results.values())).facts.classes if results else ()
    cells = {int(row[0]): row for row in runs_table(sweep.frame)[1]}
    numbers = [name for name in CHARTED if runs[name].notna().any()] if not runs.empty else []
    once = set(distinct(runs)["job"])
    rows = [
        {
            "job": job,
            "label": label(row, names),
            "repeats": job not in once,
            "measured": cells[job][-len(MEASURES) :],
            "command": run_command(row["overrides"]),
            "settings": {name: setting_text(row[name]) for name in every} | ({SETTING: whole[job]} if whole else {}),
            "target": row["target"],
            "seeds": [None if pd.isna(row[name]) else int(row[name]) for name in SEEDS],
            "numbers": {name: _number(row[name]) for name in (*numbers, *FURTHER)},
            **_gains(row, result),
            "base": list(bases).index(base),
            "targets": [at for at, shown_label in enumerate(charts[base]) if shown_label in result.target],
            "after": _class_errors(result.outcome.after, charts[base]),
            "losses": _thinned(result.outcome.loss_curve, CURVE_POINTS[few]),
            "gallery": galleries[job],
        }
        for row, (job, result) in zip(runs.to_dict("records"), results.items(), strict=True)
        for base in [result.outcome.base_sha256_before]
    ]
    return {
        "settings": _settings(runs, every) | ({SETTING: _whole(whole)} if whole else {}),
        "charted": {name: vars(CHARTED[name]) for name in numbers},
        "measures": list(MEASURES),
        "gains": {
            "measures": [gained.HEADINGS, gained.TITLES],
            "tests": [gained.TESTS_HEADINGS, gained.TESTS_TITLES],
            "shift": gained.SHIFT_HEADINGS,
            "note": gained.SHIFT_NOTE,
            "none": gained.NO_GAINS,
        },
        "runs": rows,
        "lost": _lost(sweep.frame, every),
        "fixed": fixed,  # settings of which only one value has a result
        "quantiles": [t_quantile(count) for count in range(2, MOST_VALUES + 1)],
        "keep": KEEP,
        "importance": {
            name: {"explained": one.explained, "keys": [[heading(key), *own] for key, own in one.keys.items()]}
            for name, one in importances(sweep.frame, EXPLAINED).items()
        },
        "bases": [
            {**_class_errors(own.outcome.before, charts[base]), "names": shown_names(own.facts.classes, charts[base])}
            for base, own in bases.items()
        ],
        "wilson": wilson_intervals(
            [
                folded(errors, charts[r.outcome.base_sha256_before])[:2]
                for r in results.values()
                for errors in (r.outcome.before, r.outcome.after)
            ]
        ),
        "chosen": representative(sweep.frame),
        "sprite": sprite(thumbnails(pictures[shown], is_dark(pictures))) if shown else "",
        "images": {str(image): [place, classes[labels[image]]] for place, image in enumerate(shown)},
    }


def _settings(runs: pd.DataFrame, names: Sequence[str]) -> dict[str, Any]:
    """Of each shown setting: its title, its values as text in their order, whether they are numbers, and its part."""
    return {
        name: {
            "title": heading(name),
            "values": values_of(runs[name]),
            "numeric": name != "target" and pd.api.types.is_numeric_dtype(runs[name]),
            "part": "seed" if name in SEEDS else "task" if is_of_task(name) else "setting",
        }
        for name in names
    }


def _whole(labels: Mapping[int, str]) -> dict[str, Any]:
    """The key whose values are whole settings."""
    return {"title": SETTING, "values": list(dict.fromkeys(labels.values())), "numeric": False, "part": "whole"}


def _lost(frame: pd.DataFrame, names: Sequence[str]) -> list[dict[str, str]]:
    """The settings of the jobs that ended without errors to compare, but for those that halving stopped."""
    rows = asked(distinct(frame))
    rows = rows[~rows["status"].isin(["finished", "stopped"])]
    return [{name: setting_text(row[name]) for name in names} for row in rows.to_dict("records")]


def _number(value: Any) -> float | None:
    return None if pd.isna(value) else float(value)


def _gains(row: Mapping[Any, Any], result: RunResult) -> dict[str, Any]:
    """How the run compares with a moved threshold, and the cells of its tables."""
    gains = result.outcome.gains
    if gains is None:
        return {"said": "", "gains": None}
    cells = {
        "measures": gained.run_cells(row),
        "tests": gained.mcnemar_cells(gains),
        "shift": gained.shift_cells(gains),
    }
    return {"said": gained.said_of(gains), "gains": cells}


def _charted(runs: Sequence[RunResult]) -> list[int]:
    """The labels of the classes that charts show of runs on one base."""
    target = sorted({label for run in runs for label in run.target})
    return shown_classes(runs[0].outcome.before, [run.outcome.after for run in runs], target)


def wilson_intervals(evaluations: Sequence[Sequence[Sequence[int]]]) -> dict[str, list[float]]:
    """Map `errors/images` of every class to Wilson's 95 % interval of its error rate (Wilson 1927)."""
    pairs = sorted({pair for errors, counts in evaluations for pair in zip(errors, counts, strict=True) if pair[1]})
    if not pairs:
        return {}
    wrong, counts = np.array(pairs).T
    lows, highs = wilson(wrong, counts)
    limits = zip(lows.tolist(), highs.tolist(), strict=True)
    return {f"{wrong}/{count}": [low, high] for (wrong, count), (low, high) in zip(pairs, limits, strict=True)}


def _class_errors(errors: ClassErrors, shown: Sequence[int]) -> dict[str, Any]:
    """Errors and images by class, and the confusion matrix as one list, row by row of the true class."""
    wrong, counts, confusion = folded(errors, shown)
    return {"errors": wrong, "counts": counts, "confusion": confusion.ravel().tolist()}


def _thinned(losses: Sequence[float], most: int) -> list[list[float]]:
    """Steps (from 1) and losses; means of neighbouring steps where there are more than `most`."""
    if not losses:
        return [[], []]
    steps, means = (np.array_split(own, min(most, len(losses))) for own in (np.arange(len(losses)) + 1, losses))
    return [[round(part.mean(), 1) for part in steps], [float(f"{part.mean():.4g}") for part in means]]
