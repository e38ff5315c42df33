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

from lora_exp.measures.class_errors import ClassErrors
from lora_exp.measures.logits import probabilities
from lora_exp.measures.paired import wilson
from lora_exp.report import gained
from lora_exp.report.figures import changes, spread
from lora_exp.report.shown import folded, is_dark, shown_classes, shown_names, thumbnails
from lora_exp.report.tables import ALWAYS, MEASURES, runs_table, values_of
from lora_exp.storage.recommendation import representative
from lora_exp.storage.result import RunResult
from lora_exp.storage.sweep_file import run_command
from lora_exp.storage.sweep_folder import Sweep
from lora_exp.storage.table import finished
from lora_exp.storage.varied import heading, setting_text, varied
from lora_exp.storage.words import kind_label

FEW_RUNS = 100  # with more, the page holds less of each, so that it stays small and fast
CURVE_POINTS = {True: 60, False: 25}  # of a loss curve, with few or many runs
IMAGES = {True: (14, 28), False: (8, 12)}  # mended and broken images of a run, with few or many runs
CHANGES = ("mended", "broken")
SPRITE_COLUMNS = 100


def page_data(sweep: Sweep, pictures: NDArray[np.uint8], labels: NDArray[Any]) -> dict[str, Any]:
    """Collect the data; `pictures` (uint8 [N, C, H, W]) and `labels` [N] are the test images of the evaluation."""
    runs = finished(sweep.frame)
    names = list(dict.fromkeys([*ALWAYS, *varied(runs)]))
    results = {int(job): sweep.results[int(job)] for job in runs["job"]}
    bases = {result.outcome.base_sha256_before: result for result in results.values()}
    charts = {
        sha256: _charted([own for own in results.values() if own.outcome.base_sha256_before == sha256])
        for sha256 in bases
    }
    kinds = sorted({result.kind for result in results.values()}, key=lambda kind: (kind[0], kind[1] or 0))
    few = len(runs) <= FEW_RUNS
    galleries = {job: _gallery(sweep, job, labels, IMAGES[few]) for job in results}
    images = [image for gallery in galleries.values() for part in CHANGES for image in gallery.get(part, [])]
    shown = sorted({image[0] for image in images})
    classes = next(iter(results.values())).facts.classes if results else ()
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
            "base": list(bases).index(base),
            "targets": [at for at, label in enumerate(charts[base]) if label in result.target],
            "after": _class_errors(result.outcome.after, charts[base]),
            "losses": _thinned(result.outcome.loss_curve, CURVE_POINTS[few]),
            "gallery": galleries[job],
        }
        for row, (job, result) in zip(runs.to_dict("records"), results.items(), strict=True)
        for base in [result.outcome.base_sha256_before]
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
        "sprite": _sprite(thumbnails(pictures[shown], is_dark(pictures))) if shown else "",
        "images": {str(image): [place, classes[labels[image]]] for place, image in enumerate(shown)},
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
        names = np.array(sweep.results[job].facts.classes)
        columns = [chosen, *(names[own.argmax(axis=1)] for own in both)]
        columns += [probabilities(own).max(axis=1).round(3) for own in both]
        found[f"{part}_count"] = len(changed[part])
        found[part] = [list(row) for row in zip(*(column.tolist() for column in columns), strict=True)]
    return found


def _sprite(pictures: NDArray[np.uint8]) -> str:
    """All pictures [N, S, S, 3] as one PNG in base64, SPRITE_COLUMNS in a row."""
    from PIL import Image

    rows, side = -(-len(pictures) // SPRITE_COLUMNS), pictures.shape[1]
    sheet = np.full((rows * SPRITE_COLUMNS, side, side, 3), 255, np.uint8)
    sheet[: len(pictures)] = pictures
    tiles = sheet.reshape(rows, SPRITE_COLUMNS, side, side, 3).swapaxes(1, 2)
    file = io.BytesIO()
    whole = Image.fromarray(tiles.reshape(rows * side, SPRITE_COLUMNS * side, 3))
    is_grey = bool((pictures == pictures[..., :1]).all())
    (whole.convert("L") if is_grey else whole).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()
