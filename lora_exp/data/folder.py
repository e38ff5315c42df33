"""A folder with a folder of pictures for each class.

`root/train/CLASS/*`, `root/test/CLASS/*`, and `root/validation/` or `root/val/` where there is one. Without `test/`,
the pictures of `root/train/CLASS/*`, or of `root/CLASS/*`, are split by a hash of each file's name and content. Within
a split, pictures lie by class, and by file name within a class.
"""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from lora_exp.data.classes import (
    chosen,
    complete,
    normalised,
    ordered,
    refuse_collisions,
    refuse_share,
    same_in_all,
)
from lora_exp.data.decoding import CHUNK, Encoded, Stream, read_streams
from lora_exp.data.raw import RawData, Wanted, shown
from lora_exp.errors import LoraExpError

SPLITS = {"train": "train", "test": "test", "validation": "validation", "val": "validation"}
LEFT_BY_SYSTEMS = ("thumbs.db", "desktop.ini")  # and all names that begin with a dot


class Found(NamedTuple):
    """A file or folder that was listed; a link is what it leads to."""

    path: str
    name: str
    folder: bool
    seen: tuple[int, int]  # size in bytes, mtime in ns


def read(root: Path, wanted: Wanted) -> RawData:
    """Read the pictures below `root`.

    Raises LoraExpError, in one line, when the folders aren't as above, a class is missing in a split, a file is no
    picture that can be used, or all don't fit into memory. With `wanted.skip_bad`, bad files are left out and counted.
    """
    where = shown(root)
    folders = _splits(root)
    found = {split: _classes(path) for split, path in folders.items()}
    names = ordered({name for split in found.values() for name in split})
    refuse_collisions(names, where)
    classes = chosen(names, wanted.classes, where)
    same_in_all({split: [name for name in classes if name in of_split] for split, of_split in found.items()}, where)
    files = {split: {name: _pictures(of_split[name]) for name in classes} for split, of_split in found.items()}
    share = None
    if "test" not in folders:
        refuse_share(wanted)
        share = wanted.test
    streams = [
        _stream(split, [files[split][name] for name in classes], share if split == "train" else None)
        for split in folders
    ]
    pictures, skipped = read_streams(streams, wanted, where)
    order = ["train", *(["test"] if share is not None else []), *(split for split in folders if split != "train")]
    return complete(dict(zip(order, pictures, strict=True)), classes, skipped, where, share)


def is_ignored(name: str) -> bool:
    """Tell whether a file is hidden, or one that a system leaves in folders of pictures."""
    return name.startswith(".") or name.lower() in LEFT_BY_SYSTEMS


def _splits(root: Path) -> dict[str, str]:
    """Find the folder of each split: train first; train is `root` itself where it holds the classes."""
    inner = _listed(str(root), ())
    splits: dict[str, str] = {}
    for entry in inner:
        split = SPLITS.get(entry.name.lower())
        if split is None or not entry.folder:
            continue
        if entry.name not in SPLITS:
            raise LoraExpError(f"{shown(entry.path)}: must be named {entry.name.lower()!r}, in lower case")
        if split in splits:
            raise LoraExpError(f"{shown(root)}: has both val/ and validation/; keep one of them")
        splits[split] = entry.path
    if "train" in splits:
        return {split: splits[split] for split in ("train", "test", "validation") if split in splits}
    if "test" in splits:
        raise LoraExpError(f"{shown(root)}: has test/ but no train/; put the training pictures into train/CLASS/")
    return {"train": str(root)}


def _classes(split: str) -> Mapping[str, str]:
    """Return the folder of each class of a split, by the class's name."""
    classes: dict[str, str] = {}
    for entry in _listed(split, ()):
        if not entry.folder:
            continue  # a list of files or a licence, say
        name = normalised(entry.name, shown(split))
        if name in classes:
            raise LoraExpError(f"{shown(split)}: two folders are named {name!r}, in other Unicode forms; merge them")
        classes[name] = entry.path
    if not classes:
        raise LoraExpError(f"{shown(split)}: has no folder; each class is a folder of pictures, named for the class")
    return classes


def _pictures(folder: str) -> list[Found]:
    """Return the files of a class, by name."""
    found = _listed(folder, (str(Path(folder).parent),))
    for entry in found:
        if entry.folder:
            raise LoraExpError(f"{shown(entry.path)}: is a folder; pictures must lie in the folder of their class")
    if not found:
        raise LoraExpError(f"{shown(folder)}: holds no picture; add some, or remove the class")
    return found


def _listed(folder: str, above: Sequence[str]) -> list[Found]:
    """List a folder by name, following links, without what is hidden.

    Raises LoraExpError when it can't be listed, for a link that leads nowhere, round in a circle, or up, and for what
    is neither a file nor a folder: to read a pipe could take for ever.
    """
    found = []
    try:
        upwards = {os.path.realpath(place) for place in (folder, *above)}
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_ignored(entry.name):
                    continue
                status = _status(entry)
                if entry.is_symlink() and os.path.realpath(entry.path) in upwards:
                    raise LoraExpError(f"{shown(entry.path)}: is a link to a folder that holds it; remove the link")
                if not stat.S_ISDIR(status.st_mode) and not stat.S_ISREG(status.st_mode):
                    raise LoraExpError(f"{shown(entry.path)}: is neither a file nor a folder; remove it")
                seen = (status.st_size, status.st_mtime_ns)
                found.append(Found(entry.path, entry.name, stat.S_ISDIR(status.st_mode), seen))
    except NotADirectoryError as error:
        raise LoraExpError(f"{shown(folder)}: is a file; a folder with a folder for each class is needed") from error
    except FileNotFoundError as error:
        raise LoraExpError(f"{shown(folder)}: there is no such folder") from error
    except OSError as error:
        raise LoraExpError(f"{shown(folder)}: can't be read ({error.strerror})") from error
    return sorted(found, key=lambda entry: entry.name)


def _status(entry: os.DirEntry[str]) -> os.stat_result:
    try:
        return entry.stat()
    except OSError as error:
        why = f"is a link that can't be followed ({error.strerror})" if entry.is_symlink() else error.strerror
        raise LoraExpError(f"{shown(entry.path)}: {why}; remove or repair it") from error


def _stream(split: str, files: list[list[Found]], share: float | None) -> Stream:
    """Make the stream of a split from the files of each class."""
    every = [
        Encoded(entry.path, unicodedata.normalize("NFC", entry.name), label, None, entry.seen)
        for label, found in enumerate(files)
        for entry in found
    ]

    def chunks() -> Iterator[list[Encoded]]:
        for start in range(0, len(every), CHUNK):
            yield every[start : start + CHUNK]

    return Stream(split, len(every), sum(entry.seen[0] for found in files for entry in found), chunks, share)
