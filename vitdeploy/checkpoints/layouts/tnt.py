"""TNT: timm's names to those of the original files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.checkpoints.layouts.rename import Rules, renamed

TIMM: Rules = (
    (r"^pixel_embed\.", "patch_embed."),
    (r"^patch_pos$", "outer_pos"),
    (r"^pixel_pos$", "inner_pos"),
    (r"^norm([12])_proj\.", r"proj_norm\1."),
    (r"^(blocks\.\d+)\.norm1_proj\.", r"\1.proj_norm1."),
    (r"^(blocks\.\d+)\.norm2_proj\.", r"\1.proj_norm2."),
    (r"^(blocks\.\d+)\.norm_in\.", r"\1.inner_norm1."),
    (r"^(blocks\.\d+)\.attn_in\.", r"\1.inner_attn."),
    (r"^(blocks\.\d+)\.norm_mlp_in\.", r"\1.inner_norm2."),
    (r"^(blocks\.\d+)\.mlp_in\.", r"\1.inner_mlp."),
    (r"^(blocks\.\d+)\.norm_out\.", r"\1.outer_norm1."),
    (r"^(blocks\.\d+)\.attn_out\.", r"\1.outer_attn."),
    (r"^(blocks\.\d+)\.norm_mlp\.", r"\1.outer_norm2."),
    (r"^(blocks\.\d+)\.mlp\.", r"\1.outer_mlp."),
)


def from_timm(state: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return timm's weights under our names; timm keeps the word positions as a map [1, d, h, w]."""
    ours = renamed(state, TIMM)
    pixels = ours["inner_pos"]
    ours["inner_pos"] = np.ascontiguousarray(pixels.reshape(1, pixels.shape[1], -1).transpose(0, 2, 1))
    return ours


INNER_STRIDE = 4
"""Pixels between two words, in both published code bases; the keys do not tell it."""


def describe(tensors: Mapping[str, NDArray[Any]], inner_stride: int = INNER_STRIDE) -> dict[str, Any]:
    """Read the constructor arguments off tensors in our names, all but the heads of both encoders."""
    width, inner_width = tensors["cls_token"].shape[-1], tensors["inner_pos"].shape[-1]
    blocks = {name.split(".")[1] for name in tensors if name.startswith("blocks.")}
    return {
        "width": int(width),
        "inner_width": int(inner_width),
        "depth": len(blocks),
        "channels": int(tensors["patch_embed.proj.weight"].shape[1]),
        "patch": inner_stride * math.isqrt(tensors["inner_pos"].shape[1]),
        "mlp_ratio": tensors["blocks.0.outer_mlp.fc1.weight"].shape[0] / width,
        "qkv_bias": "blocks.0.outer_attn.qk.bias" in tensors,
    }


def image_size(positions: int, patch: int) -> int | None:
    """Return the side of a square image from the rows of the outer position table, None where that is no square."""
    side = math.isqrt(max(positions - 1, 0))
    return side * patch if side and side * side == positions - 1 else None
