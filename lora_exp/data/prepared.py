"""Prepared data sets: pixels, labels and names of a data set in one safetensors file, which is made on first use.

Later runs read only that file, memory-mapped, and need neither the source nor the libraries that read it. The file
holds for each split `SPLIT_images` [N, C, H, W] and `SPLIT_labels` [N], all uint8 but for labels of many classes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_exp.config.images import MNIST
from lora_exp.config.settings import CACHE, DataFolder
from lora_exp.config.spec import KNOWN_SETS, OWN_DATA, DataSpec, digest
from lora_exp.data.header import METADATA, header
from lora_exp.errors import LoraExpError, writable_folder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lora_exp.data.raw import RawData, Wanted

log = logging.getLogger(__name__)

# Normalised with MNIST's mean and deviation, so that a base trained on one can be evaluated on another.
LIKE_MNIST = ("mnist", "fashion_mnist", "kmnist", "qmnist")
SPLITS = ("train", "validation", "test")


def prepare(spec: DataSpec, folder: DataFolder) -> Path:
    """The prepared file of a data set, which is made where it is absent, damaged, or older than its source.

    Raises LoraExpError, of one line, for a source that is absent or can't be used.
    """
    from filelock import FileLock

    target = _place(spec, folder)
    key = "data.root" if folder.prepared is None else "data.prepared"
    with writable_folder(key, target.parent), FileLock(target.with_suffix(".lock")):
        source = _fingerprint(spec, folder)
        if not _is_whole(target, source):
            raw = _read(spec, folder)
            if raw.skipped:
                log.warning("data=%s: %d files that can't be read are left out", spec.name, raw.skipped)
            if _fingerprint(spec, folder) != source:
                raise LoraExpError(f"{_source(spec, folder)}: changed while it was read; try again when it is complete")
            _write(target, spec, raw, source)
    return target


def prepared_sha256(spec: DataSpec, folder: DataFolder) -> str | None:
    """The hash that the prepared file of a data set states; None where it has to be made, or made again."""
    found = header(_place(spec, folder))
    return found.sha256 if found is not None and found.source == _fingerprint(spec, folder) else None


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays of a prepared file, read into memory."""
    from safetensors.numpy import load_file

    return dict(load_file(path))


def test_pictures(path: Path) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """The test images of a prepared file, uint8 [N, C, H, W], and their labels [N], for figures. Needs no torch."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        return file.get_tensor("test_images"), file.get_tensor("test_labels")


def is_damaged(path: Path) -> bool:
    """Whether a prepared file can't be read, or does not hold what its hash says; one of an older version is whole."""
    from safetensors import SafetensorError

    found = header(path)
    try:
        held = _arrays(path)
    except (OSError, SafetensorError):
        return True
    return found is not None and _sha256_of(held, found.facts.classes) != found.sha256


def _place(spec: DataSpec, folder: DataFolder) -> Path:
    """Where the prepared file of a data set is: one file for each source and way to read it."""
    way = dataclasses.replace(spec, validation=0, limit=None)
    name = spec.name if spec.split is None else f"{spec.name}-{spec.split}"
    if spec.name in OWN_DATA or way != DataSpec(spec.name, split=spec.split):
        source = str(_source(spec, folder)) if spec.name in OWN_DATA else ""
        name += f"-{digest([source, dataclasses.asdict(way)])[:12]}"
    own = CACHE if spec.name in OWN_DATA else folder.root or CACHE
    return Path(folder.prepared or own).absolute() / f"{name}.safetensors"


def _source(spec: DataSpec, folder: DataFolder) -> Path:
    """The folder or the file that a data set is read from."""
    if spec.name == "npz" or (spec.name == "parquet" and folder.file is not None):
        if folder.file is None:
            raise LoraExpError("data.file: missing; needs the .npz file that holds the images, as data.file=FILE")
        return Path(folder.file).absolute()
    if spec.name in OWN_DATA and folder.root is None:
        raise LoraExpError(f"data.root: missing; needs the folder that holds the images of data={spec.name}")
    return Path(folder.root or CACHE).absolute()


def _fingerprint(spec: DataSpec, folder: DataFolder) -> str:
    """A hash that changes when the source of one's own data does; files of known sets are checked by their content."""
    if spec.name not in OWN_DATA:
        return ""
    from lora_exp.data.source import fingerprint

    return fingerprint(_source(spec, folder))


def _is_whole(target: Path, source: str) -> bool:
    found = header(target)
    return found is not None and found.source == source and not is_damaged(target)


def _read(spec: DataSpec, folder: DataFolder) -> RawData:
    from lora_exp.data.raw import Wanted

    wanted = Wanted(
        spec.size,
        spec.channels,
        None if spec.classes is None else tuple(map(str, spec.classes)),
        spec.test,
        spec.skip_bad,
    )
    source = _source(spec, folder)
    if spec.name == "folder":
        from lora_exp.data import folder as folders

        return folders.read(source, wanted)
    if spec.name == "npz":
        from lora_exp.data import npz

        return npz.read(source, wanted)
    if spec.name == "parquet":
        from lora_exp.data import parquet

        return parquet.read(source, wanted)
    return _known(spec, source, wanted)


def _known(spec: DataSpec, root: Path, wanted: Wanted) -> RawData:
    """A known set, in the form that is wanted."""
    from lora_exp.data.known import converted

    assert spec.name in KNOWN_SETS
    if spec.name == "digits":
        from lora_exp.data import digits

        return converted(digits.read(), wanted, spec)
    from lora_exp.data import torchvision_sets

    return converted(torchvision_sets.read(spec.name, root, spec.split), wanted, spec)


def _write(target: Path, spec: DataSpec, raw: RawData, source: str) -> None:
    """Write a prepared file. The training images of one's own data are shuffled: `data.limit` takes the first."""
    import numpy as np
    from safetensors.numpy import save_file

    kind = np.min_scalar_type(len(raw.classes) - 1)
    found: dict[str, NDArray[Any]] = {}
    for name in SPLITS:
        pictures = getattr(raw, name)
        if pictures is not None:
            order = np.arange(len(pictures.labels))
            if spec.name in OWN_DATA and name == "train":
                order = np.random.default_rng(0).permutation(order)
            found[f"{name}_images"] = np.ascontiguousarray(pictures.images[order])
            found[f"{name}_labels"] = pictures.labels[order].astype(kind)
    shape = tuple(int(side) for side in found["train_images"].shape[1:])
    mean, std = MNIST.mean * shape[0], MNIST.std * shape[0]
    if spec.name not in LIKE_MNIST:
        mean, std = _statistics(found["train_images"])
    facts = {"shape": shape, "classes": raw.classes, "mean": mean, "std": std}
    sha256 = _sha256_of(found, raw.classes)
    about = {"facts": facts, "sha256": sha256, "source": source, "skipped": raw.skipped}
    temporary = target.with_suffix(".tmp")
    save_file(found, temporary, metadata={METADATA: json.dumps(about)})
    temporary.replace(target)


def _statistics(images: NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the pixels, from 0 to 1, by channel; exact, since pixels are counted."""
    import numpy as np

    means, deviations = [], []
    for channel in range(images.shape[1]):
        counts = np.bincount(images[:, channel].ravel(), minlength=256)
        levels = np.arange(256) / 255
        mean = float(counts @ levels / counts.sum())
        deviation = float(np.sqrt(counts @ (levels - mean) ** 2 / counts.sum()))
        means.append(round(mean, 6))
        deviations.append(round(deviation, 6) or 1.0)  # all pixels are equal
    return tuple(means), tuple(deviations)


def _sha256_of(found: Mapping[str, NDArray[Any]], classes: tuple[str, ...]) -> str:
    total = hashlib.sha256(json.dumps(classes).encode())
    for name in sorted(found):
        total.update(f"{name}{found[name].shape}".encode())
        total.update(found[name].data)
    return total.hexdigest()
