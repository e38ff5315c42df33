"""One picture: from the bytes of a file to uint8 [C, H, W], with what is refused.

Grey is what Pillow calls so by mode, and a palette of greys; an RGB file of grey pixels counts as colour. What is
transparent is laid on white, the paper of most drawings. 16-bit greys keep their high byte, as Pillow does for colour.
A picture is squeezed to the wanted size, with bilinear interpolation that averages when it shrinks.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

MOST_PIXELS = 50_000_000
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")
GREY_MODES = ("1", "L", "LA", "La", "I", "F")  # and I;16 in its byte orders
ORIENTATION = 0x0112  # the EXIF tag
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_HEADER = struct.Struct(">8sI4sII")  # signature, length and name of the first chunk, width, height


class BadPicture(Exception):
    """A picture that can't be used; the message is half a line, without the file's name."""


@contextmanager
def quiet() -> Iterator[None]:
    """Ignore the warnings of Pillow: it warns of odd metadata, and what can't be used is refused here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def decode(content: bytes, size: tuple[int, int] | None, channels: int | None) -> NDArray[np.uint8]:
    """Return a picture, upright, as [C, H, W].

    `size` is (height, width), or None for its own; `channels` 1 or 3, or None for 3 where it has colour and 1 where it
    is grey. Raises BadPicture.
    """
    image = _opened(content)
    try:
        image.load()
        orientation = _orientation(image)
        upright = _turned(_of_eight_bits(image), orientation)
    except BadPicture:
        raise
    except Exception as error:  # damaged files raise whatever a decoder stumbles over
        raise BadPicture(_in_words(error)) from error
    return resized(upright, size, channels or (1 if upright.mode == "L" else 3))


def resized(image: Image, size: tuple[int, int] | None, channels: int) -> NDArray[np.uint8]:
    """Return an image of eight bits as [channels, H, W] of the given size (height, width)."""
    import numpy as np
    from PIL.Image import Resampling

    mode = "L" if channels == 1 else "RGB"
    if image.mode != mode:
        image = image.convert(mode)
    if size is not None and image.size != (size[1], size[0]):
        image = image.resize((size[1], size[0]), Resampling.BILINEAR)
    pixels = np.asarray(image)
    return pixels[np.newaxis] if channels == 1 else pixels.transpose(2, 0, 1)


def _opened(content: bytes) -> Image:
    import PIL.Image

    if content.startswith(PNG_SIGNATURE) and len(content) >= PNG_HEADER.size:
        _refuse_size(*PNG_HEADER.unpack_from(content)[3:])  # of one without pixels Pillow says that it is no image
    try:
        image = PIL.Image.open(BytesIO(content), formats=FORMATS)
    except PIL.UnidentifiedImageError as error:
        raise BadPicture(f"is no image; {', '.join(FORMATS)} are read" if content else "is empty") from error
    except PIL.Image.DecompressionBombError as error:  # Pillow's own limit, above 50 megapixels
        raise BadPicture(f"has more than {MOST_PIXELS // 10**6} megapixels, the most that is read") from error
    except Exception as error:  # damaged files raise whatever a decoder stumbles over
        raise BadPicture(_in_words(error)) from error
    _refuse_size(*image.size)
    return image


def _refuse_size(width: int, height: int) -> None:
    if width * height == 0:
        raise BadPicture("has no pixels")
    if width * height > MOST_PIXELS:
        millions = width * height / 10**6
        raise BadPicture(f"has {millions:,.0f} megapixels; at most {MOST_PIXELS // 10**6} are read")


def _in_words(error: Exception) -> str:
    """Say in half a line that a file is damaged."""
    return f"is damaged ({' '.join(str(error).split()) or type(error).__name__})"


def _orientation(image: Image) -> int:
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # saves the search for what is rare
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # metadata that can't be read says nothing
        return 1


def _turned(image: Image, orientation: int) -> Image:
    """Turn a picture as its EXIF orientation says."""
    from PIL.Image import Transpose

    turn = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }.get(orientation)
    return image if turn is None else image.transpose(turn)


def _has_colour(image: Image) -> bool:
    if image.mode in ("P", "PA") and image.palette is not None:
        import numpy as np

        palette = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
        return bool((palette != palette[:, :1]).any())
    return image.mode not in GREY_MODES and not image.mode.startswith("I;16")


def _of_eight_bits(image: Image) -> Image:
    """Return a decoded image as mode L or RGB: wider values cut to eight bits, what is transparent on white."""
    import numpy as np
    import PIL.Image

    if image.mode in ("L", "RGB") and "transparency" not in image.info:
        return image
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
        raise BadPicture("has values of 32 bits; at most 16 bits are read")
    if image.mode.startswith("I"):  # a PNG of 16 bits is in mode I in older versions of Pillow
        return PIL.Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    colour = "RGB" if _has_colour(image) else "L"
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = PIL.Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = PIL.Image.alpha_composite(white, image)
    return image.convert("RGB").convert(colour)
