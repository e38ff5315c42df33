"""Which files of a folder belong to which split, and which columns hold the pictures and the labels."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from lora_exp.data.raw import shown
from lora_exp.errors import LoraExpError

SPLITS = {"train": "train", "test": "test", "validation": "validation", "valid": "validation", "val": "validation"}
NAMED = re.compile(rf"({'|'.join(SPLITS)})(?![a-zA-Z0-9])")  # train.parquet, train-00000-of-00001.parquet
IMAGE_NAMES = ("image", "img", "images", "picture")
LABEL_NAMES = ("label", "labels", "fine_label", "class", "target", "y")


def files_of_splits(path: Path) -> dict[str, list[Path]]:
    """Return the files of each split, train first, each split's by name; a file alone is `train`.

    In a folder, files and folders named for a split are looked for, there and in its folder `data`; where nothing is
    named so, all files are `train`. Raises LoraExpError when there are none, or a folder has none for training.
    """
    if path.is_file():
        return {"train": [path]}
    if not path.exists():
        raise LoraExpError(f"{shown(path)}: there is no such file or folder")
    for folder in (path, path / "data"):
        found: dict[str, list[Path]] = {}
        loose = []
        for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
            inner = [entry] if entry.suffix == ".parquet" else sorted(entry.glob("*.parquet")) if entry.is_dir() else []
            named = NAMED.match(entry.name)
            if named is not None and inner:
                found.setdefault(SPLITS[named[1]], []).extend(inner)
            elif entry.suffix == ".parquet":
                loose.append(entry)
        if found:
            if "train" not in found:
                raise LoraExpError(f"{shown(folder)}: has files of {', '.join(found)} and none of train")
            return {split: found[split] for split in ("train", "test", "validation") if split in found}
        if loose:
            return {"train": loose}
    raise LoraExpError(f"{shown(path)}: holds no parquet file; train.parquet and test.parquet, say, are read")


def columns(schema: Any, where: str) -> tuple[str, str]:
    """Return the names of the columns of pictures and of labels, by their type and their usual names.

    Raises LoraExpError when there is none, or several that could be meant.
    """
    images = [field.name for field in schema if is_picture(field.type)]
    image = _the_one(images, IMAGE_NAMES, "pictures (bytes, or a struct with bytes)", schema, where)
    labels = [field.name for field in schema if is_label(field.type) and field.name != image]
    named = [name for name in labels if class_names(schema, name)]
    usual = (*LABEL_NAMES, *(named if len(named) == 1 else ()))
    return image, _the_one(labels, usual, "labels (integers or text)", schema, where)


def is_picture(kind: Any) -> bool:
    """Tell whether a column of this type can hold the bytes of pictures."""
    from pyarrow import types

    if types.is_struct(kind):
        return any(field.name == "bytes" and is_picture(field.type) for field in kind)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def is_label(kind: Any) -> bool:
    """Tell whether a column of this type can hold labels."""
    from pyarrow import types

    if types.is_dictionary(kind):
        return is_label(kind.value_type)
    return bool(types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind))


def class_names(schema: Any, label: str) -> list[str] | None:
    """Return the names of the classes that Hugging Face's metadata give for a column; None where they give none."""
    try:
        feature = json.loads(schema.metadata[b"huggingface"])["info"]["features"][label]
        names = feature["names"] if feature["_type"] == "ClassLabel" else None
    except (KeyError, TypeError, ValueError):
        return None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def _the_one(found: list[str], usual: tuple[str, ...], what: str, schema: Any, where: str) -> str:
    for name in usual:
        if name in found:
            return name
    if len(found) == 1:
        return found[0]
    if found:
        raise LoraExpError(f"{where}: several columns could hold {what}: {', '.join(found)}; name one {usual[0]!r}")
    has = ", ".join(f"{field.name} ({field.type})" for field in schema)
    raise LoraExpError(f"{where}: has no column of {what}; it has {shown(has) or 'none'}")
