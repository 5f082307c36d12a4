"""Decoding image files with Pillow."""

from __future__ import annotations

import io
import warnings
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vitdeploy.errors import ArtifactError, DataError
from vitdeploy.reading import open_regular

_PLUGINS = ("Avif", "Bmp", "Gif", "Jpeg", "Jpeg2K", "Mpo", "Png", "Ppm", "Tiff", "WebP")
_SIXTEEN_BIT = {"I", "I;16", "I;16L", "I;16B", "I;16N"}


def open_image(source: Path | bytes, name: str = "") -> Image.Image:
    """Decode an image file completely and return it upright, as mode ``L`` or ``RGB``.

    The EXIF orientation is applied. 16-bit greyscale is scaled to 0…255 (Pillow's own conversion would clip it).
    Transparency is dropped without blending, as torchvision and timm do, so that accuracies compare. Of an animation
    the first frame is taken.

    Args:
        source: A file, or the bytes of one.
        name: What an error calls the image; the path where empty.
    Raises:
        DataError: There is no such file, it is not an image, or it is truncated or otherwise damaged.
    """
    name = name or (str(source) if isinstance(source, Path) else "image")
    try:
        # Pillow warns of oddities in EXIF data and of very large images; neither changes the pixels.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stream = io.BytesIO(source) if isinstance(source, bytes) else open_regular(source)
            with stream, Image.open(stream, formats=formats()) as image:
                return plain_image(image, name)
    except DataError:
        raise
    except ArtifactError as error:
        absent = isinstance(error.__cause__, FileNotFoundError)
        raise DataError(f"there is no image {name!r}" if absent else str(error)) from error
    except UnidentifiedImageError as error:
        if _is_empty(source):
            raise DataError(f"image {name!r} is empty: remove or replace it") from error
        raise DataError(
            f"{name!r} is not an image that can be read (another format, or damaged): remove or replace it"
        ) from error
    except Image.DecompressionBombError as error:
        raise DataError(f"image {name!r} is too large to be decoded safely: {error}") from error
    except OSError as error:
        if error.errno is not None:
            raise DataError(f"image {name!r} cannot be read: {error.strerror}") from error
        raise DataError(_damaged(name, error)) from error
    except Exception as error:  # decoders answer damaged files with SyntaxError, ValueError, struct.error and more
        raise DataError(_damaged(name, error)) from error


def plain_image(image: Image.Image, name: str = "image") -> Image.Image:
    """Return a copy of an image, upright and of mode ``L`` or ``RGB``, by the rules of ``open_image``.

    Raises:
        DataError: Its pixels are floating-point numbers or outside 0…65535.
        Exception: Whatever a decoder of Pillow raises, where the image was not decoded yet and its file is damaged.
    """
    image.load()
    plain = _as_grey_or_rgb(ImageOps.exif_transpose(image), name)
    plain.info.clear()  # a transparent colour left in here would steer later conversions
    return plain


@cache
def formats() -> tuple[str, ...]:
    """Return the formats that are decoded, whatever a file is called, as far as this Pillow has them.

    EPS, which Pillow hands to another program, is none of them, nor is what no camera or web site writes.
    """
    for name in _PLUGINS:
        with suppress(ImportError):
            import_module(f"PIL.{name}ImagePlugin")
    wanted = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
    return tuple(name for name in wanted if name in Image.OPEN)


def _is_empty(source: Path | bytes) -> bool:
    return not (source if isinstance(source, bytes) else source.stat().st_size)


def _damaged(name: str, error: Exception) -> str:
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"image {name!r} is truncated or damaged ({reason}): remove or replace it"


def _as_grey_or_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode in {"L", "RGB"}:
        return image.copy()
    if image.mode in _SIXTEEN_BIT:
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise DataError(f"image {name!r} has integer pixels outside 0…65535, expected 8 or 16 bits per channel")
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode == "F":
        raise DataError(f"image {name!r} has floating-point pixels, expected 8 or 16 bits per channel")
    if image.mode in {"1", "LA"}:
        return image.convert("L")
    if image.mode in {"P", "PA"}:
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")
