"""python benchmarks/pictures.py DIR [ROUNDS]: how fast a folder of pictures is read, beside torchvision's ImageFolder.

Draws 4,000 PNGs of 28 x 28 greys and 600 of 128 x 128 colours into DIR, where they aren't yet. In each of ROUNDS rounds
(default 7) both read each folder on one core, in turn: ImageFolder with its own decoder and `np.asarray` of each
picture, and `lora_exp.data.folder`, once with all left open (which adds a pass over the headers) and once with size and
channels given. Both end with one uint8 array [N, C, H, W] a split. Printed are the medians in pictures a second of CPU
time, which other processes disturb little, and the median of the rounds' ratios: above 1, ours is faster.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
from PIL import Image
from torchvision.datasets import ImageFolder

from lora_exp.data import decoding, folder
from lora_exp.data.raw import Wanted

# Name -> pictures, side, channels.
SETS = {"28 x 28 grey": (4000, 28, 1), "128 x 128 colour": (600, 128, 3)}


def draw(root: Path, count: int, side: int, channels: int) -> None:
    """Draw smooth random pictures, a tenth of them for each class, every fifth a test picture."""
    random = np.random.default_rng(0)
    for at in range(count):
        small = random.integers(0, 256, (8, 8, 3), np.uint8)
        image = Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)
        path = root / ("test" if at % 5 == 4 else "train") / f"class {at // 5 % 10}" / f"{at:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        (image if channels == 3 else image.convert("L")).save(path)


def with_torchvision(root: Path) -> int:
    """Read as one does with ImageFolder; its decoder makes RGB of any picture."""
    count = 0
    for split in ("train", "test"):
        pictures = np.stack([np.asarray(image) for image, _ in ImageFolder(str(root / split))])
        count += len(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)))
    return count


def with_ours(root: Path, wanted: Wanted) -> int:
    found = folder.read(root, wanted)
    return len(found.train.labels) + len(found.test.labels)


def main() -> None:
    base, rounds = Path(sys.argv[1]), int((sys.argv[2:] or ["7"])[0])
    decoding.WORTH_A_POOL = sys.maxsize  # one core
    print(f"one core of {os.cpu_count()}; Pillow {PIL.__version__}; n={rounds}, in turn; load {os.getloadavg()[0]:.1f}")
    for name, (count, side, channels) in SETS.items():
        root = base / name
        if not root.exists():
            draw(root, count, side, channels)
        given = Wanted(size=(side, side), channels=channels)
        ways: dict[str, Callable[[Path], int]] = {
            "ImageFolder": with_torchvision,
            "ours, all open": lambda root: with_ours(root, Wanted()),
            "ours, all given": lambda root, given=given: with_ours(root, given),  # type: ignore[misc]
        }
        taken: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, read in ways.items():
                started = time.process_time()
                assert read(root) == count
                taken[way].append(time.process_time() - started)
        for way, seconds in taken.items():
            ratio = statistics.median(theirs / ours for theirs, ours in zip(taken["ImageFolder"], seconds, strict=True))
            speed = count / statistics.median(seconds)
            print(f"{name:18} {way:16} {speed:8,.0f} pictures/s  {ratio:.2f} times ImageFolder")


if __name__ == "__main__":
    main()
