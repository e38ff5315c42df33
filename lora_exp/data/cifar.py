"""CIFAR-10 and CIFAR-100, from the binary version that their author publishes.

Each record is the label, in CIFAR-100 after the label of a coarser class, and 3,072 bytes of an image [3, 32, 32]. The
version for Python is not read: its files can run code when they are loaded.
"""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_exp.data.download import fetch
from lora_exp.data.memory import must_fit
from lora_exp.data.raw import Pictures, RawData
from lora_exp.errors import LoraExpError, writable_folder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SHAPE = (3, 32, 32)
PIXELS = 3072
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100_NAMES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
willow_tree wolf woman worm
"""
CIFAR100_CLASSES = tuple(CIFAR100_NAMES.split())


@dataclass(frozen=True)
class CifarSet:
    """One of the two sets."""

    name: str
    folder: str  # in the data root, and in the archive
    archive: str
    md5: str
    python_version: tuple[str, str]  # the names of its folder and archive
    train_files: tuple[str, ...]
    test_file: str
    labels: int  # bytes before each image, of which the last is the class
    classes: tuple[str, ...]
    train: int = 50_000
    test: int = 10_000


CIFAR10 = CifarSet(
    "cifar10",
    "cifar-10-batches-bin",
    "cifar-10-binary.tar.gz",
    "c32a1d4ab5d03f1284b67883e8d87530",
    ("cifar-10-batches-py", "cifar-10-python.tar.gz"),
    tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    "test_batch.bin",
    1,
    CIFAR10_CLASSES,
)
CIFAR100 = CifarSet(
    "cifar100",
    "cifar-100-binary",
    "cifar-100-binary.tar.gz",
    "03b5dce01913d631647c71ecec9e9cb8",
    ("cifar-100-python", "cifar-100-python.tar.gz"),
    ("train.bin",),
    "test.bin",
    2,
    CIFAR100_CLASSES,
)


def read(which: CifarSet, root: Path) -> RawData:
    """Read a set from its folder in `root`, or from its archive there, which is downloaded if neither is there.

    Raises LoraExpError when neither can be had, or one doesn't hold what it should.
    """
    count = which.train + which.test
    must_fit(2 * count * PIXELS, f"{count:,} images of 32 x 32 x 3, read and sorted,", f"data={which.name}")
    files, where = _contents(which, root)
    each = which.train // len(which.train_files)
    train = _records(which, {name: files[name] for name in which.train_files}, each, where)
    test = _records(which, {which.test_file: files[which.test_file]}, which.test, where)
    return RawData(train, test, None, which.classes)


def _contents(which: CifarSet, root: Path) -> tuple[dict[str, bytes], Path]:
    """Return the content of each file, and where they were found."""
    names = (*which.train_files, which.test_file)
    folder, archive = root / which.folder, root / which.archive
    try:
        if folder.is_dir():
            most = (which.train + which.test) * (PIXELS + which.labels) + 1
            contents = {}
            for name in names:
                with (folder / name).open("rb") as file:
                    contents[name] = file.read(most)
            return contents, folder
        if not archive.is_file() and not _downloaded(which, archive):
            other = [name for name in which.python_version if (root / name).exists()]
            why = f" ({other[0]} is there, and the Python version is not read: it could run code)" if other else ""
            raise LoraExpError(
                f"data={which.name}: not in {root}, and the download failed; put {which.archive} of "
                f"https://www.cs.toronto.edu/~kriz/cifar.html there, or its folder {which.folder}{why}"
            )
        return _unpacked(which, archive, names), archive
    except FileNotFoundError as error:
        raise LoraExpError(f"data={which.name}: {error.filename} is missing; put the whole folder there") from error
    except OSError as error:
        raise LoraExpError(f"data={which.name}: {error.filename or root}: can't be read ({error.strerror})") from error


def _downloaded(which: CifarSet, archive: Path) -> bool:
    with writable_folder("data.root", archive.parent):
        return fetch([f"https://www.cs.toronto.edu/~kriz/{which.archive}"], which.md5, archive)


def _unpacked(which: CifarSet, archive: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    """Read the files in an archive. Nothing is written, so it doesn't matter where it says that they belong."""
    contents: dict[str, bytes] = {}
    most = 2 * (which.train + which.test) * (PIXELS + which.labels) + 10**6
    try:
        with tarfile.open(archive, "r|gz") as packed:
            for member in packed:
                most -= member.size
                if most < 0:
                    raise LoraExpError(f"data={which.name}: {archive} holds more than the published one; replace it")
                name = member.name.rsplit("/", 1)[-1]
                if name in names and member.isreg() and (file := packed.extractfile(member)) is not None:
                    contents[name] = file.read()
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LoraExpError(f"{archive}: can't be unpacked ({said}); put a whole file there") from error
    for name in names:
        if name not in contents:
            raise LoraExpError(f"data={which.name}: {archive} does not hold {name}; put the published file there")
    return contents


def _records(which: CifarSet, files: Mapping[str, bytes], each: int, where: Path) -> Pictures:
    """Return the records of files that have to hold `each` many."""
    import numpy as np

    record = which.labels + PIXELS
    images: list[NDArray[np.uint8]] = []
    labels: list[NDArray[np.int64]] = []
    for name, content in files.items():
        if len(content) != each * record:
            raise LoraExpError(
                f"data={which.name}: {name} in {where} does not hold {each} records of {record} bytes; "
                "put the published file there"
            )
        values = np.frombuffer(content, np.uint8).reshape(each, record)
        images.append(values[:, which.labels :])
        labels.append(values[:, which.labels - 1].astype(np.int64))
    every = np.concatenate(labels)
    if set(np.unique(every).tolist()) != set(range(len(which.classes))):
        raise LoraExpError(
            f"data={which.name}: {' '.join(files)} in {where} does not hold the labels 0 to {len(which.classes) - 1}; "
            "put the published file there"
        )
    return Pictures(np.concatenate(images).reshape(-1, *SHAPE), every)
