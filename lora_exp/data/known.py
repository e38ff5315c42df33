"""Known sets in the form that is wanted: some of their classes, another size, grey or colour."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_exp.config.spec import DataSpec
from lora_exp.data.classes import chosen
from lora_exp.data.pictures import resized
from lora_exp.data.raw import Pictures, RawData, Wanted

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def converted(raw: RawData, wanted: Wanted, spec: DataSpec) -> RawData:
    """Return a known set as it is wanted. Raises LoraExpError for classes that it does not have."""
    classes = chosen(raw.classes, wanted.classes, f"data={spec.name}")
    labels = [raw.classes.index(name) for name in classes]
    train, test = (_converted(one, labels, wanted) for one in (raw.train, raw.test))
    validation = None if raw.validation is None else _converted(raw.validation, labels, wanted)
    return RawData(train, test, validation, classes, raw.skipped)


def _converted(pictures: Pictures, labels: list[int], wanted: Wanted) -> Pictures:
    import numpy as np

    kept = np.isin(pictures.labels, labels)
    renamed = np.full(int(pictures.labels.max()) + 1, -1)
    renamed[labels] = np.arange(len(labels))
    images = pictures.images[kept]
    channels = wanted.channels or images.shape[1]
    if channels != images.shape[1] or wanted.size not in (None, images.shape[2:]):
        images = np.stack([_as_wanted(image, wanted.size, channels) for image in images])
    return Pictures(images, renamed[pictures.labels[kept]])


def _as_wanted(image: NDArray[np.uint8], size: tuple[int, int] | None, channels: int) -> NDArray[np.uint8]:
    """Return a picture [C, H, W] in another size and with other channels."""
    from PIL import Image

    whole = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
    return resized(whole, size, channels)
