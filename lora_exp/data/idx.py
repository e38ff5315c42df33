"""The sets in MNIST's format: files of images and of labels, plain or packed.

A file is four bytes, of which the third is the type and the fourth the number of dimensions, then each dimension in
four bytes, then the values, all with the high byte first. What is checked is what a file holds, not how it is packed.
"""

from __future__ import annotations

import gzip
import lzma
import math
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_exp.data.download import fetch
from lora_exp.data.memory import must_fit
from lora_exp.data.raw import Pictures, RawData
from lora_exp.errors import LoraExpError, writable_folder

if TYPE_CHECKING:
    from numpy.typing import NDArray

TYPES = {0x08: ">u1", 0x0C: ">i4"}
SIDE = 28
NOT_UNPACKED = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, NotImplementedError, RuntimeError)


@dataclass(frozen=True)
class Part:
    """A split: its files of images and labels, how many images are in the file, and how many of them are taken."""

    images: str
    labels: str
    in_file: int
    taken: int
    label_columns: int = 1  # of which the first is the class


@dataclass(frozen=True)
class IdxSet:
    """A data set in this format."""

    name: str  # as messages say it, after `data=`
    folder: str  # of the data root
    train: Part
    test: Part
    classes: tuple[str, ...]
    first_label: int = 0
    transposed: bool = False
    archive: str | None = None  # a zip that may lie in the folder and holds the files, packed, in its folder `gzip`


def read(which: IdxSet, root: Path, download: bool = True) -> RawData:
    """Read a data set from `root/which.folder/raw`, downloading files that aren't there.

    Raises LoraExpError when a file is missing and can't be downloaded, can't be unpacked, is damaged, or holds another
    number, shape or class than it should.
    """
    folder = root / which.folder / "raw"
    images = which.train.in_file + which.test.in_file
    must_fit(images * SIDE * SIDE, f"{images:,} images of {SIDE} x {SIDE}", f"data={which.name}")
    train, test = (_split(which, part, name, folder, download) for name, part in _parts(which))
    return RawData(train, test, None, which.classes)


def _parts(which: IdxSet) -> tuple[tuple[str, Part], ...]:
    return (("train", which.train), ("test", which.test))


def _split(which: IdxSet, part: Part, name: str, folder: Path, download: bool) -> Pictures:
    import numpy as np

    columns = (part.label_columns,) if part.label_columns > 1 else ()
    images = _array(which, part, part.images, folder, download, math.prod((part.in_file, SIDE, SIDE)))
    labels = _array(which, part, part.labels, folder, download, 4 * part.in_file * part.label_columns)
    if images.shape != (part.in_file, SIDE, SIDE) or labels.shape != (part.in_file, *columns):
        raise LoraExpError(
            f"data={which.name}: {folder} does not hold {part.in_file} labelled {name} images of {SIDE} x {SIDE}"
        )
    flat = (labels[:, 0] if columns else labels)[: part.taken].astype(np.int64) - which.first_label
    if set(np.unique(flat).tolist()) != set(range(len(which.classes))):
        raise LoraExpError(
            f"data={which.name}: {folder / part.labels} does not hold the {len(which.classes)} labels from "
            f"{which.first_label} on; put the published file there"
        )
    upright = images.transpose(0, 2, 1) if which.transposed else images
    return Pictures(np.ascontiguousarray(upright[: part.taken, np.newaxis], np.uint8), flat)


def _array(which: IdxSet, part: Part, file: str, folder: Path, download: bool, most: int) -> NDArray[Any]:
    """Read one file, of at most `most` bytes of values."""
    import numpy as np

    content = _content(which, file, folder, most)
    if content is None and download and _download(which, file, folder):
        content = _content(which, file, folder, most)
    if content is None:
        files = ", ".join(f"{one}.gz" for one in (part.images, part.labels))
        where = f"not in {folder}, and the download failed" if download else f"not in {folder}"
        also = f", or {which.archive} with all" if which.archive else ""
        raise LoraExpError(f"data={which.name}: {where}; put these files there: {files}{also}")
    damaged = LoraExpError(f"data={which.name}: a file in {folder} is damaged ({file}); delete it and try again")
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in TYPES:
        raise damaged
    start = 4 + 4 * content[3]
    shape = tuple(int.from_bytes(content[at : at + 4]) for at in range(4, start, 4))
    dtype = np.dtype(TYPES[content[2]])
    if len(content) != start + math.prod(shape) * dtype.itemsize:
        raise damaged
    return np.frombuffer(content, dtype, offset=start).reshape(shape)


def _content(which: IdxSet, file: str, folder: Path, most: int) -> bytes | None:
    """Return what a file holds, plain or however it is packed, cut after 100 bytes more than it may have."""
    places = [folder, folder / "gzip"]
    for path in (place / f"{file}{suffix}" for place in places for suffix in ("", ".gz", ".xz")):
        try:
            if not path.is_file():
                continue
            if path.suffix not in (".gz", ".xz"):
                with path.open("rb") as plain:
                    return plain.read(most + 100)
            with gzip.open(path) if path.suffix == ".gz" else lzma.open(path) as packed:
                return packed.read(most + 100)
        except NOT_UNPACKED as error:
            raise LoraExpError(f"{path}: can't be unpacked ({error}); put a whole file there") from error
    return _from_archive(folder / which.archive, file, most) if which.archive else None


def _from_archive(archive: Path, file: str, most: int) -> bytes | None:
    if not archive.is_file():
        return None
    try:
        with zipfile.ZipFile(archive) as files, files.open(f"gzip/{file}.gz") as member:
            return gzip.GzipFile(fileobj=member).read(most + 100)
    except (*NOT_UNPACKED, KeyError) as error:
        raise LoraExpError(f"{archive}: can't be unpacked ({error}); put a whole file there") from error


def _download(which: IdxSet, file: str, folder: Path) -> bool:
    """Download the file of a data set, or the archive of all; tell whether it worked."""
    from torchvision import datasets  # takes 4 s to import

    published: Any = getattr(datasets, which.folder)
    with writable_folder("data.root", folder):
        if which.archive:
            return fetch([published.url], published.md5, folder / which.archive)
        resources = published.resources
        every = [one for part in resources.values() for one in part] if isinstance(resources, dict) else resources
        for source, md5 in every:  # QMNIST lists whole URLs, by subset
            name = str(source).rsplit("/", 1)[-1]
            if name == f"{file}.gz":
                urls = [source] if "://" in source else [f"{mirror}{source}" for mirror in published.mirrors]
                return fetch(urls, md5, folder / name)
    return False
