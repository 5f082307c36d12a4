"""Preprocessing that families were published with, by the rule that their evaluation used."""

from __future__ import annotations

import math

from vitdeploy.records import Interpolation, Preprocess

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)


def cropped(
    size: int, fraction: float, source: str, *, half: bool = False, interpolation: Interpolation = "bicubic"
) -> Preprocess:
    """Scale the shorter side to ⌊size / fraction⌋ and crop the centre; ``half``: mean and std 0.5, not ImageNet's."""
    return Preprocess(
        size=(size, size),
        resize="shortest",
        resize_size=math.floor(size / fraction),
        interpolation=interpolation,
        mean=HALF if half else IMAGENET_MEAN,
        std=HALF if half else IMAGENET_STD,
        source=source,
    )


def resized(size: int, resize_size: int, source: str, *, interpolation: Interpolation = "bicubic") -> Preprocess:
    """Scale the shorter side to ``resize_size`` and crop the centre; mean and std of ImageNet."""
    return Preprocess(
        size=(size, size),
        resize="shortest",
        resize_size=resize_size,
        interpolation=interpolation,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        source=source,
    )


def squashed(size: int, source: str, *, half: bool = False, interpolation: Interpolation = "bicubic") -> Preprocess:
    """Scale both sides to ``size``, whatever the aspect ratio."""
    return Preprocess(
        size=(size, size),
        resize="squash",
        crop="none",
        interpolation=interpolation,
        mean=HALF if half else IMAGENET_MEAN,
        std=HALF if half else IMAGENET_STD,
        source=source,
    )
