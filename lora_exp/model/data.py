"""The images that a run trains on and is judged by, as tensors on the device: bytes, normalised batch by batch.

Shapes: N images, I values of an image (channels x height x width), C classes.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from lora_exp.config.images import ImageFacts
from lora_exp.config.spec import DataSpec, FinetuneSpec
from lora_exp.data.header import header
from lora_exp.errors import LoraExpError


@dataclass(frozen=True)
class Images:
    """Pixels [N, I] uint8 of images. An index gives those images normalised: float32 of the index's shape and I."""

    pixels: torch.Tensor
    facts: ImageFacts

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, at: torch.Tensor | slice) -> torch.Tensor:
        # Element by element, so an image has the same bits in any batch.
        return self.pixels[at].to(torch.float32).div_(255).sub_(self._mean).div_(self._std)

    @functools.cached_property
    def _mean(self) -> torch.Tensor:
        return self._by_pixel(self.facts.mean)

    @functools.cached_property
    def _std(self) -> torch.Tensor:
        return self._by_pixel(self.facts.std)

    def _by_pixel(self, by_channel: Sequence[float]) -> torch.Tensor:
        values = torch.tensor(by_channel, dtype=torch.float32, device=self.pixels.device)
        return values.repeat_interleave(self.facts.pixels // len(by_channel))


@dataclass(frozen=True)
class Split:
    """Images and their labels [N] int64, on one device."""

    images: Images
    labels: torch.Tensor

    def of_classes(self, labels: tuple[int, ...]) -> torch.Tensor:
        """Return the indices [M] of the images of these classes: int64, ascending, on the CPU."""
        wanted = torch.zeros(len(self.images.facts.classes), dtype=torch.bool)
        wanted[list(labels)] = True
        return wanted[self.labels.cpu()].nonzero().flatten()

    def where(self, at: torch.Tensor | slice) -> Split:
        """Return the images of these indices."""
        at = at if isinstance(at, slice) else at.to(self.labels.device)
        return Split(Images(self.images.pixels[at], self.images.facts), self.labels[at])


@dataclass(frozen=True)
class ImageData:
    """The splits of a data set, and the SHA-256 of the whole set."""

    train: Split
    validation: Split | None
    test: Split
    sha256: str
    skipped: int = 0  # pictures that could not be read and were left out

    @property
    def facts(self) -> ImageFacts:
        """What all of its images have in common."""
        return self.train.images.facts

    def target(self, how: FinetuneSpec) -> tuple[int, ...]:
        """The labels of the target. Raises LoraExpError for a class that does not exist, and for all of them."""
        found = self.facts.positions("finetune.target", how.target)
        if len(found) == len(self.facts.classes):
            raise LoraExpError(f"finetune.target={','.join(map(str, how.target))}: must leave at least one class out")
        return found


def load(spec: DataSpec, prepared: Path, device: torch.device) -> ImageData:
    """Read a data set from its prepared file.

    `spec.validation` training images are held out, evenly from all classes, the last ones of each; without any, the
    validation images of the source are used, if it has some. Of the rest, the first `spec.limit` are kept. Raises
    LoraExpError when a class keeps no training images.
    """
    found, about = load_file(prepared), header(prepared)
    assert about is not None, "`prepare` has just read it"

    def split(name: str) -> Split:
        pixels, labels = found[f"{name}_images"], found[f"{name}_labels"]
        return Split(Images(pixels.flatten(1).to(device), about.facts), labels.to(device, torch.int64))

    train = split("train")
    validation = split("validation") if "validation_images" in found else None
    if spec.validation:
        held = _held_out(train.labels.cpu(), spec.validation, about.facts)
        validation, train = train.where(held.nonzero().flatten()), train.where((~held).nonzero().flatten())
    if spec.limit is not None:
        train = train.where(slice(spec.limit))
    counts = torch.bincount(train.labels.cpu(), minlength=len(about.facts.classes))
    if empty := [name for name, count in zip(about.facts.classes, counts.tolist(), strict=True) if not count]:
        raise LoraExpError(
            f"data.validation={spec.validation}, data.limit={spec.limit}: leave no training image of class {empty[0]}"
        )
    return ImageData(train, validation, split("test"), about.sha256, about.skipped)


def _held_out(labels: torch.Tensor, wanted: float, facts: ImageFacts) -> torch.Tensor:
    """Which images are held out, [N] bool: the last ones of each class, as many as its share of all images."""
    count = len(labels)
    number = int(wanted) if wanted >= 1 else round(wanted * count)
    if number >= count:
        raise LoraExpError(f"data.validation={wanted:g}: must leave some of the {count} training images")
    of_class = [(labels == label).nonzero().flatten() for label in range(len(facts.classes))]
    shares = torch.tensor([number * len(own) / count for own in of_class], dtype=torch.float64)
    quota = shares.floor().long()
    # The largest remainders get the images that are left; the first of equals.
    order = (quota - shares).argsort(stable=True)
    quota[order[: number - int(quota.sum())]] += 1
    held = torch.zeros(count, dtype=torch.bool)
    for own, most in zip(of_class, quota.tolist(), strict=True):
        held[own[len(own) - most :]] = True
    return held
