"""What of many classes, and of pictures of any size, a chart can show.

Shapes: N pictures, C channels, H and W their height and width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lora_exp.measures.class_errors import ClassErrors

MOST_CLASSES = 30  # of a chart with a bar, a row or a column for each
SIDES = 24, 64  # a picture is drawn with about so many pixels a side
DARK = 90  # of 255: grey pictures that are darker than this in the mean are shown dark on light


def shown_classes(before: ClassErrors, after: Sequence[ClassErrors], target: Sequence[int]) -> list[int]:
    """Labels of the classes that a chart shows, ascending: all, or the target and those whose errors changed most."""
    count = len(before.errors)
    if count <= MOST_CLASSES:
        return list(range(count))
    changed, wrong = np.zeros(count), np.array(before.error_rates)
    for own in after:
        changed = np.maximum(changed, np.abs(np.array(own.error_rates) - before.error_rates))
        wrong = np.maximum(wrong, own.error_rates)
    changed[list(target)] = np.inf
    # Of classes that changed as much, those with more errors.
    return sorted(np.lexsort((-wrong, -changed))[:MOST_CLASSES].tolist())


def folded(errors: ClassErrors, shown: Sequence[int]) -> tuple[list[int], list[int], NDArray[np.int64]]:
    """Errors, counts and confusion of the classes that are shown, and then, where some are not, of all others as one.

    An image of another class that is taken for yet another is an error of theirs, and on their diagonal.
    """
    count = len(errors.errors)
    group = np.full(count, len(shown))
    group[list(shown)] = np.arange(len(shown))
    groups = len(shown) + (len(shown) < count)
    table = np.zeros((groups, groups), dtype=np.int64)
    np.add.at(table, (group[:, None], group[None, :]), np.array(errors.confusion))
    wrong, counts = (np.bincount(group, own, groups).astype(int) for own in (errors.errors, errors.counts))
    return wrong.tolist(), counts.tolist(), table


def shown_names(classes: Sequence[str], shown: Sequence[int]) -> list[str]:
    """The names of these classes, and of all others as one where some are not shown."""
    rest = len(classes) - len(shown)
    return [*(classes[label] for label in shown), *([f"{rest} others"] if rest else [])]


def thumbnails(pictures: NDArray[np.uint8], invert: bool) -> NDArray[np.uint8]:
    """Square pictures [N, S, S, 3] of pictures [N, C, H, W] with about SIDES pixels a side, padded where needed."""
    least, most = SIDES
    longest = max(pictures.shape[2:])
    small = pictures[:, :, :: -(-longest // most), :: -(-longest // most)]
    times = -(-least // max(small.shape[2:]))
    small = small.repeat(times, axis=2).repeat(times, axis=3)
    height, width = small.shape[2:]
    side = max(height, width)
    made = np.zeros((len(pictures), side, side, 3), np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    made[:, top : top + height, left : left + width] = small.transpose(0, 2, 3, 1)  # grey goes into all channels
    return 255 - made if invert else made


def is_dark(pictures: NDArray[np.uint8]) -> bool:
    """Whether pictures [N, C, H, W] are grey on black, as digits are."""
    return pictures.shape[1] == 1 and len(pictures) > 0 and float(pictures[:1000].mean()) < DARK


def short(text: str, most: int = 13) -> str:
    """A text of at most so many letters: a line of so many has room below a picture."""
    return text if len(text) <= most else f"{text[: most - 1]}…"
