"""Images that come as arrays: to uint8, to the wanted size and channels, and split where the source has no split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lora_exp.data.classes import chosen, complete, refuse_share
from lora_exp.data.decoding import test_side
from lora_exp.data.memory import must_fit
from lora_exp.data.pictures import resized
from lora_exp.data.raw import Pictures, RawData, Wanted
from lora_exp.errors import LoraExpError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SLICE = 1024  # images that are converted at a time


def data_set(
    splits: Mapping[str, tuple[NDArray[Any], NDArray[np.int64]]], names: Sequence[str], wanted: Wanted, where: str
) -> RawData:
    """Return splits of images [N, H, W] or [N, H, W, C] and labels [N], positions in `names`, as they are wanted.

    Without a test split, the training images are split by a hash of each one's values. Raises LoraExpError for images
    that can't be used, and for classes that a split doesn't have.
    """
    import numpy as np

    classes = chosen(names, wanted.classes, where)
    positions = np.full(len(names), -1)
    positions[[names.index(name) for name in classes]] = np.arange(len(classes))
    full = largest_value({split: images for split, (images, _) in splits.items()}, where)
    shapes = {split: images.shape[1:] for split, (images, _) in splits.items()}
    size, channels = _common(shapes, wanted, where)
    count = sum(len(labels) for _, labels in splits.values())
    must_fit(count * channels * size[0] * size[1], f"{count:,} images of {size[0]} x {size[1]} x {channels}", where)
    found = {}
    for split, (images, labels) in splits.items():
        mapped = positions[labels]
        kept = np.flatnonzero(mapped >= 0)
        found[split] = Pictures(_converted(images, kept, full, size, channels), mapped[kept].astype(np.int64))
    share = None
    if "test" not in found:
        refuse_share(wanted)
        share = wanted.test
        found["train"], found["test"] = _split(found["train"], share)
    return complete(found, classes, 0, where, share)


def largest_value(splits: Mapping[str, NDArray[Any]], where: str) -> int:
    """Return the value of white: 255, or 1 for floats of which none, in any split, is above 1.

    Raises LoraExpError for other types than uint8 and floats, NaN, and values outside of 0..255.
    """
    import numpy as np

    largest = 0.0
    for split, images in splits.items():
        if images.dtype == np.uint8:
            largest = 255.0
            continue
        if not np.issubdtype(images.dtype, np.floating):
            raise LoraExpError(f"{where}: {split} images are of type {images.dtype}; uint8, or floats, are read")
        for start in range(0, len(images), SLICE):
            values = images[start : start + SLICE]
            low, high = float(values.min()), float(values.max())
            if not (low >= 0 and high <= 255):  # NaN is neither
                what = "NaN" if np.isnan(low) else f"values from {low:g} to {high:g}"
                raise LoraExpError(f"{where}: {split} images hold {what}; floats must be from 0 to 1 or from 0 to 255")
            largest = max(largest, high)
    return 255 if largest > 1 else 1


def _common(shapes: Mapping[str, tuple[int, ...]], wanted: Wanted, where: str) -> tuple[tuple[int, int], int]:
    """Return the size and the channels that all images shall have."""
    for split, shape in shapes.items():
        if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3)):
            raise LoraExpError(
                f"{where}: {split} images have the shape {list(shape)}; each must be [height, width] or "
                "[height, width, channels], with 1 or 3 channels"
            )
        if 0 in shape:
            raise LoraExpError(f"{where}: {split} images have no pixels: the shape of each is {list(shape)}")
    sizes = {split: (shape[0], shape[1]) for split, shape in shapes.items()}
    size = sizes["train"]
    for split, other in sizes.items():
        if wanted.size is None and other != size:
            raise LoraExpError(
                f"data.size: {where} has train images of {size[0]} x {size[1]} and {split} images of "
                f"{other[0]} x {other[1]}; set data.size for all"
            )
    colour = any(shape[2:] == (3,) for shape in shapes.values())
    return wanted.size or size, wanted.channels or (3 if colour else 1)


def _converted(
    images: NDArray[Any], kept: NDArray[np.intp], full: int, size: tuple[int, int], channels: int
) -> NDArray[np.uint8]:
    """Return the images at `kept` as [N, C, H, W]."""
    import numpy as np
    from PIL.Image import fromarray

    result = np.empty((len(kept), channels, *size), np.uint8)
    for start in range(0, len(kept), SLICE):
        some = images[kept[start : start + SLICE]]
        if some.dtype != np.uint8:
            some = np.rint(some * (255 / full)).astype(np.uint8)
        some = some[..., np.newaxis] if some.ndim == 3 else some
        if some.shape[1:3] == size and some.shape[3] in (channels, 1):  # grey is the same in each channel
            result[start : start + len(some)] = some.transpose(0, 3, 1, 2)
            continue
        for at, one in enumerate(some):
            result[start + at] = resized(fromarray(one[..., 0] if one.shape[2] == 1 else one), size, channels)
    return result


def _split(pictures: Pictures, share: float) -> tuple[Pictures, Pictures]:
    import numpy as np

    test = np.array([test_side(image.tobytes(), "", share) for image in pictures.images], bool)
    return (
        Pictures(pictures.images[~test], pictures.labels[~test]),
        Pictures(pictures.images[test], pictures.labels[test]),
    )
