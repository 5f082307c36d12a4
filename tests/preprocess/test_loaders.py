"""Image files have the pixels that the loaders of torchvision, timm and transformers give, where these agree."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from vitdeploy.preprocess.images import open_image

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]
"""The loaders leave files open, and Pillow warns of transparent palettes there."""

ORIENTATION = 0x0112
RGB = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 36, 3), np.uint8))
GREY = RGB.convert("L")


def _transparent(path: Path) -> None:
    image = RGB.copy()
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save(path)


def _sixteen_bits(path: Path) -> None:
    """Write a PNG of 16 bits per channel, which Pillow reads and does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = np.random.default_rng(1).integers(0, 65536, (24, 36, 3)).astype(">u2")
    header = struct.pack(">IIBBBBB", 36, 24, 16, 2, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))


FILES: dict[str, Callable[[Path], None]] = {
    "rgb.jpg": lambda path: RGB.save(path),
    "cmyk.jpg": lambda path: RGB.convert("CMYK").save(path),
    "grey.jpg": lambda path: GREY.save(path),
    "palette.png": lambda path: RGB.quantize(64).save(path),
    "palette with a transparent colour.png": lambda path: RGB.quantize(64).save(path, transparency=3),
    "palette with many.png": lambda path: RGB.quantize(16).save(path, transparency=bytes(range(0, 256, 16))),
    "alpha.png": _transparent,
    "grey with alpha.png": lambda path: GREY.convert("LA").save(path),
    "a transparent colour.png": lambda path: RGB.save(path, transparency=(1, 2, 3)),
    "bits.png": lambda path: RGB.convert("1").save(path),
    "16 bits of each colour.png": _sixteen_bits,
    "plain.gif": lambda path: RGB.save(path),
    "transparent.gif": lambda path: RGB.quantize(64).save(path, transparency=0),
    "animation.gif": lambda path: RGB.save(path, save_all=True, append_images=[ImageOps.invert(RGB)]),
    "animation.png": lambda path: RGB.save(path, save_all=True, append_images=[ImageOps.invert(RGB)]),
    "alpha.webp": lambda path: RGB.convert("RGBA").save(path, lossless=True),
    "YCbCr.tif": lambda path: RGB.convert("YCbCr").save(path),
    "CMYK.tif": lambda path: RGB.convert("CMYK").save(path),
}


@pytest.mark.parametrize("name", FILES)
def test_files_have_the_pixels_of_every_loader(tmp_path: Path, name: str) -> None:
    from torchvision.datasets.folder import pil_loader
    from transformers.image_utils import load_image

    FILES[name](tmp_path / name)
    found = np.asarray(open_image(tmp_path / name).convert("RGB"))
    np.testing.assert_array_equal(found, np.asarray(pil_loader(str(tmp_path / name))))
    with Image.open(tmp_path / name) as image:
        np.testing.assert_array_equal(found, np.asarray(load_image(image)))


@pytest.mark.parametrize("orientation", range(9))
@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
def test_files_are_turned_as_transformers_turns_them(tmp_path: Path, orientation: int, ending: str) -> None:
    from transformers.image_utils import load_image

    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / f"turned.{ending}"
    RGB.save(path, exif=exif)
    with Image.open(path) as image:
        np.testing.assert_array_equal(np.asarray(open_image(path).convert("RGB")), np.asarray(load_image(image)))
