"""Images and labels as tensors on the device, checked, split by class.

The first use of a data set reads its IDX files through torchvision and prepares one safetensors file;
later starts read that file and import no torchvision. MNIST needs no network: its files ship with the
package (`embedded/mnist`) and are unpacked into the data root.
"""

from __future__ import annotations

import hashlib
import lzma
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import URLError

from lora_exp.config.fields import CLASSES
from lora_exp.config.spec import DataSpec
from lora_exp.errors import LoraExpError

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
TRAIN_IMAGES, TEST_IMAGES, SIDE = 60_000, 10_000, 28
# Mean and standard deviation of the MNIST training pixels; the usual constants, kept for all four data sets
# so that a base of one can be shown images of another.
MEAN, STD = 0.1307, 0.3081


@dataclass(frozen=True)
class Split:
    """Images [N, 784] float32, normalised, and labels [N] int64, on one device."""

    images: torch.Tensor
    labels: torch.Tensor

    def of_classes(self, digits: tuple[int, ...]) -> torch.Tensor:
        """Indices [M] int64, on the CPU and ascending, of the images whose label is in `digits`."""
        import torch

        wanted = torch.zeros(CLASSES, dtype=torch.bool)
        wanted[list(digits)] = True
        return wanted[self.labels.cpu()].nonzero().flatten()


@dataclass(frozen=True)
class ImageData:
    """The three splits of a data set, and the SHA-256 of the whole of it."""

    train: Split
    validation: Split | None
    test: Split
    sha256: str


def load(spec: DataSpec, root: Path, device: torch.device) -> ImageData:
    """Read data set `spec.name` from `root`, preparing it on first use.

    The last `spec.validation` training images are held out; of the rest, the first `spec.limit` are kept.
    Raises LoraExpError when the files are absent and can't be had, or are not what they should be.
    """
    import torch

    raw = _prepared(spec.name, root)
    train_end = TRAIN_IMAGES - spec.validation
    kept = train_end if spec.limit is None else min(spec.limit, train_end)

    def split(images: torch.Tensor, labels: torch.Tensor) -> Split:
        pixels = images.to(device).reshape(len(images), -1).to(torch.float32)
        return Split(pixels.div_(255).sub_(MEAN).div_(STD), labels.to(device, torch.int64))

    images, labels = raw["train_images"], raw["train_labels"]
    return ImageData(
        train=split(images[:kept], labels[:kept]),
        validation=split(images[train_end:], labels[train_end:]) if spec.validation else None,
        test=split(raw["test_images"], raw["test_labels"]),
        sha256=_sha256_of(raw),
    )


def pictures(split: Split) -> NDArray[Any]:
    """The pixels [N, 28, 28] uint8 that normalised images were made of."""
    pixels = split.images.mul(STD).add_(MEAN).mul_(255).round_()
    return pixels.to("cpu").byte().reshape(-1, SIDE, SIDE).numpy()


def read_prepared(path: Path) -> dict[str, torch.Tensor] | None:
    """The uint8 tensors of a prepared file; None when the file is cut short or does not match its hash."""
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    try:
        tensors: dict[str, torch.Tensor] = load_file(path)
        with safe_open(path, framework="pt") as opened:
            return tensors if (opened.metadata() or {}).get("sha256") == _sha256_of(tensors) else None
    except SafetensorError:
        return None


def damaged_embedded_files() -> list[Path]:
    """List the MNIST files of the package that are not the published ones."""
    packed = {name: EMBEDDED / f"{name}.xz" for name in MNIST_SHA256}
    return [path for name, path in packed.items() if _is_damaged(name, lzma.decompress(path.read_bytes()))]


def damaged_unpacked_files(root: Path) -> list[Path]:
    """List the MNIST files that are unpacked in data root `root` and are not the published ones."""
    unpacked = {name: root / "MNIST" / "raw" / name for name in MNIST_SHA256}
    return [path for name, path in unpacked.items() if path.exists() and _is_damaged(name, path.read_bytes())]


def _prepared(name: str, root: Path) -> dict[str, torch.Tensor]:
    """The uint8 tensors of a data set, from its prepared file, which is made when absent or damaged."""
    from filelock import FileLock
    from safetensors.torch import save_file

    target = root / f"{name}.safetensors"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f"{name}.lock"):
            tensors = read_prepared(target) if target.is_file() else None
            if tensors is None:
                tensors = _read_idx(name, root)
                temporary = target.with_suffix(".tmp")
                save_file(tensors, temporary, metadata={"sha256": _sha256_of(tensors)})
                temporary.replace(target)
            return tensors
    except OSError as error:
        raise LoraExpError(f"data.root={root}: must be a folder that can be written to ({error.strerror})") from error


def _sha256_of(tensors: dict[str, torch.Tensor]) -> str:
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(name.encode())
        total.update(tensors[name].numpy().tobytes())
    return total.hexdigest()


def _read_idx(name: str, root: Path) -> dict[str, torch.Tensor]:
    """The four uint8 tensors, read from IDX files by torchvision, which downloads what is absent."""
    from torchvision import datasets  # takes 4 s to import

    classes: dict[str, Any] = {
        "mnist": datasets.MNIST,
        "fashion_mnist": datasets.FashionMNIST,
        "kmnist": datasets.KMNIST,
        "qmnist": datasets.QMNIST,
    }
    cls = classes[name]
    if name == "mnist":
        _unpack_embedded(root / "MNIST" / "raw")
    folder = root / cls.__name__ / "raw"
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
                f"data={name}: not in {folder} and no download possible; put these files there: {', '.join(files)}"
            ) from error
        images, labels = loaded.data, loaded.targets
        labels = labels[:, 0] if labels.ndim == 2 else labels  # QMNIST carries writer columns
        if images.shape != (expected, SIDE, SIDE) or labels.shape != (expected,) or int(labels.max()) >= CLASSES:
            raise LoraExpError(f"data={name}: {folder} does not hold {expected} labelled {part} images of 28 x 28")
        tensors[f"{part}_images"] = images.contiguous()
        tensors[f"{part}_labels"] = labels.to(images.dtype).contiguous()
    return tensors


def _file_names(cls: Any, part: str) -> list[str]:
    resources = cls.resources
    if isinstance(resources, dict):  # QMNIST lists its files by subset
        resources = resources["train" if part == "train" else "test"]
    return [str(entry[0]).rsplit("/", 1)[-1] for entry in resources]


def _unpack_embedded(folder: Path) -> None:
    """Unpack the MNIST files into `folder` where they are absent; every file there must have its SHA-256."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in MNIST_SHA256:
        target = folder / name
        if not target.exists():
            temporary = target.with_suffix(".tmp")
            temporary.write_bytes(lzma.decompress((EMBEDDED / f"{name}.xz").read_bytes()))
            temporary.replace(target)
        if _is_damaged(name, target.read_bytes()):
            raise LoraExpError(
                f"data.root={folder.parents[1]}: file {target} is damaged; delete it, and the next run unpacks it again"
            )


def _is_damaged(name: str, content: bytes) -> bool:
    return hashlib.sha256(content).hexdigest() != MNIST_SHA256[name]
