"""With which arguments a model of timm has the shapes of a file whose weights do not fit it as it was named."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from vitdeploy.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

Shapes = Mapping[str, tuple[int, ...]]
_POSITIONS, _PROJECTION = "pos_embed", "patch_embed.proj.weight"
_BIAS_TABLE = re.compile(r"layers\.(\d+)\.blocks\.\d+\.attn\.relative_position_bias_table")


def fitting_arguments(name: str, arguments: Mapping[str, Any], module: nn.Module, found: Shapes) -> dict[str, Any]:
    """Return what to add to ``arguments`` so that the model has the file's tensors in their shapes; {} for nothing.

    Image size, patch, window and channels are read off the shapes of the patch embedding and the tables of positions,
    and the model is built with them: what is returned fits.

    Args:
        name: A model of timm.
        arguments: With which ``module`` was built, as timm names them.
        module: Whose shapes differ.
        found: Tensor name → shape in the file.
    """
    from vitdeploy.models.external import create_timm

    for offer in _offers(module, found):
        try:
            shapes = shapes_of(create_timm(name, {**arguments, **offer}))
        except ModelError:
            continue
        if shapes == dict(found):
            return offer
    return {}


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return tensor name → shape."""
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def _offers(module: nn.Module, found: Shapes) -> Iterator[dict[str, Any]]:
    """Yield arguments that the shapes speak for, the likeliest first."""
    ours = shapes_of(module)
    base: dict[str, Any] = {}
    patch = _patch(ours)
    theirs = found.get(_PROJECTION)
    if theirs is not None and len(theirs) == len(ours.get(_PROJECTION, ())) == 4:
        if theirs[1] != ours[_PROJECTION][1]:
            base["in_chans"] = theirs[1]
        if theirs[2:] != ours[_PROJECTION][2:] and theirs[2] == theirs[3]:
            base["patch_size"] = patch = theirs[2]
    if base:
        yield base
    side = _grid_side(module, ours, found)
    if side is not None and patch:
        yield {"img_size": side * patch, **base}
    windows = {
        int(match[1]): (math.isqrt(shape[0]) + 1) // 2
        for key, shape in found.items()
        if (match := _BIAS_TABLE.fullmatch(key)) and key in ours
    }
    for stage, window in sorted(windows.items(), reverse=True):
        # a stage that is smaller than a window has one of its own size
        yield {"img_size": window * (patch or 4) * 2**stage, **base}
    if windows:
        yield {"window_size": max(windows.values()), **base}


def _patch(ours: Shapes) -> int:
    shape = ours.get(_PROJECTION, ())
    return shape[2] if len(shape) == 4 and shape[2] == shape[3] else 0


def _grid_side(module: nn.Module, ours: Shapes, found: Shapes) -> int | None:
    """Return the side of the file's grid of positions, None where it is not a square or there is no table of them."""
    before, after = ours.get(_POSITIONS, ()), found.get(_POSITIONS, ())
    grid = getattr(getattr(module, "patch_embed", None), "grid_size", None)
    if len(before) != 3 or len(after) != 3 or grid is None:
        return None
    cells = after[1] - (before[1] - math.prod(grid))  # the rest are class tokens and registers
    side = math.isqrt(max(cells, 0))
    return side if side and side * side == cells else None
