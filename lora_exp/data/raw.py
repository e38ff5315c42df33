"""What every reader returns, and how pictures are wanted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Pictures:
    """Pictures of one split: images [N, C, H, W] uint8; labels [N] int64, positions in `RawData.classes`."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class RawData:
    """A data set as its source has it: the splits, the names of the classes, how many bad pictures were left out."""

    train: Pictures
    test: Pictures
    validation: Pictures | None  # where the source has such a split
    classes: tuple[str, ...]
    skipped: int = 0


@dataclass(frozen=True)
class Wanted:
    """How pictures are wanted: the config keys data.size, data.channels, data.classes, data.test, data.skip_bad."""

    size: tuple[int, int] | None = None  # height, width; None: their own, where all agree
    channels: int | None = None  # 1 or 3; None: as they are (3 when any picture has colour)
    classes: tuple[str, ...] | None = None  # a subset, by name; None: all
    test: float = 0.2  # share of the images that become the test set where the source has no split
    skip_bad: bool = False  # leave out what can't be read, and count it


def shown(path: str | Path) -> str:
    """Return a path as messages show it: in one line, whatever characters a file's name has."""
    name = str(path)
    return name if name.isprintable() else "".join(letter if letter.isprintable() else "?" for letter in name)
