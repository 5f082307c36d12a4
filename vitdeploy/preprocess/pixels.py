"""From a decoded image to the network's input, with Pillow and NumPy alone.

Resizing and cropping give, byte for byte, what torchvision's ``Resize`` and ``CenterCrop``, timm's evaluation
transforms and transformers' Pillow processors give; ``normalize`` gives their float32 values.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitdeploy.errors import DataError
from vitdeploy.records import Preprocess

LARGEST_RESIZED = 2 * 89_478_485
"""Pixels: the limit from which on Pillow refuses to decode an image."""

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}


def to_pixels(image: Image.Image, spec: Preprocess) -> NDArray[np.uint8]:
    """Return the image resized and cropped as ``spec`` says, [H, W, C] in 0…255; ``Preprocess`` has the rules.

    For a graph that resizes images itself, the image as it is.

    Raises:
        DataError: The graph takes images of one size and this has another. Or nothing resizes or crops the image and it
            has another size than ``size``, or its aspect ratio is so extreme that a side vanishes or the resized image
            would not fit into memory.
    """
    image = image.convert("L" if spec.channels == 1 else "RGB")
    if spec.frame is not None:
        return _whole(image, spec)
    height, width = spec.size
    target = resized_size(image.size, spec)
    if target != image.size:
        image = image.resize(_possible(target, image.size), _RESAMPLING[spec.interpolation])
    if spec.crop == "center" and image.size != (width, height):
        image = _center_crop(image, spec)
    if image.size != (width, height):
        raise DataError(
            f"an image of {image.width}×{image.height} pixels does not fit the input of {width}×{height}, and the "
            f"preprocessing neither resizes nor crops it: resize the image, or give a Preprocess that does"
        )
    return np.asarray(image, dtype=np.uint8).reshape(height, width, spec.channels)


def stacked(images: Iterable[NDArray[np.uint8]], batch: int) -> Iterator[NDArray[np.uint8]]:
    """Yield up to ``batch`` images at a time, [b, H, W, C], in order; another size of image begins another batch."""
    held: list[NDArray[np.uint8]] = []
    for image in images:
        if held and image.shape != held[0].shape:
            yield np.stack(held)
            held.clear()
        held.append(image)
        if len(held) == batch:
            yield np.stack(held)
            held.clear()
    if held:
        yield np.stack(held)


def _whole(image: Image.Image, spec: Preprocess) -> NDArray[np.uint8]:
    if isinstance(spec.frame, tuple) and (image.height, image.width) != spec.frame:
        height, width = spec.frame
        raise DataError(
            f"an image of {image.width}×{image.height} pixels does not fit a graph that resizes images of "
            f"{width}×{height}: vd.export(..., options=vd.ExportOptions(fuse_resize='any')) makes one for any size"
        )
    return np.asarray(image, dtype=np.uint8).reshape(image.height, image.width, spec.channels)


def resized_size(size: tuple[int, int], spec: Preprocess) -> tuple[int, int]:
    """Return (width, height) after resizing an image of (width, height)."""
    width, height = size
    if spec.resize == "none":
        return size
    high, wide = spec.resized_to
    if spec.resize == "squash":
        return wide, high
    if spec.resize == "shortest":
        if width <= height:
            return high, int(high * height / width)
        return int(high * width / height), high
    ratios = height / high, width / wide
    ratio = min(ratios) if spec.resize == "cover" else max(ratios)
    return round(width / ratio), round(height / ratio)


def _possible(target: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    width, height = target
    if width < 1 or height < 1 or width * height > LARGEST_RESIZED:
        raise DataError(
            f"an image of {size[0]}×{size[1]} pixels would be resized to {width}×{height}, which does not fit in "
            f"memory: remove the image, or crop it"
        )
    return target


def _center_crop(image: Image.Image, spec: Preprocess) -> Image.Image:
    """Crop the centre of an image that may be smaller than the crop."""
    height, width = spec.size
    top, left = crop_start(image.height, height, spec), crop_start(image.width, width, spec)
    if image.height >= height and image.width >= width:
        return image.crop((left, top, left + width, top + height))
    fill = spec.fill or (0,) * spec.channels
    canvas = Image.new(image.mode, (width, height), fill if len(fill) > 1 else fill[0])
    canvas.paste(image, (-left, -top))
    return canvas


def crop_start(side: int, crop: int, spec: Preprocess) -> int:
    """Return where the crop starts on an axis; negative where that lies before the image."""
    if spec.crop_offset == "floor":
        return (side - crop) // 2
    return round((side - crop) / 2.0) if side >= crop else -((crop - side) // 2)


def normalize(pixels: NDArray[np.uint8], spec: Preprocess) -> NDArray[np.float32]:
    """Return (pixels · scale + offset − mean) / std, [n, H, W, C] uint8 → [n, C, H, W] float32, owned by the caller.

    A byte has 256 values, so each channel is one table look-up. The table is computed in the order and precision of
    torchvision's ``ToTensor`` and ``Normalize``, and of transformers' ``rescale`` and ``normalize``, and therefore has
    their bits.
    """
    if pixels.ndim != 4 or pixels.shape[3] != spec.channels:
        raise DataError(f"pixels of shape {pixels.shape} were given, expected [n, H, W, {spec.channels}]")
    count, height, width, channels = pixels.shape
    output = np.empty((count, channels, height, width), np.float32)
    order = range(channels)[::-1] if spec.channel_order == "bgr" else range(channels)
    for place, channel in enumerate(order):
        np.take(_table(spec, channel), pixels[..., channel], out=output[:, place], mode="clip")
    return output


def to_input(pixels: NDArray[np.uint8], spec: Preprocess) -> NDArray[Any]:
    """Return what the network takes for pixels [n, H, W, C]: ``normalize``'s values, or the bytes as ``input`` says."""
    if not spec.is_fused:
        return normalize(pixels, spec)
    return np.ascontiguousarray(pixels if spec.input == "uint8-nhwc" else pixels.transpose(0, 3, 1, 2))


def _table(spec: Preprocess, channel: int) -> NDArray[np.float32]:
    """Return the 256 inputs that the 256 pixel values become in one channel."""
    scaled = (np.arange(256, dtype=np.float64) * spec.scale).astype(np.float32)
    if spec.offset:
        scaled += np.float32(spec.offset)
    table: NDArray[np.float32] = (scaled - np.float32(spec.mean[channel])) / np.float32(spec.std[channel])
    return table


def denormalized(values: Sequence[float], spec: Preprocess) -> tuple[float, ...]:
    """Return colours in 0…1 per channel of the image as inputs per channel of the network."""
    inputs = ((u - mean) / std for u, mean, std in zip(values, spec.unit_mean, spec.unit_std, strict=True))
    return spec.network_order(tuple(inputs))
