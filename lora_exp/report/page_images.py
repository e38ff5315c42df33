"""The images of the interactive page: which a run mended and broke, and all of them as one picture."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora_exp.measures.logits import probabilities
from lora_exp.report.figures import changes, spread
from lora_exp.storage.sweep_folder import Sweep

CHANGES = ("mended", "broken")
SPRITE_COLUMNS = 100


def gallery(sweep: Sweep, job: int, labels: NDArray[Any], most: tuple[int, int]) -> dict[str, Any]:
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


def sprite(pictures: NDArray[np.uint8]) -> str:
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
