"""T2T-ViT: names are those of the original files; what their shapes tell."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

KERNELS = (7, 3, 3)
"""Sides of the three soft splits, and by how much they shrink an image together."""
STRIDE = 16


def describe(tensors: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Read the constructor arguments off the tensors, all but the heads; kernels and strides are the published ones."""
    width = tensors["cls_token"].shape[-1]
    performer = "tokens_to_token.attention1.kqv.weight" in tensors
    arguments: dict[str, Any] = {
        "width": int(width),
        "depth": len({name.split(".")[1] for name in tensors if name.startswith("blocks.")}),
        "mlp_ratio": tensors["blocks.0.mlp.fc1.weight"].shape[0] / width,
        "token_module": "performer" if performer else "transformer",
    }
    if (project := tensors.get("tokens_to_token.project.weight")) is not None:
        arguments["token_width"] = int(project.shape[1]) // KERNELS[2] ** 2
    if (norm := tensors.get("tokens_to_token.attention1.norm1.weight")) is not None:
        arguments["channels"] = int(norm.shape[0]) // KERNELS[0] ** 2
    return arguments


def image_size(positions: int) -> int | None:
    """Return the side of a square image from the rows of the position table, None where that is no square."""
    side = math.isqrt(max(positions - 1, 0))
    return side * STRIDE if side and side * side == positions - 1 else None
