"""The four files of MNIST, which ship with the package and are unpacked into the data root."""

from __future__ import annotations

import hashlib
import lzma
from pathlib import Path

from lora_exp.errors import LoraExpError, writable_folder

EMBEDDED = Path(__file__).with_name("mnist")
MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


def unpack(root: Path) -> None:
    """Unpack missing MNIST files into data root `root`. Raises LoraExpError when a file there is damaged."""
    with writable_folder("data.root", root):
        folder = root / "MNIST" / "raw"
        folder.mkdir(parents=True, exist_ok=True)
        for name in MNIST_SHA256:
            target = folder / name
            if not target.exists():
                temporary = target.with_suffix(".tmp")
                temporary.write_bytes(lzma.decompress((EMBEDDED / f"{name}.xz").read_bytes()))
                temporary.replace(target)
        for path in damaged_unpacked_files(root):
            raise LoraExpError(
                f"data.root={root}: file {path} is damaged; delete it, and the next run unpacks it again"
            )


def damaged_embedded_files() -> list[Path]:
    """List the MNIST files of the package that are not the published ones."""
    packed = {name: EMBEDDED / f"{name}.xz" for name in MNIST_SHA256}
    return [path for name, path in packed.items() if _is_damaged(name, lzma.decompress(path.read_bytes()))]


def damaged_unpacked_files(root: Path) -> list[Path]:
    """List the MNIST files that are unpacked in data root `root` and are not the published ones."""
    unpacked = {name: root / "MNIST" / "raw" / name for name in MNIST_SHA256}
    return [path for name, path in unpacked.items() if path.exists() and _is_damaged(name, path.read_bytes())]


def _is_damaged(name: str, content: bytes) -> bool:
    return hashlib.sha256(content).hexdigest() != MNIST_SHA256[name]
