"""SVHN, the digits of house numbers, from its two files in MATLAB's format."""

from __future__ import annotations

from pathlib import Path

from lora_exp.data.download import fetch
from lora_exp.data.memory import must_fit
from lora_exp.data.raw import Pictures, RawData
from lora_exp.errors import LoraExpError, in_words, writable_folder

FILES = {"train": "train_32x32.mat", "test": "test_32x32.mat"}
COUNTS = {"train": 73_257, "test": 26_032}
CLASSES = tuple("0123456789")


def read(root: Path, counts: dict[str, int] = COUNTS) -> RawData:
    """Read the two files in `root`, downloading what isn't there; `counts` is how many images each has to hold.

    Raises LoraExpError when a file can't be had or doesn't hold what it should.
    """
    total = sum(counts.values())
    must_fit(2 * total * 3072, f"{total:,} images of 32 x 32 x 3, read and sorted,", "data=svhn")
    return RawData(_split(root, "train", counts), _split(root, "test", counts), None, CLASSES)


def _split(root: Path, split: str, counts: dict[str, int]) -> Pictures:
    import numpy as np
    from scipy.io import loadmat, whosmat

    path, count = root / FILES[split], counts[split]
    with writable_folder("data.root", root):
        there = path.is_file() or _downloaded(split, path)
    if not there:
        raise LoraExpError(
            f"data=svhn: not in {root}, and the download failed; put {' and '.join(FILES.values())} there"
        )
    try:
        arrays = {name: (shape, kind) for name, shape, kind in whosmat(path)}  # before anything is unpacked
        found = None
        if arrays.get("X") == ((32, 32, 3, count), "uint8") and arrays.get("y", ((),))[0] == (count, 1):
            found = loadmat(path, variable_names=["X", "y"])
    except Exception as error:  # what is no such file raises whatever the reader stumbles over
        raise LoraExpError(f"data=svhn: {path} is damaged ({in_words(error)}); delete it and try again") from error
    if found is None or found["y"].dtype.kind not in "iu":
        raise LoraExpError(f"data=svhn: {path} does not hold {count} labelled images of 32 x 32 x 3")
    labels = found["y"][:, 0].astype(np.int64)
    if set(np.unique(labels).tolist()) != set(range(1, 11)):
        raise LoraExpError(f"data=svhn: {path} does not hold the labels 1 to 10; put the published file there")
    return Pictures(np.ascontiguousarray(found["X"].transpose(3, 2, 0, 1)), labels % 10)  # 10 is the digit 0


def _downloaded(split: str, path: Path) -> bool:
    from torchvision.datasets import SVHN  # takes 4 s to import

    url, _, md5 = SVHN.split_list[split]
    return fetch([url], md5, path)
