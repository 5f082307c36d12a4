"""PatchConvNet as in the DeiT repository."""

from __future__ import annotations

from typing import Any

from vitdeploy.catalog.presets import cropped
from vitdeploy.catalog.variant import Variant

SOURCE = "PatchConvNet README"


def _variant(
    name: str,
    shape: tuple[int, int],
    cost: tuple[int, float],
    top1: float | None,
    files: tuple[str, ...] = (),
    **arguments: Any,
) -> Variant:
    """Return a variant; ``shape`` is (width, depth), ``cost`` (parameters, GMACs)."""
    return Variant(
        name=name,
        family="patchconvnet",
        arguments={"image_size": 224, "width": shape[0], "depth": shape[1], **arguments},
        preprocess=cropped(224, 0.875, "DeiT evaluation, crop 0.875; PatchConvNet's README states none"),
        parameters=cost[0],
        gmacs=cost[1],
        top1=top1,
        source=SOURCE if top1 else "no published weights",
        checkpoints=files,
    )


VARIANTS = (
    _variant(
        "patchconvnet_s60",
        (384, 60),
        (25_231_096, 3.979),
        0.821,
        ("s60_224_1k.pth", "s60_224_21k.pth", "s60_384_21k.pth", "s60_512_21k.pth"),
        layer_scale=1e-4,
    ),
    _variant("patchconvnet_s120", (384, 120), (47_723_896, 7.493), 0.832, ("s120_224_1k.pth",)),
    _variant(
        "patchconvnet_b60",
        (768, 60),
        (99_388_936, 15.803),
        0.835,
        ("b60_224_1k.pth", "b60_224_21k.pth", "b60_384_21k.pth"),
    ),
    _variant(
        "patchconvnet_b120",
        (768, 120),
        (188_611_336, 29.775),
        0.841,
        ("b120_224_1k.pth", "b120_224_21k.pth", "b120_384_21k.pth"),
    ),
    _variant("patchconvnet_l60", (1024, 60), (176_009_576, 28.043), None),
    _variant("patchconvnet_l120", (1024, 120), (334_294_376, 52.846), None),
    _variant(
        "patchconvnet_s60_multi",
        (384, 60),
        (25_614_712, 5.308),
        0.811,
        ("s60_multi_scratch_1k.pth", "s60_multi_finetune_1k.pth"),
        multi_token=True,
    ),
)
