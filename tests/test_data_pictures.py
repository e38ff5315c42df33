"""pytest tests/test_data_pictures.py"""

from __future__ import annotations

import zlib
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from lora_exp.data.pictures import FORMATS, ORIENTATION, BadPicture, decode, quiet

RGB = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
GREY = RGB[..., 0]
LOSSLESS = [fmt for fmt in FORMATS if fmt not in ("JPEG", "GIF")]


def encoded(image: Image.Image | NDArray[Any], fmt: str = "PNG", **options: Any) -> bytes:
    file = BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    if fmt == "WEBP":
        options["lossless"] = True
    image.save(file, fmt, **options)
    return file.getvalue()


def refusal(content: bytes) -> str:
    with pytest.raises(BadPicture) as caught, quiet():
        decode(content, None, 3)
    line = str(caught.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize("fmt", LOSSLESS)
def test_colour_keeps_its_values_in_every_lossless_format(fmt: str) -> None:
    content = encoded(RGB, fmt)
    found = decode(content, None, None)
    assert (found.shape, found.dtype) == ((3, 4, 6), np.uint8)
    assert (found.transpose(1, 2, 0) == RGB).all()


@pytest.mark.parametrize("fmt", ["PNG", "BMP", "TIFF", "GIF"])
def test_grey_keeps_its_values_and_is_known_to_be_grey(fmt: str) -> None:
    content = encoded(GREY, fmt)
    assert decode(content, None, None).shape == (1, 4, 6)
    assert (decode(content, None, 1)[0] == GREY).all()
    assert (decode(content, None, 3) == GREY).all()


def test_jpeg_is_read_as_pillow_reads_it() -> None:
    content = encoded(RGB, "JPEG")
    assert (decode(content, None, 3).transpose(1, 2, 0) == np.asarray(Image.open(BytesIO(content)))).all()
    assert decode(content, None, None).shape == (3, 4, 6)
    assert decode(encoded(GREY, "JPEG"), None, None).shape == (1, 4, 6)


def test_colour_becomes_grey_by_luma() -> None:
    luma = RGB @ np.array([0.299, 0.587, 0.114])
    assert np.abs(decode(encoded(RGB), None, 1)[0] - luma).max() <= 1


def test_what_is_transparent_lies_on_white() -> None:
    alpha = np.zeros((4, 6), np.uint8)
    alpha[:, 3:] = 255
    for mode, values in (("RGBA", np.dstack([RGB, alpha])), ("LA", np.dstack([GREY, alpha]))):
        content = encoded(Image.fromarray(values, mode))
        assert len(decode(content, None, None)) == (3 if mode == "RGBA" else 1)
        found = decode(content, None, 3)
        assert (found[..., :3] == 255).all()
        assert (found[..., 3:] == (RGB.transpose(2, 0, 1) if mode == "RGBA" else GREY)[..., 3:]).all()


def test_a_transparent_colour_of_a_palette_lies_on_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    for fmt in ("PNG", "GIF"):
        content = encoded(image, fmt, transparency=0)
        with quiet():
            assert decode(content, None, None)[:, 0].T.tolist() == [[255, 255, 255], [40, 50, 60]]


def test_a_palette_of_greys_is_grey() -> None:
    image = Image.fromarray(GREY)
    image.putpalette([value for grey in range(256) for value in (255 - grey,) * 3])
    assert decode(encoded(image), None, None).shape == (1, 4, 6)
    assert (decode(encoded(image), None, 1)[0] == 255 - GREY).all()


@pytest.mark.parametrize("fmt", ["PNG", "TIFF"])
def test_sixteen_bits_keep_their_high_byte(fmt: str) -> None:
    wide = (GREY.astype(np.uint16) << 8) + 77
    content = encoded(wide, fmt)
    assert decode(content, None, None).shape == (1, 4, 6)
    assert (decode(content, None, 1)[0] == GREY).all()


def test_one_bit_is_black_and_white() -> None:
    content = encoded(Image.fromarray(GREY > 127))
    assert decode(content, None, None).shape == (1, 4, 6)
    assert (decode(content, None, 1)[0] == np.where(GREY > 127, 255, 0)).all()


def test_cmyk_is_read_as_colour() -> None:
    for fmt in ("TIFF", "JPEG"):
        image = Image.new("CMYK", (3, 2), (0, 255, 255, 0))  # red
        red, green, blue = decode(encoded(image, fmt), None, None)[:, 0, 0].tolist()
        assert red > 250 and green < 5 and blue < 5


@pytest.mark.parametrize("fmt", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_metadata_says(fmt: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    content = encoded(RGB, fmt, exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(BytesIO(content))).convert("RGB"))
    found = decode(content, None, 3)
    assert (found.transpose(1, 2, 0) == upright).all()
    if orientation == 6:
        assert (upright == np.rot90(RGB, -1)).all()


def test_of_moving_pictures_the_first_is_read() -> None:
    frames = [Image.fromarray(np.full((2, 2), value, np.uint8)) for value in (10, 200)]
    for fmt in ("GIF", "TIFF", "WEBP"):
        content = encoded(frames[0], fmt, save_all=True, append_images=frames[1:])
        assert (decode(content, None, 1) == 10).all()


def test_a_picture_is_squeezed_to_the_wanted_height_and_width() -> None:
    wide = np.zeros((10, 40), np.uint8)
    wide[:, 20:] = 200
    found = decode(encoded(wide), (5, 8), 1)
    assert found.shape == (1, 5, 8)
    assert found[0, 2].tolist() == pytest.approx([0, 0, 0, 25, 175, 200, 200, 200], abs=30)
    checks = np.indices((64, 64)).sum(0) % 2 * 255
    assert np.abs(decode(encoded(checks.astype(np.uint8)), (8, 8), 1) - 127.5).max() < 3, "shrinking must average"


def test_an_interlaced_png_and_one_with_text_are_read() -> None:
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_text("eXIf", "a word that looks like a chunk")
    assert (decode(encoded(RGB, pnginfo=text), None, 3).transpose(1, 2, 0) == RGB).all()


def with_size(width: int, height: int) -> bytes:
    content = bytearray(encoded(RGB))
    content[16:24] = width.to_bytes(4) + height.to_bytes(4)
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4)
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"just text", "is no image; PNG, JPEG, BMP, GIF, TIFF, WEBP are read"),
        (encoded(RGB)[:40], "is no image; "),
        (encoded(RGB)[:-40], "is damaged ("),
        (encoded(RGB, "JPEG")[:-20], "is damaged (image file is truncated"),
        (encoded(RGB, "BMP")[:-20], "is damaged (image file is truncated"),
        (encoded(RGB, "GIF")[:-20], "is damaged (image file is truncated"),
        (encoded(Image.fromarray(RGB).quantize())[:-30], "is damaged (image file is truncated"),
        (with_size(0, 4), "has no pixels"),
        (with_size(4, 0), "has no pixels"),
        (with_size(20_000, 10_000), "has 200 megapixels; at most 50 are read"),
        (with_size(10_000, 5_001), "has 50 megapixels; at most 50 are read"),
        (encoded(RGB, "PPM"), "is no image; "),
        (encoded(np.ones((2, 2), np.float32), "TIFF"), "has values of 32 bits; at most 16 bits are read"),
        (encoded(np.ones((2, 2), np.int32), "TIFF"), "has values of 32 bits; at most 16 bits are read"),
    ],
)
def test_what_cannot_be_used_is_refused_in_half_a_line(content: bytes, said: str) -> None:
    assert refusal(content).startswith(said)


@pytest.mark.parametrize("fmt", FORMATS)
def test_a_damaged_file_is_read_or_refused_and_never_breaks_the_reader(fmt: str) -> None:
    sound = encoded(RGB, fmt)
    random = np.random.default_rng(1)
    refused = 0
    for _ in range(150):
        content = bytearray(sound)
        for at in random.integers(0, len(sound), 3):
            content[at] = random.integers(256)
        try:
            with quiet():
                decode(bytes(content), (4, 4), None)
        except BadPicture as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused
