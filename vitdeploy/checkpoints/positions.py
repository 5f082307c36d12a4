"""Position embeddings at another size: once, when weights are loaded, by the rule of the checkpoint's own code.

The rules differ by 0.3–1.5 on tables of unit variance, so the one that belongs to the weights is taken.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vitdeploy.errors import CheckpointError

ResizeRule = Literal["bicubic", "bicubic_antialias", "bicubic_align_corners", "bilinear", "bilinear_align_corners"]


FAMILY_RULES: dict[str, ResizeRule] = {
    "vit": "bicubic_antialias",
    "hybrid": "bicubic_antialias",
    "deit": "bicubic_antialias",
    "pvt": "bilinear",
    "torchvision": "bicubic_align_corners",
}
"""The rule of the code base that a family's weights usually come from; ``bicubic`` for the other families."""


def resize_positions(
    table: NDArray[Any],
    grid: tuple[int, int],
    tokens: int,
    rule: ResizeRule,
    name: str = "pos_embed",
    before: tuple[int, int] | None = None,
) -> NDArray[np.float32]:
    """Return positions [1, tokens + rows · columns, D] resized to ``grid``.

    table: [1, tokens + n · m, D]; the first ``tokens`` rows belong to class or distillation tokens and stay. Its grid
    is ``before``, (n, m), and square where that is None.

    Raises:
        CheckpointError: The table's grid is not square although nothing is known of its sides.
    """
    old = table.shape[1] - tokens
    if before is None:
        side = math.isqrt(max(old, 0))
        if old <= 0 or side * side != old:
            raise CheckpointError(f"{name!r} has {table.shape[1]} rows: without {tokens} tokens that is no square grid")
        before = (side, side)
    if before == grid:
        return np.asarray(table, np.float32)
    image = table[:, tokens:].reshape(1, *before, -1).transpose(0, 3, 1, 2)
    resized = resize_map(image, grid, rule).transpose(0, 2, 3, 1).reshape(1, grid[0] * grid[1], -1)
    return np.concatenate([np.asarray(table[:, :tokens], np.float32), resized], axis=1)


def resize_map(image: NDArray[Any], size: tuple[int, int], rule: ResizeRule) -> NDArray[np.float32]:
    """Interpolate [1, C, H, W] to ``size`` in float32."""
    import torch
    from torch.nn import functional as F

    return F.interpolate(
        torch.from_numpy(np.ascontiguousarray(image, np.float32)),
        size=size,
        mode="bicubic" if rule.startswith("bicubic") else "bilinear",
        align_corners=rule.endswith("align_corners"),
        antialias=rule.endswith("antialias"),
    ).numpy()
