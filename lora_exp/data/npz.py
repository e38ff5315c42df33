"""A file of arrays, as MedMNIST and Keras have it.

`train_images`, `train_labels`, and the same for `val` and `test`; or `x_train`, `y_train`, and the same for `val` and
`test`. Images are [N, H, W] or [N, H, W, C], of uint8 or floats: floats are taken as 0..1 when no value in the file is
above 1, and as 0..255 otherwise. The names of the classes are in an array `class_names`, or they are the labels.
"""

from __future__ import annotations

import math
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_exp.data.arrays import data_set
from lora_exp.data.classes import checked_labels, checked_names, listed, number_of_classes
from lora_exp.data.memory import must_fit
from lora_exp.data.raw import RawData, Wanted, shown
from lora_exp.errors import LoraExpError, in_words

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Split -> names of its images and labels.
MEDMNIST = {
    split: (f"{short}_images", f"{short}_labels")
    for split, short in (("train", "train"), ("validation", "val"), ("test", "test"))
}
KERAS = {
    split: (f"x_{short}", f"y_{short}")
    for split, short in (("train", "train"), ("validation", "val"), ("test", "test"))
}
CLASS_NAMES = "class_names"
DAMAGED = (ValueError, EOFError, KeyError, RuntimeError, NotImplementedError, zlib.error, zipfile.BadZipFile)


def read(file: Path, wanted: Wanted) -> RawData:
    """Read the arrays of a file.

    Raises LoraExpError, in one line, when the arrays aren't as above, hold Python objects, don't fit together or into
    memory, and when the file is damaged or changes meanwhile.
    """
    where = shown(file)
    with _readable(where):
        before = file.stat()
        if not stat.S_ISREG(before.st_mode):  # to read a pipe could take for ever
            raise LoraExpError(f"{where}: must be a file")
        shapes = _headers(file)
    pairs = _pairs(shapes, where)
    used = [name for pair in pairs.values() for name in pair] + [name for name in shapes if name == CLASS_NAMES]
    for name in used:
        if shapes[name][1].hasobject:
            raise LoraExpError(f"{where}: {name} holds Python objects, which could run code; numbers are read")
    needed = sum(math.prod(shape) * dtype.itemsize for shape, dtype in (shapes[name] for name in used))
    must_fit(needed, "its arrays", where)
    with _readable(where):
        arrays = _arrays(file, used)
        after = file.stat()
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise LoraExpError(f"{where}: changed while it was read; try again when nothing writes there")
    labels = {
        split: checked_labels(arrays[label], _count(arrays[image]), f"{where}: {label}")
        for split, (image, label) in pairs.items()
    }
    count = number_of_classes(labels, where)
    names = tuple(str(label) for label in range(count))
    if CLASS_NAMES in arrays:
        names = checked_names(_texts(arrays[CLASS_NAMES], where), count, where)
    return data_set({split: (arrays[pairs[split][0]], labels[split]) for split in pairs}, names, wanted, where)


@contextmanager
def _readable(where: str) -> Iterator[None]:
    """Say in one line what is wrong with the file."""
    try:
        yield
    except LoraExpError:
        raise
    except OSError as error:
        raise LoraExpError(f"{where}: can't be read ({error.strerror or error})") from error
    except DAMAGED as error:
        raise LoraExpError(f"{where}: is no whole npz file ({in_words(error)}); replace it") from error


def _headers(file: Path) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Return the shape and type of each array, without reading it."""
    from numpy.lib import format as npy

    found = {}
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            if not info.filename.endswith(".npy"):
                continue
            with archive.open(info) as member:
                version = npy.read_magic(member)
                read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
                shape, _, dtype = read_header(member)
            found[info.filename.removesuffix(".npy")] = (shape, dtype)
    return found


def _arrays(file: Path, names: list[str]) -> dict[str, NDArray[Any]]:
    import numpy as np

    with np.load(file) as archive:  # which loads no objects by default
        return {name: archive[name] for name in names}


def _pairs(shapes: dict[str, tuple[tuple[int, ...], np.dtype[Any]]], where: str) -> dict[str, tuple[str, str]]:
    """Return the names of the images and labels of each split."""
    for naming in (MEDMNIST, KERAS):
        if naming["train"][0] not in shapes:
            continue
        pairs = {}
        for split, pair in naming.items():
            there = [name for name in pair if name in shapes]
            if len(there) == 1:
                missing = pair[0] if there[0] == pair[1] else pair[1]
                raise LoraExpError(f"{where}: has {there[0]} but no {missing}; both are needed")
            if there:
                pairs[split] = pair
        return pairs
    has = f"it has {listed(list(shapes))}" if shapes else "it has none"
    raise LoraExpError(f"{where}: has no array train_images or x_train; {has}")


def _count(images: NDArray[Any]) -> int:
    return len(images) if images.ndim else 0


def _texts(names: NDArray[Any], where: str) -> list[str]:
    if names.ndim != 1 or names.dtype.kind not in "US":
        raise LoraExpError(f"{where}: {CLASS_NAMES} must be an array [classes] of text")
    try:
        return [one.decode() if isinstance(one, bytes) else str(one) for one in names.tolist()]
    except UnicodeDecodeError as error:
        raise LoraExpError(f"{where}: {CLASS_NAMES} must be text in UTF-8") from error
