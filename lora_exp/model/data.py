"""Data sets as normalised tensors on the device.

The first use of a data set reads its IDX files with torchvision and writes one safetensors file, the prepared file.
Later runs read only that file and import no torchvision. MNIST needs no network: its files ship with the package
(`embedded/mnist`) and are unpacked into the data root.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import URLError

from lora_exp.config.spec import CLASSES, MEAN, SIDE, STD, TEST_IMAGES, TRAIN_IMAGES, DataSpec
from lora_exp.errors import LoraExpError, writable_folder

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

EMBEDDED = Path(__file__).parent / "embedded" / "mnist"
MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}

TORCHVISION_CLASSES = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "kmnist": "KMNIST", "qmnist": "QMNIST"}


@dataclass(frozen=True)
class Split:
    """Images [N, 784] float32, normalised, and labels [N] int64, on one device."""

    images: torch.Tensor
    labels: torch.Tensor

    def of_classes(self, digits: tuple[int, ...]) -> torch.Tensor:
        """Return the indices [M] of the images whose label is in `digits`: int64, ascending, on the CPU."""
        import torch

        wanted = torch.zeros(CLASSES, dtype=torch.bool)
        wanted[list(digits)] = True
        return wanted[self.labels.cpu()].nonzero().flatten()


@dataclass(frozen=True)
class ImageData:
    """The splits of a data set, and the SHA-256 of the whole set."""

    train: Split
    validation: Split | None
    test: Split
    sha256: str


def load(spec: DataSpec, root: Path, device: torch.device) -> ImageData:
    """Read data set `spec.name` from `root`, and prepare it on first use.

    The last `spec.validation` training images are held out for validation; of the rest, the first `spec.limit` are
    kept. Raises LoraExpError when files are missing and can't be downloaded, or are damaged.
    """
    import torch

    raw, sha256 = _prepare(spec.name, root)
    train_end = TRAIN_IMAGES - spec.validation
    kept = train_end if spec.limit is None else min(spec.limit, train_end)

    def split(pixels: NDArray[Any], classes: NDArray[Any]) -> Split:
        images, labels = torch.from_numpy(pixels), torch.from_numpy(classes)
        scaled = images.to(device).reshape(len(images), -1).to(torch.float32)
        return Split(scaled.div_(255).sub_(MEAN).div_(STD), labels.to(device, torch.int64))

    images, labels = raw["train_images"], raw["train_labels"]
    return ImageData(
        train=split(images[:kept], labels[:kept]),
        validation=split(images[train_end:], labels[train_end:]) if spec.validation else None,
        test=split(raw["test_images"], raw["test_labels"]),
        sha256=sha256,
    )


def test_pictures(name: str, root: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the test images of a data set as pixels [N, 28, 28] uint8, and their labels [N] uint8, for figures.

    Needs no torch where the data set is prepared. Raises LoraExpError as `load` does.
    """
    raw, _ = _prepare(name, root)
    return raw["test_images"], raw["test_labels"]


def read_prepared(path: Path) -> tuple[dict[str, NDArray[Any]], str] | None:
    """Read the uint8 arrays of a prepared file and their SHA-256; None when the file is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            sha256 = str((file.metadata() or {}).get("sha256"))
    except SafetensorError:
        return None
    return (arrays, sha256) if sha256 == _sha256_of(arrays) else None


def damaged_embedded_files() -> list[Path]:
    """List the MNIST files of the package that are not the published ones."""
    packed = {name: EMBEDDED / f"{name}.xz" for name in MNIST_SHA256}
    return [path for name, path in packed.items() if _is_damaged(name, lzma.decompress(path.read_bytes()))]


def damaged_unpacked_files(root: Path) -> list[Path]:
    """List the MNIST files that are unpacked in data root `root` and are not the published ones."""
    unpacked = {name: root / "MNIST" / "raw" / name for name in MNIST_SHA256}
    return [path for name, path in unpacked.items() if path.exists() and _is_damaged(name, path.read_bytes())]


def prepared_sha256(name: str, root: Path) -> str | None:
    """Return the SHA-256 that a data set's prepared file states, in a millisecond; None where there is no such file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(root / f"{name}.safetensors", framework="numpy") as file:
            return (file.metadata() or {}).get("sha256")
    except (OSError, SafetensorError):
        return None


def _prepare(name: str, root: Path) -> tuple[dict[str, NDArray[Any]], str]:
    """Return the uint8 arrays of a data set and their SHA-256; write its prepared file if it is missing or damaged."""
    from filelock import FileLock
    from safetensors.numpy import save_file

    target = root / f"{name}.safetensors"
    with writable_folder("data.root", root), FileLock(root / f"{name}.lock"):
        tensors = read_prepared(target) if target.is_file() else None
        if tensors is not None:
            return tensors
        arrays = _read_idx(name, root)
        sha256, temporary = _sha256_of(arrays), target.with_suffix(".tmp")
        save_file(arrays, temporary, metadata={"sha256": sha256})
        temporary.replace(target)
        return arrays, sha256


def _sha256_of(tensors: dict[str, NDArray[Any]]) -> str:
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(name.encode())
        total.update(tensors[name].data)
    return total.hexdigest()


def _read_idx(name: str, root: Path) -> dict[str, NDArray[Any]]:
    """Read the four uint8 arrays from IDX files with torchvision, which downloads missing files."""
    from torchvision import datasets  # takes 4 s to import

    cls: Any = getattr(datasets, TORCHVISION_CLASSES[name])
    if name == "mnist":
        _unpack_embedded(root)
    folder = root / cls.__name__ / "raw"
    _unpack(folder)
    tensors = {}
    for part, expected in (("train", TRAIN_IMAGES), ("test", TEST_IMAGES)):
        options = {"what": part if part == "train" else "test10k"} if name == "qmnist" else {"train": part == "train"}
        try:
            loaded = cls(str(root), download=name != "mnist", **options)
        except (RuntimeError, URLError, ValueError, AssertionError, EOFError) as error:
            files = _file_names(cls, part)
            if all((folder / file.removesuffix(".gz")).exists() for file in files):
                raise LoraExpError(
                    f"data={name}: a file in {folder} is damaged; delete the folder and try again"
                ) from error
            raise LoraExpError(
                f"data={name}: not in {folder}, and the download failed; put these files there: {', '.join(files)}"
            ) from error
        images, labels = loaded.data, loaded.targets
        labels = labels[:, 0] if labels.ndim == 2 else labels  # QMNIST carries writer columns
        if images.shape != (expected, SIDE, SIDE) or labels.shape != (expected,) or int(labels.max()) >= CLASSES:
            raise LoraExpError(f"data={name}: {folder} does not hold {expected} labelled {part} images of 28 x 28")
        tensors[f"{part}_images"] = images.contiguous().numpy()
        tensors[f"{part}_labels"] = labels.to(images.dtype).contiguous().numpy()
    return tensors


def _unpack(folder: Path) -> None:
    """Unpack the `.gz` files in a folder, however they were compressed: torchvision takes one form of each only."""
    for packed in sorted(folder.glob("*.gz")):
        target = packed.with_suffix("")
        if not target.exists():
            temporary = target.with_suffix(".tmp")
            try:
                temporary.write_bytes(gzip.decompress(packed.read_bytes()))
            except (OSError, EOFError, zlib.error) as error:
                raise LoraExpError(f"{packed}: can't be unpacked ({error}); put a whole file there") from error
            temporary.replace(target)


def _file_names(cls: Any, part: str) -> list[str]:
    resources = cls.resources
    if isinstance(resources, dict):  # QMNIST lists its files by subset
        resources = resources["train" if part == "train" else "test"]
    return [str(entry[0]).rsplit("/", 1)[-1] for entry in resources]


def _unpack_embedded(root: Path) -> None:
    """Unpack missing MNIST files into data root `root`. Raises LoraExpError when a file there is damaged."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    for name in MNIST_SHA256:
        target = folder / name
        if not target.exists():
            temporary = target.with_suffix(".tmp")
            temporary.write_bytes(lzma.decompress((EMBEDDED / f"{name}.xz").read_bytes()))
            temporary.replace(target)
    for path in damaged_unpacked_files(root):
        raise LoraExpError(f"data.root={root}: file {path} is damaged; delete it, and the next run unpacks it again")


def _is_damaged(name: str, content: bytes) -> bool:
    return hashlib.sha256(content).hexdigest() != MNIST_SHA256[name]
