"""Hybrid R+ViT: a ResNet's feature map under a ViT, Google's weights as timm names them."""

from __future__ import annotations

from vitdeploy.catalog.presets import cropped
from vitdeploy.catalog.variant import Variant

SOURCE = "timm results-imagenet.csv"
AUGREG = "augreg_in21k_ft_in1k"
ORIGINAL = "orig_in21k_ft_in1k"

# name → units of each stage, patch on the feature map, width, depth, heads
SHAPES = {
    "tiny_r_s16_p8": ([], 8, 192, 12, 3),
    "small_r26_s32": ([2, 2, 2, 2], 1, 384, 12, 6),
    "base_r50_s16": ([3, 4, 9], 1, 768, 12, 12),
    "large_r50_s32": ([3, 4, 6, 3], 1, 1024, 24, 16),
}


def _variant(shape: str, image_size: int, parameters: int, gmacs: float, top1: float, tag: str = AUGREG) -> Variant:
    units, patch, width, depth, heads = SHAPES[shape]
    name = f"vit_{shape}_{image_size}"
    return Variant(
        name=name,
        family="hybrid",
        arguments={
            "image_size": image_size,
            "units": units,
            "patch": patch,
            "width": width,
            "depth": depth,
            "heads": heads,
        },
        preprocess=cropped(image_size, 0.9 if image_size == 224 else 1.0, "timm, Google ViT", half=True),
        parameters=parameters,
        gmacs=gmacs,
        top1=top1,
        source=f"{SOURCE}, {tag}",
        checkpoints=(f"timm:{name}.{tag}",),
    )


VARIANTS = (
    _variant("tiny_r_s16_p8", 224, 6_337_704, 0.434, 0.7180),
    _variant("tiny_r_s16_p8", 384, 6_355_944, 1.327, 0.7596),
    _variant("small_r26_s32", 224, 36_431_912, 3.464, 0.8186),
    _variant("small_r26_s32", 384, 36_468_392, 10.264, 0.8407),
    _variant("base_r50_s16", 384, 98_950_952, 67.156, 0.8499, ORIGINAL),
    _variant("large_r50_s32", 224, 328_994_856, 19.413, 0.8443),
    _variant("large_r50_s32", 384, 329_092_136, 57.136, 0.8619),
)
