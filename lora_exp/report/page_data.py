"""The data of the interactive page: one row a finished run, with its errors, gains, loss curve and images.

Numbers are those of the table; their text comes from `tables.py`.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora_exp.config.spec import SIDE
from lora_exp.measures.class_errors import ClassErrors
from lora_exp.measures.logits import probabilities
from lora_exp.measures.paired import wilson
from lora_exp.report import gained
from lora_exp.report.figures import changes, spread
from lora_exp.report.tables import ALWAYS, MEASURES, differing, heading, runs_table, setting_text, values_of
from lora_exp.storage.result import RunResult, kind_label
from lora_exp.storage.sweep_file import run_command
from lora_exp.storage.sweep_folder import Sweep
from lora_exp.storage.table import finished, representative

FEW_RUNS = 100  # with more, the page holds less of each, so that it stays small and fast
CURVE_POINTS = {True: 60, False: 25}  # of a loss curve, with few or many runs
IMAGES = {True: (14, 28), False: (8, 12)}  # mended and broken images of a run, with few or many runs
CHANGES = ("mended", "broken")
SPRITE_COLUMNS = 100


def page_data(sweep: Sweep, pictures: NDArray[np.uint8], labels: NDArray[Any]) -> dict[str, Any]:
    """Collect the data; `pictures` (uint8 [N, 28, 28]) and `labels` [N] are the test images of the evaluation."""
    runs = finished(sweep.frame)
    names = list(dict.fromkeys([*ALWAYS, *differing(runs)]))
    results = {int(job): sweep.results[int(job)] for job in runs["job"]}
    bases = {result.outcome.base_sha256_before: result.outcome.before for result in results.values()}
    kinds = sorted({result.kind for result in results.values()}, key=lambda kind: (kind[0], kind[1] or 0))
    few = len(runs) <= FEW_RUNS
    galleries = {job: _gallery(sweep, job, labels, IMAGES[few]) for job in results}
    images = [image for gallery in galleries.values() for part in CHANGES for image in gallery.get(part, [])]
    shown = sorted({image[0] for image in images})
    cells = {int(row[0]): row for row in runs_table(sweep.frame)[1]}
    rows = [
        {
            "job": job,
            "what": result.description,
            "measured": cells[job][-len(MEASURES) :],
            "command": run_command(row["overrides"]),
            "settings": {name: setting_text(row[name]) for name in names},
            "kind": kinds.index(result.kind),
            **{name: row[name] for name in ("target_error", "other_error", "forgetting")},
            **_gains(row, result),
            "overhead": row["overhead_percent"],
            "base": list(bases).index(result.outcome.base_sha256_before),
            "targets": list(result.spec.finetune.digit),
            "after": _class_errors(result.outcome.after),
            "losses": _thinned(result.outcome.loss_curve, CURVE_POINTS[few]),
            "gallery": galleries[job],
        }
        for row, (job, result) in zip(runs.to_dict("records"), results.items(), strict=True)
    ]
    return {
        "settings": {name: {"title": heading(name), "values": values_of(runs[name])} for name in names},
        "kinds": [kind_label(kind) for kind in kinds],
        "measures": list(MEASURES),
        "gains": {
            "measures": [gained.HEADINGS, gained.TITLES],
            "tests": [gained.TESTS_HEADINGS, gained.TESTS_TITLES],
            "shift": gained.SHIFT_HEADINGS,
            "note": gained.SHIFT_NOTE,
            "none": gained.NO_GAINS,
        },
        "runs": rows,
        "bases": [{**_class_errors(errors), "counts": errors.counts} for errors in bases.values()],
        "wilson": wilson_intervals(
            [errors for r in results.values() for errors in (r.outcome.before, r.outcome.after)]
        ),
        "chosen": representative(sweep.frame),
        "sprite": _sprite(pictures[shown]) if shown else "",
        "images": {str(image): [place, int(labels[image])] for place, image in enumerate(shown)},
    }


def _gains(row: dict[Any, Any], result: RunResult) -> dict[str, Any]:
    """The gain in balanced accuracy, how the run compares with a moved threshold, and the cells of its tables."""
    gains = result.outcome.gains
    if gains is None:
        return {"balanced_accuracy_gained": None, "said": "", "gains": None}
    cells = {
        "measures": gained.run_cells(row),
        "tests": gained.mcnemar_cells(gains),
        "shift": gained.shift_cells(gains),
    }
    return {
        "balanced_accuracy_gained": row["balanced_accuracy_gained"],
        "said": gained.said_of(gains),
        "gains": cells,
    }


def wilson_intervals(evaluations: Sequence[ClassErrors]) -> dict[str, list[float]]:
    """Map `errors/images` of every class to Wilson's 95 % interval of its error rate (Wilson 1927)."""
    pairs = sorted({pair for own in evaluations for pair in zip(own.errors, own.counts, strict=True) if pair[1]})
    if not pairs:
        return {}
    wrong, counts = np.array(pairs).T
    lows, highs = wilson(wrong, counts)
    limits = zip(lows.tolist(), highs.tolist(), strict=True)
    return {f"{wrong}/{count}": [low, high] for (wrong, count), (low, high) in zip(pairs, limits, strict=True)}


def _class_errors(errors: ClassErrors) -> dict[str, Any]:
    """Errors by class, and the confusion matrix as one list, row by row of the true class."""
    return {"errors": errors.errors, "confusion": [count for row in errors.confusion for count in row]}


def _thinned(losses: Sequence[float], most: int) -> list[list[float]]:
    """Steps (from 1) and losses; means of neighbouring steps where there are more than `most`."""
    if not losses:
        return [[], []]
    steps, means = (np.array_split(own, min(most, len(losses))) for own in (np.arange(len(losses)) + 1, losses))
    return [[round(part.mean(), 1) for part in steps], [float(f"{part.mean():.4g}") for part in means]]


def _gallery(sweep: Sweep, job: int, labels: NDArray[Any], most: tuple[int, int]) -> dict[str, Any]:
    """Images [index, prediction before, after, confidence before, after], and how many there are of each part."""
    found: dict[str, Any] = {}
    try:
        logits = sweep.logits(job)
        changed = changes(sweep.results[job], logits, labels)
    except ValueError as error:
        return {"why_not": f"No images: {error}."}
    for part, shown in zip(CHANGES, most, strict=True):
        chosen = spread(changed[part], shown)
        both = logits.before[chosen], logits.after[chosen]
        columns = [chosen, *(own.argmax(axis=1) for own in both)]
        columns += [probabilities(own).max(axis=1).round(3) for own in both]
        found[f"{part}_count"] = len(changed[part])
        found[part] = [list(row) for row in zip(*(column.tolist() for column in columns), strict=True)]
    return found


def _sprite(pictures: NDArray[np.uint8]) -> str:
    """All pictures as one PNG in base64, dark on light, SPRITE_COLUMNS in a row."""
    from PIL import Image

    rows = -(-len(pictures) // SPRITE_COLUMNS)
    sheet = np.zeros((rows * SPRITE_COLUMNS, SIDE, SIDE), np.uint8)
    sheet[: len(pictures)] = pictures
    tiles = sheet.reshape(rows, SPRITE_COLUMNS, SIDE, SIDE).swapaxes(1, 2).reshape(rows * SIDE, SPRITE_COLUMNS * SIDE)
    file = io.BytesIO()
    Image.fromarray(255 - tiles).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()
