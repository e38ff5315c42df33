"""What is known of the images of a data set without reading them: shape, classes, mean and deviation."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lora_exp.config.fields import is_int, is_number
from lora_exp.errors import LoraExpError

MANY_CLASSES = 50  # with more, tables and MLflow leave out what they would have of each class
SHOWN_CLASSES = 20  # in a message


@dataclass(frozen=True)
class ImageFacts:
    """Channels, height and width of all images, names of the classes, mean and deviation of the pixels by channel.

    Pixels count from 0 to 1 there. The position of a class among the names is its label.
    """

    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def pixels(self) -> int:
        """I: values of an image."""
        channels, height, width = self.shape
        return channels * height * width

    def positions(self, key: str, chosen: Sequence[int | str]) -> tuple[int, ...]:
        """The labels of classes that a config names, ascending.

        A number that is no name is a label itself,
        and a name may be written in small or capital letters.

        Raises LoraExpError, naming `key`, for a class that does not exist, a number that is the name of another class,
        and a class that is named twice.
        """
        found = [self._position(key, one) for one in chosen]
        if len(set(found)) < len(found):
            raise LoraExpError(f"{key}={','.join(map(str, chosen))}: names a class twice")
        return tuple(sorted(found))

    def others(self, labels: Sequence[int]) -> tuple[int, ...]:
        """The labels of all other classes."""
        return tuple(label for label in range(len(self.classes)) if label not in labels)

    def named(self, labels: Sequence[int]) -> tuple[str, ...]:
        """The names of classes."""
        return tuple(self.classes[label] for label in labels)

    def _position(self, key: str, chosen: int | str) -> int:
        name, count = unicodedata.normalize("NFC", str(chosen)), len(self.classes)
        is_both = is_int(chosen) and name in self.classes and int(chosen) < count
        if is_both and not all(one.isdecimal() for one in self.classes):
            raise LoraExpError(
                f"{key}={name}: is the name of class number {self.classes.index(name)}, and may be meant as a number; "
                f"""write the name as '{key}="{name}"', or use other numbers"""
            )
        alike = [at for at, one in enumerate(self.classes) if one.casefold() == name.casefold()]
        if name in self.classes or len(alike) == 1:
            return self.classes.index(name) if name in self.classes else alike[0]
        if name.isdecimal() and int(name) < count:
            return int(name)
        if name.isdecimal():
            raise LoraExpError(f"{key}={name}: no such class; numbers are from 0 to {count - 1}")
        near = difflib.get_close_matches(name.casefold(), {one.casefold(): one for one in self.classes}, 1)
        guess = next((f"; did you mean {one}?" for one in self.classes if [one.casefold()] == near), "")
        some = ", ".join(self.classes[:SHOWN_CLASSES]) + (", ..." if len(self.classes) > SHOWN_CLASSES else "")
        raise LoraExpError(f"{key}={name}: no such class{guess or f'; {key} can be {some}'}")


# The reference data set. All sets of its family are normalised with its pixels, so that a base trained on one can be
# evaluated on another.
MNIST = ImageFacts((1, 28, 28), tuple(map(str, range(10))), (0.1307,), (0.3081,))


def facts_from(values: Any) -> ImageFacts:
    """The facts that a file holds; those of MNIST for None. Raises ValueError, KeyError or TypeError for any other."""
    if values is None:
        return MNIST
    shape, classes, mean, std = (tuple(values[name]) for name in ("shape", "classes", "mean", "std"))
    valid = [
        len(shape) == 3 and all(is_int(side) and 0 < side < 2**31 for side in shape),
        len(classes) > 1
        and all(isinstance(name, str) and name for name in classes)
        and len({*classes}) == len(classes),
        len(mean) == len(std) == shape[0] and all(map(is_number, (*mean, *std))) and min(std) > 0,
    ]
    if not all(valid):
        raise ValueError("facts must be a shape, different classes, and a mean and a deviation for each channel")
    return ImageFacts(shape, classes, tuple(map(float, mean)), tuple(map(float, std)))
