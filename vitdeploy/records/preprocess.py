"""How an image becomes a network's input."""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias

from pydantic import SerializerFunctionWrapHandler, model_serializer, model_validator

from vitdeploy.records.base import Record

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
InputForm = Literal["float32-nchw", "uint8-nhwc", "uint8-nchw"]
Frame: TypeAlias = "tuple[int, int] | Literal['any']"
"""(height, width) of the images that a graph resizes, or ``any``."""
Resize = Literal["shortest", "cover", "contain", "squash", "none"]

_STEPS = ("crop_offset", "fill", "scale", "offset", "channel_order", "input", "frame")
LARGEST_SIDE = 16384
LARGEST_AREA = 4096 * 4096
"""Beyond it a size is a typing error, or an attack on memory."""


class Preprocess(Record):
    """From an image file to a network input: resize, crop, scale, subtract ``mean``, divide by ``std``.

    ``size`` is (height, width) of the input. ``resize`` says how an image gets to ``resize_size``, which is one number
    for both sides or (height, width), and ``size`` where it is None:

    * ``shortest``: the shorter side becomes ``resize_size``, the longer one follows, rounded down (torchvision,
      transformers).
    * ``cover``, ``contain``: the aspect ratio is kept, and the result covers (height, width) or lies within it; sides
      are rounded to the nearest number (timm's ``ResizeKeepRatio``).
    * ``squash``: both sides are scaled, the aspect ratio is not kept.
    * ``none``: the image stays as it is.

    A centre crop then gives ``size``; what it takes from outside the image is filled with ``fill``, a colour in 0…255
    per channel of the image, black where it is empty. ``crop_offset`` is how half a pixel is rounded: ``round`` to the
    even number (torchvision, timm), ``floor`` down (transformers). Where padding is needed, ``round`` puts the smaller
    half in front and ``floor`` the larger one.

    A pixel p in 0…255 becomes (p · ``scale`` + ``offset`` − ``mean``) / ``std``, with one mean and one std per channel
    of the image. Last, ``channel_order`` ``bgr`` reverses the channels. ``source`` says where the values come from.
    ``input`` is what the network takes: these values, or the pixels as bytes in RGB, where a graph normalises them
    itself (``ExportOptions.fuse_preprocess``). ``frame`` is for graphs that resize and crop too
    (``ExportOptions.fuse_resize``): (height, width) of the whole images that they take, or ``any``.
    """

    size: tuple[int, int]
    channels: Literal[1, 3] = 3
    resize: Resize = "shortest"
    resize_size: int | tuple[int, int] | None = None
    crop: Literal["center", "none"] = "center"
    crop_offset: Literal["round", "floor"] = "round"
    fill: tuple[int, ...] = ()
    interpolation: Interpolation = "bicubic"
    scale: float = 1 / 255
    offset: float = 0.0
    channel_order: Literal["rgb", "bgr"] = "rgb"
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str = ""
    input: InputForm = "float32-nchw"
    frame: tuple[int, int] | Literal["any"] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Preprocess:
        resized = () if self.resize_size is None else self.resized_to
        frame = self.frame if isinstance(self.frame, tuple) else ()
        for side in (*self.size, *resized, *frame):
            if not 1 <= side <= LARGEST_SIDE:
                raise ValueError(f"a side of {side} pixels is out of range, expected 1 to {LARGEST_SIDE}")
        if self.size[0] * self.size[1] > LARGEST_AREA:
            raise ValueError(f"an input of {self.size} pixels is out of range, expected at most {LARGEST_AREA} pixels")
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ValueError(f"mean {self.mean} and std {self.std} need {self.channels} entries each, one per channel")
        if self.fill and (len(self.fill) != self.channels or not all(0 <= value <= 255 for value in self.fill)):
            raise ValueError(f"fill {self.fill} must be {self.channels} numbers from 0 to 255, one per channel")
        if not all(math.isfinite(value) for value in (self.scale, self.offset, *self.mean, *self.std)):
            raise ValueError("scale, offset, mean and std must be finite")
        if self.scale <= 0:
            raise ValueError(f"scale {self.scale} must be positive: 0.00392… gives 0 to 1")
        if any(value <= 0 for value in self.std):
            raise ValueError(f"std {self.std} must be positive")
        if self.resize == "shortest" and not isinstance(self.resize_size, int):
            raise ValueError(f"resize_size {self.resize_size} must be one number with resize 'shortest'")
        if self.crop == "none" and self.resize == "squash" and self.resized_to != self.size:
            raise ValueError(f"resize 'squash' to {self.resize_size} and no crop never give the size {self.size}")
        if self.frame is not None and not self.is_fused:
            raise ValueError("frame needs an input of bytes")
        if self.channels == 1 and self.channel_order == "bgr":
            raise ValueError("channel_order 'bgr' needs 3 channels")
        return self

    @model_serializer(mode="wrap")
    def _serialized(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out steps that do nothing unusual, so that digests of records from before them stay."""
        values: dict[str, Any] = serialize(self)
        return {
            name: value
            for name, value in values.items()
            if name not in _STEPS or getattr(self, name) != type(self).model_fields[name].default
        }

    @property
    def is_fused(self) -> bool:
        """Return whether the network takes pixels as bytes and normalises them itself."""
        return self.input != "float32-nchw"

    @property
    def pixel_size(self) -> tuple[int, int] | None:
        """(height, width) of the pixels that the network is given; None where it takes images of any size."""
        return self.size if self.frame is None else self.frame if isinstance(self.frame, tuple) else None

    @property
    def resized_to(self) -> tuple[int, int]:
        """What ``resize_size`` means, as (height, width)."""
        target = self.size if self.resize_size is None else self.resize_size
        return (target, target) if isinstance(target, int) else target

    @property
    def words(self) -> str:
        """How an image becomes the network's input, as a reader is told it."""
        size = "x".join(map(str, (self.channels, *self.size)))
        target = "x".join(map(str, self.resized_to)) if self.resize != "shortest" else str(self.resize_size)
        resizes = {
            "shortest": f"shorter side to {target}",
            "cover": f"scaled to cover {target}",
            "contain": f"scaled to lie within {target}",
            "squash": f"squashed to {target}" if self.resized_to != self.size else "squashed",
            "none": "not resized",
        }
        parts = [size, resizes[self.resize] + ("" if self.resize == "none" else f" ({self.interpolation})")]
        if self.crop == "center":
            parts.append("centre crop")
        if not math.isclose(self.scale, 1 / 255) or self.offset:
            parts.append(f"pixels · {self.scale:.6g}" + (f" {self.offset:+g}" if self.offset else ""))
        mean, std = ("/".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std))
        parts.append(f"mean {mean}, std {std}")
        if self.channel_order == "bgr":
            parts.append("channels as BGR")
        takes = self.input.replace("-", " ")
        if self.frame is not None:
            images = "any size" if self.frame == "any" else "×".join(map(str, self.frame))
            parts.append(f"all of it in the graph, which takes images of {images} as {takes}")
        elif self.is_fused:
            parts.append(f"all but the resizing in the graph, which takes {takes}")
        return ", ".join(parts)

    def at_size(self, size: tuple[int, int]) -> Preprocess:
        """Return what this is at another input size: the margin around the crop keeps its share, rounded down.

        Images that were expected at exactly the former size are scaled to the new one.
        """
        if size == self.size:
            return self
        update: dict[str, object] = {"size": size}
        if self.resize == "none":
            update["resize"] = "squash"
        if isinstance(self.resize_size, int):
            scaled = math.floor(self.resize_size * min(size) / min(self.size))
            update["resize_size"] = max(scaled, max(size)) if self.resize_size >= max(self.size) else scaled
        elif self.resize_size is not None:
            sides = zip(self.resize_size, size, self.size, strict=True)
            update["resize_size"] = tuple(math.floor(old * new / before) for old, new, before in sides)
        return self.model_copy(update=update)

    @property
    def unit_mean(self) -> tuple[float, ...]:
        """The mean per channel of the image that says the same for pixels in 0…1: (u − unit_mean) / unit_std."""
        return tuple((value - self.offset) / (255 * self.scale) for value in self.mean)

    @property
    def unit_std(self) -> tuple[float, ...]:
        """The standard deviation that belongs to ``unit_mean``."""
        return tuple(value / (255 * self.scale) for value in self.std)

    def network_order(self, per_channel: tuple[float, ...]) -> tuple[float, ...]:
        """Return one value per channel of the image in the order in which the network has the channels."""
        return per_channel[::-1] if self.channel_order == "bgr" else per_channel
