"""From an image file to a network input, with Pillow and NumPy alone: the same code trains, calibrates and runs.

Resizing and cropping give, byte for byte, what torchvision's ``Resize`` and ``CenterCrop`` give on a Pillow image (and
so timm's evaluation transform); ``normalize`` gives the float32 values of ``ToTensor`` and ``Normalize``.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from vitdeploy.errors import DataError
from vitdeploy.records import Preprocess

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

DIGITS_PREPROCESS = Preprocess(
    size=(8, 8),
    channels=1,
    resize="none",
    crop="none",
    interpolation="bilinear",
    mean=(0.30603,),
    std=(0.376196,),
    source="digits: mean and standard deviation of the training split",
)

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
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
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                image.load()
                upright = ImageOps.exif_transpose(image)
                return _as_grey_or_rgb(upright, name)
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"there is no image {name!r}") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{name!r} is not an image that can be read: remove or replace it") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"image {name!r} is too large to be decoded safely: {error}") from error
    except OSError as error:
        if error.errno is not None:
            raise DataError(f"image {name!r} cannot be read: {error.strerror}") from error
        raise DataError(_damaged(name, error)) from error
    except Exception as error:  # decoders answer damaged files with SyntaxError, ValueError, struct.error and more
        raise DataError(_damaged(name, error)) from error


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
    if image.mode in {"1", "LA", "La"}:
        return image.convert("L")
    if image.mode in {"P", "PA"}:
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def to_pixels(image: Image.Image, spec: Preprocess) -> NDArray[np.uint8]:
    """Return the image resized and cropped as ``spec`` says, [H, W, C] in 0…255.

    ``shortest``: shorter side r = ``resize_size``, longer side int(r · long / short). Centre crop: offset
    round((side - crop) / 2), half to even. Both are torchvision's rules.

    Raises:
        DataError: ``resize`` is ``none`` and the image has another size than ``size``.
    """
    image = image.convert("L" if spec.channels == 1 else "RGB")
    height, width = spec.size
    if spec.resize == "shortest":
        image = _resized(image, _shortest(image.size, spec.resize_size or max(spec.size)), spec)
    elif spec.resize == "squash":
        side = spec.resize_size
        image = _resized(image, (width, height) if side is None else (side, side), spec)
    if spec.crop == "center" and image.size != (width, height):
        image = _center_crop(image, height, width)
    if image.size != (width, height):
        raise DataError(
            f"an image of {image.width}×{image.height} pixels does not fit the input of {width}×{height}, and the "
            f"preprocessing neither resizes nor crops it: resize the image, or give a Preprocess that does"
        )
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels.reshape(height, width, spec.channels)


def _shortest(size: tuple[int, int], short: int) -> tuple[int, int]:
    width, height = size
    if width <= height:
        return short, int(short * height / width)
    return int(short * width / height), short


def _resized(image: Image.Image, size: tuple[int, int], spec: Preprocess) -> Image.Image:
    return image if image.size == size else image.resize(size, _RESAMPLING[spec.interpolation])


def _center_crop(image: Image.Image, height: int, width: int) -> Image.Image:
    if image.width < width or image.height < height:
        raise DataError(f"an image of {image.width}×{image.height} pixels is smaller than the crop {width}×{height}")
    top = round((image.height - height) / 2.0)
    left = round((image.width - width) / 2.0)
    return image.crop((left, top, left + width, top + height))


def normalize(pixels: NDArray[np.uint8], spec: Preprocess) -> NDArray[np.float32]:
    """Return (pixels / 255 - mean) / std, [n, H, W, C] uint8 → [n, C, H, W] float32, owned by the caller.

    A byte has 256 values, so each channel is one table look-up; the table is computed in float32 in the order of
    torchvision's ``ToTensor`` and ``Normalize`` and therefore has their bits.
    """
    if pixels.ndim != 4 or pixels.shape[3] != spec.channels:
        raise DataError(f"pixels of shape {pixels.shape} were given, expected [n, H, W, {spec.channels}]")
    count, height, width, channels = pixels.shape
    unit = np.arange(256, dtype=np.float32) / np.float32(255)
    output = np.empty((count, channels, height, width), np.float32)
    for channel in range(channels):
        table = (unit - np.float32(spec.mean[channel])) / np.float32(spec.std[channel])
        np.take(table, pixels[..., channel], out=output[:, channel], mode="clip")
    return output
