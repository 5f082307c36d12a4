"""What a model is, and how an image becomes its input."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from vitdeploy.records.base import Record

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]


class ModelSpec(Record):
    """Architecture and classes: enough to build the module again, without its weights.

    ``family`` is a key of the model registry (``vit``, ``swin``, …), ``name`` the catalogue name or a free one, and
    ``arguments`` what the family's constructor takes (JSON values only; ``num_classes`` among them).
    ``classes`` names the logits in order; empty where the checkpoint does not say.
    """

    family: str
    name: str
    arguments: dict[str, Any] = {}
    classes: tuple[str, ...] = ()


class Preprocess(Record):
    """From an image file to a network input: resize, crop, scale to 0…1, subtract ``mean``, divide by ``std``.

    ``resize='shortest'`` scales the shorter side to ``resize_size`` and keeps the aspect ratio, ``'squash'`` scales
    both sides to ``size``, ``'none'`` expects images of exactly ``size``. ``size`` is (height, width) of the
    input; ``mean`` and ``std`` have one entry per channel, in units of 0…1. ``source`` says where the values come from.
    """

    size: tuple[int, int]
    channels: Literal[1, 3] = 3
    resize: Literal["shortest", "squash", "none"] = "shortest"
    resize_size: int | None = None
    crop: Literal["center", "none"] = "center"
    interpolation: Interpolation = "bicubic"
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> Preprocess:
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ValueError(f"mean {self.mean} and std {self.std} need {self.channels} entries each, one per channel")
        if any(value <= 0 for value in self.std):
            raise ValueError(f"std {self.std} must be positive")
        if self.resize == "shortest" and (self.resize_size is None or self.resize_size < max(self.size)):
            raise ValueError(f"resize_size {self.resize_size} must be at least the input size {max(self.size)}")
        if self.resize == "squash" and self.resize_size is not None and self.resize_size < max(self.size):
            raise ValueError(f"resize_size {self.resize_size} must be at least the input size {max(self.size)}")
        return self
