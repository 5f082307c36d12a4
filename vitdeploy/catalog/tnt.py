"""TNT as in the paper and its repository.

Parameters are without ``outer_tokens``, a tensor of N · D zeros that the original files carry and never use.
"""

from __future__ import annotations

from vitdeploy.catalog.presets import cropped
from vitdeploy.catalog.variant import Variant


def _variant(
    name: str, outer: tuple[int, int], inner: tuple[int, int], cost: tuple[int, float], top1: float, source: str
) -> Variant:
    """Return a variant; ``outer`` and ``inner`` are (width, heads), ``cost`` (parameters, GMACs)."""
    return Variant(
        name=name,
        family="tnt",
        arguments={
            "image_size": 224,
            "patch": 16,
            "width": outer[0],
            "depth": 12,
            "heads": outer[1],
            "inner_width": inner[0],
            "inner_heads": inner[1],
        },
        preprocess=cropped(224, 0.9, "TNT evaluation, crop 0.9, mean and std 0.5", half=True),
        parameters=cost[0],
        gmacs=cost[1],
        top1=top1,
        source=source,
        checkpoints=(f"timm:{name}",) if "README" in source else (),
    )


VARIANTS = (
    _variant("tnt_ti_patch16_224", (192, 3), (12, 2), (6_076_408, 1.404), 0.739, "TNT paper; no released weights"),
    _variant("tnt_s_patch16_224", (384, 6), (24, 4), (23_768_584, 5.217), 0.815, "TNT README; timm 81.51"),
    _variant("tnt_b_patch16_224", (640, 10), (40, 4), (65_428_680, 14.049), 0.829, "TNT README; timm 82.86"),
)
