"""The data sets that torchvision knows, from the files that their authors publish, in the data root.

torchvision itself only says where files can be downloaded: it checks how files are packed, where this checks what they
hold, and it would run code that CIFAR's files for Python hold.
"""

from __future__ import annotations

import difflib
import string
from pathlib import Path

from lora_exp.data import cifar, embedded, idx, svhn
from lora_exp.data.idx import IdxSet, Part
from lora_exp.data.raw import RawData
from lora_exp.errors import LoraExpError

DIGITS = tuple(string.digits)
FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
HIRAGANA = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
MNIST_TRAIN = Part("train-images-idx3-ubyte", "train-labels-idx1-ubyte", 60_000, 60_000)
MNIST_TEST = Part("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte", 10_000, 10_000)
IDX_SETS = {
    "mnist": IdxSet("mnist", "MNIST", MNIST_TRAIN, MNIST_TEST, DIGITS),
    "fashion_mnist": IdxSet("fashion_mnist", "FashionMNIST", MNIST_TRAIN, MNIST_TEST, FASHION),
    "kmnist": IdxSet("kmnist", "KMNIST", MNIST_TRAIN, MNIST_TEST, HIRAGANA),
    # The first 10,000 of QMNIST's test images are those of MNIST; the labels have columns about the writer.
    "qmnist": IdxSet(
        "qmnist",
        "QMNIST",
        Part("qmnist-train-images-idx3-ubyte", "qmnist-train-labels-idx2-int", 60_000, 60_000, 8),
        Part("qmnist-test-images-idx3-ubyte", "qmnist-test-labels-idx2-int", 60_000, 10_000, 8),
        DIGITS,
    ),
}
MERGED = (*DIGITS, *string.ascii_uppercase, *"abdefghnqrt")  # letters whose two cases look alike are one class
# Split -> training images, test images, classes, the first label.
EMNIST_SPLITS = {
    "balanced": (112_800, 18_800, MERGED, 0),
    "byclass": (697_932, 116_323, (*DIGITS, *string.ascii_uppercase, *string.ascii_lowercase), 0),
    "bymerge": (697_932, 116_323, MERGED, 0),
    "letters": (124_800, 20_800, tuple(string.ascii_lowercase), 1),
    "digits": (240_000, 40_000, DIGITS, 0),
    "mnist": (60_000, 10_000, DIGITS, 0),
}
NAMES = (*IDX_SETS, "emnist", "cifar10", "cifar100", "svhn")


def read(name: str, root: Path, split: str | None = None) -> RawData:
    """Read data set `name`, one of `NAMES`, from data root `root`; `split` is one of `EMNIST_SPLITS`, for emnist alone.

    MNIST ships with the package. Files of others that aren't in `root` are downloaded. Raises LoraExpError for another
    name or split, for files that can't be had, and for files that don't hold what they should.
    """
    if name not in NAMES:
        close = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"did you mean {close[0]}?" if close else f"must be one of {', '.join(NAMES)}"
        raise LoraExpError(f"data={name}: {hint}")
    if name != "emnist" and split is not None:
        raise LoraExpError(f"data={name}: has no split {split!r}; only emnist has several")
    if name == "emnist":
        return idx.read(emnist(split), root)
    if name == "mnist":
        embedded.unpack(root)
    if name in IDX_SETS:
        return idx.read(IDX_SETS[name], root, download=name != "mnist")
    return (
        svhn.read(root) if name == "svhn" else cifar.read(cifar.CIFAR10 if name == "cifar10" else cifar.CIFAR100, root)
    )


def emnist(split: str | None) -> IdxSet:
    """Return what split `split` of EMNIST has to hold. Raises LoraExpError for another split."""
    if split not in EMNIST_SPLITS:
        raise LoraExpError(f"data=emnist: the split must be one of {', '.join(EMNIST_SPLITS)}, not {split}")
    train, test, classes, first = EMNIST_SPLITS[split]
    parts = [
        Part(f"emnist-{split}-{part}-images-idx3-ubyte", f"emnist-{split}-{part}-labels-idx1-ubyte", count, count)
        for part, count in (("train", train), ("test", test))
    ]
    return IdxSet("emnist", "EMNIST", parts[0], parts[1], classes, first, transposed=True, archive="gzip.zip")
