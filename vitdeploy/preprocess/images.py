"""Decoding image files with Pillow."""

from __future__ import annotations

import io
import threading
import warnings
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError, features

from vitdeploy.errors import ArtifactError, DataError
from vitdeploy.preprocess.essentials import essential_parts
from vitdeploy.reading import format_of, open_regular, read_head, stands_for_a_file
from vitdeploy.text import name_text

_PLUGINS = ("Avif", "Bmp", "Gif", "Jpeg", "Jpeg2K", "Mpo", "Png", "Ppm", "Tiff", "WebP")
_TRANSPOSITIONS: dict[object, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF's orientation → what makes the image upright."""
_HEAD = 64
_HELD = 16 << 20
"""Bytes of a file that Pillow may hold."""
_SIXTEEN_BIT = {"I", "I;16", "I;16L", "I;16B", "I;16N"}


def open_image(source: Path | bytes, name: str = "") -> Image.Image:
    """Decode an image file completely and return it upright, as mode ``L`` or ``RGB``.

    The EXIF orientation is applied; EXIF data that cannot be read states none. Texts, colour profiles and the like that
    are too large or broken are passed over, since no pixel follows from them. 16-bit greyscale is scaled to 0…255
    (Pillow's own conversion would clip it). Transparency is dropped without blending, as torchvision and timm do, so
    that accuracies compare. Of an animation the first frame is taken.

    Args:
        source: A file, or the bytes of one.
        name: What an error calls the image; the path where empty.
    Raises:
        DataError: There is no such file, it is not an image, or it is truncated or otherwise damaged.
    """
    name = name or (name_text(source) if isinstance(source, Path) else "image")
    try:
        stream = io.BytesIO(source) if isinstance(source, bytes) else open_regular(source)
        with _QUIET, stream:
            return _decoded(stream, name)
    except DataError:
        raise
    except ArtifactError as error:
        absent = isinstance(error.__cause__, FileNotFoundError)
        raise DataError(f"there is no image '{name}'" if absent else str(error)) from error
    except UnidentifiedImageError as error:
        head = source[:_HEAD] if isinstance(source, bytes) else read_head(source, _HEAD)
        if not head:
            raise DataError(f"image '{name}' is empty: remove or replace it") from error
        if (found := stands_for_a_file(head)) is not None:
            raise DataError(f"'{name}' is {found[0]}, expected an image: {found[1]}") from error
        other = format_of(head)
        if other is not None and other.lower() not in features.get_supported_modules():
            raise DataError(f"'{name}' is {other}, which is not read: convert it to JPEG or PNG") from error
        raise DataError(
            f"'{name}' is not an image that can be read (another format, or damaged): remove or replace it"
        ) from error
    except Image.DecompressionBombError as error:
        raise DataError(f"image '{name}' is too large to be decoded safely: {error}") from error
    except OSError as error:
        if error.errno is not None:
            raise DataError(f"image '{name}' cannot be read: {error.strerror}") from error
        raise DataError(_damaged(name, error)) from error
    except Exception as error:  # decoders answer damaged files with SyntaxError, ValueError, struct.error and more
        raise DataError(_damaged(name, error)) from error


def _decoded(stream: BinaryIO, name: str) -> Image.Image:
    """Return the image of a file; where Pillow refuses it or would read too much, that of what its pixels follow from.

    Pillow holds every text and profile of a PNG or JPEG file, of whatever size.
    """
    large = stream.seek(0, io.SEEK_END) > _HELD
    try:
        return _plain(stream if not large else essential_parts(stream) or stream, name)
    except (DataError, Image.DecompressionBombError):
        raise
    except Exception:
        essential = None if large else essential_parts(stream)
        if essential is None:
            raise
        with suppress(Exception):
            return _plain(essential, name)
        raise


def _plain(stream: BinaryIO, name: str) -> Image.Image:
    stream.seek(0)
    with Image.open(stream, formats=formats()) as image:
        return plain_image(image, name)


def plain_image(image: Image.Image, name: str = "image") -> Image.Image:
    """Return a copy of an image, upright and of mode ``L`` or ``RGB``, by the rules of ``open_image``.

    Raises:
        DataError: Its pixels are floating-point numbers or outside 0…65535.
        Exception: Whatever a decoder of Pillow raises, where the image was not decoded yet and its file is damaged.
    """
    image.load()
    method = _TRANSPOSITIONS.get(_orientation(image))
    plain = _as_grey_or_rgb(image if method is None else image.transpose(method), name)
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


def _orientation(image: Image.Image) -> object:
    """Return the EXIF orientation that an image states, None where its EXIF data cannot be read."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # as of decoders: SyntaxError, ValueError, struct.error and more
        return None


class _PillowsWarnings:
    """While any thread is in it, warnings of Pillow are not shown: of odd EXIF data, of very large images.

    ``warnings.catch_warnings`` in several threads at once can leave its filters behind for the whole process.
    """

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._filters: warnings.catch_warnings[None] | None = None

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside and self._filters is not None:
                self._filters.__exit__(None, None, None)


_QUIET = _PillowsWarnings()


def _damaged(name: str, error: Exception) -> str:
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"image '{name}' is truncated or damaged ({reason}): remove or replace it"


def _as_grey_or_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode in {"L", "RGB"}:
        return image.copy()
    if image.mode in _SIXTEEN_BIT:
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise DataError(f"image '{name}' has integer pixels outside 0…65535, expected 8 or 16 bits per channel")
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode == "F":
        raise DataError(f"image '{name}' has floating-point pixels, expected 8 or 16 bits per channel")
    if image.mode in {"1", "LA"}:
        return image.convert("L")
    if image.mode in {"P", "PA"}:
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")
