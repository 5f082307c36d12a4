"""How each code base prepares images for evaluation, for weights that carry no preprocessing themselves.

The wrong mean and standard deviation cost up to 6 points of accuracy, so the dialect decides, not the architecture.
Sources: the evaluation code of each repository; timm's pretrained configurations; torchvision's weight enums.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from vitdeploy.catalog import Variant
from vitdeploy.catalog.presets import cropped, resized, squashed
from vitdeploy.records import Preprocess

Size = tuple[int, int]


def by_convention(name: str, variant: Variant | None, size: Size) -> tuple[Preprocess, str]:
    """Return the preprocessing of a code base at an input size, and a warning where keys do not decide it.

    Args:
        name: A key of ``CONVENTIONS``, or empty.
        variant: The catalogue's entry, if one was named or found.
        size: (height, width) of the model's input.
    """
    if name == "timm or deit":
        return _timm_or_deit(variant, size)
    if name == "torchvision":
        return _torchvision(variant, size), ""
    if name in CONVENTIONS:
        return CONVENTIONS[name](min(size)).at_size(size), ""
    if variant is not None:
        return variant.preprocess.at_size(size), ""
    record = squashed(min(size), "a default: squash, mean and std 0.5", half=True, interpolation="bilinear")
    return record.at_size(size), "the code that trained it fixes none"


def _swin(size: int) -> Preprocess:
    if size >= 384:
        return squashed(size, "Swin evaluation, TEST.CROP False")
    return resized(size, math.floor(size * 256 / 224), "Swin evaluation, crop 224 / 256")


def _timm(size: int, *, half: bool) -> Preprocess:
    source = "timm's evaluation, mean and std " + ("0.5" if half else "of ImageNet")
    return cropped(size, 0.9 if size < 384 else 1.0, source, half=half)


def _google(size: int) -> Preprocess:
    return squashed(size, "Google JAX ViT: squash, mean and std 0.5", half=True, interpolation="bilinear")


CONVENTIONS: dict[str, Callable[[int], Preprocess]] = {
    "google": _google,
    "mmpretrain": lambda size: cropped(size, 0.875, "mmpretrain's ViT, crop 0.875, mean and std 0.5", half=True),
    "deit": lambda size: cropped(size, 0.875, "DeiT evaluation, crop 0.875"),
    "deit3": lambda size: cropped(size, 1.0, "DeiT-III evaluation, crop 1.0"),
    "t2t": lambda size: cropped(size, 0.9, "T2T-ViT evaluation, crop 0.9"),
    "tnt": lambda size: cropped(size, 0.9, "TNT evaluation, crop 0.9, mean and std 0.5", half=True),
    "pvt": lambda size: resized(size, math.floor(size * 256 / 224), "PVT evaluation, crop 224 / 256"),
    "swin": _swin,
    "timm, half": lambda size: _timm(size, half=True),
    "timm, ImageNet": lambda size: _timm(size, half=False),
}


def _timm_or_deit(variant: Variant | None, size: Size) -> tuple[Preprocess, str]:
    """Timm's ports of Google's weights have mean and std 0.5, DeiT's weights ImageNet's, under the same keys."""
    if variant is not None:
        return variant.preprocess.at_size(size), ""
    record = _timm(min(size), half=True).at_size(size)
    return record, "keys do not tell timm's ViT (mean and std 0.5) from DeiT (those of ImageNet)"


def _torchvision(variant: Variant | None, size: Size) -> Preprocess:
    """SWAG's end-to-end weights, the only ones above 224 pixels, take bicubic without a margin."""
    if variant is not None and "torchvision" in variant.preprocess.source and variant.preprocess.size == size:
        return variant.preprocess
    side = min(size)
    if side >= 384:
        return resized(side, side, "torchvision, SWAG").at_size(size)
    large = variant is not None and variant.name == "vit_large_patch16_224"
    margin = 242 if large and side == 224 else max(side * 256 // 224, side)
    return resized(side, margin, "torchvision, IMAGENET1K_V1", interpolation="bilinear").at_size(size)
