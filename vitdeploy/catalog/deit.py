"""DeiT, distilled DeiT and DeiT-III as in the paper's repository; DeiT-III by the names that timm gives it."""

from __future__ import annotations

from typing import Any

from vitdeploy.catalog.presets import cropped
from vitdeploy.catalog.variant import Variant

# size → width, depth, heads
SIZES = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "medium": (512, 12, 8),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}


def _arguments(size: str, patch: int, image_size: int) -> dict[str, Any]:
    width, depth, heads = SIZES[size]
    return {"image_size": image_size, "patch": patch, "width": width, "depth": depth, "heads": heads}


def _deit(
    size: str, image_size: int, cost: tuple[int, float], top1: float, file: str, *, distilled: bool = False
) -> Variant:
    """Return DeiT, whose evaluation resizes to size / 0.875; ``cost`` is (parameters, GMACs)."""
    name = f"deit_{size}_{'distilled_' if distilled else ''}patch16_{image_size}"
    return Variant(
        name=name,
        family="deit" if distilled else "vit",
        arguments=_arguments(size, 16, image_size),
        preprocess=cropped(image_size, 0.875, "DeiT evaluation, crop 0.875"),
        parameters=cost[0],
        gmacs=cost[1],
        top1=top1,
        source="DeiT README",
        checkpoints=(f"{file}.pth", f"timm:{name}"),
    )


def _deit3(
    size: str, patch: int, image_size: int, cost: tuple[int, float], top1: tuple[float, float | None]
) -> Variant:
    """Return DeiT-III: LayerScale, a class token without position; ``top1`` is (ImageNet-1k, 21k then 1k)."""
    files = [f"deit_3_{size}_{image_size}_1k.pth"] + [f"deit_3_{size}_{image_size}_21k.pth"] * (top1[1] is not None)
    return Variant(
        name=f"deit3_{size}_patch{patch}_{image_size}",
        family="vit",
        arguments={**_arguments(size, patch, image_size), "layer_scale": 1e-6, "class_token_position": False},
        preprocess=cropped(image_size, 1.0, "DeiT-III evaluation, crop 1.0"),
        parameters=cost[0],
        gmacs=cost[1],
        top1=top1[0],
        source="DeiT-III README, ImageNet-1k only" + (f"; from 21k {top1[1]:.1%}" if top1[1] else ""),
        checkpoints=tuple(files),
    )


VARIANTS = (
    _deit("tiny", 224, (5_717_416, 1.254), 0.722, "deit_tiny_patch16_224-a1311bcf"),
    _deit("small", 224, (22_050_664, 4.599), 0.799, "deit_small_patch16_224-cd65a155"),
    _deit("base", 224, (86_567_656, 17.564), 0.818, "deit_base_patch16_224-b5f2ef4d"),
    _deit("tiny", 224, (5_910_800, 1.261), 0.745, "deit_tiny_distilled_patch16_224-b40b3cf7", distilled=True),
    _deit("small", 224, (22_436_432, 4.624), 0.812, "deit_small_distilled_patch16_224-649709d9", distilled=True),
    _deit("base", 224, (87_338_192, 17.657), 0.834, "deit_base_distilled_patch16_224-df68dfff", distilled=True),
    _deit("base", 384, (86_859_496, 55.484), 0.829, "deit_base_patch16_384-8de9b5d1"),
    _deit("base", 384, (87_630_032, 55.591), 0.852, "deit_base_distilled_patch16_384-d0272ac0", distilled=True),
    _deit3("small", 16, 224, (22_059_496, 4.599), (0.814, 0.831)),
    _deit3("small", 16, 384, (22_205_416, 15.490), (0.834, 0.848)),
    _deit3("medium", 16, 224, (38_849_512, 7.991), (0.830, 0.845)),
    _deit3("base", 16, 224, (86_585_320, 17.564), (0.838, 0.857)),
    _deit3("base", 16, 384, (86_877_160, 55.484), (0.850, 0.867)),
    _deit3("large", 16, 224, (304_374_760, 61.555), (0.849, 0.870)),
    _deit3("large", 16, 384, (304_763_880, 191.066), (0.858, 0.877)),
    _deit3("huge", 14, 224, (632_126_440, 167.295), (0.852, 0.872)),
)
