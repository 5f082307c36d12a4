"""Which member of a family is trained where only the family is named; no torch.

Images of up to ``SMALL_SIDE`` pixels get a small member, made for their size. Its linears start as Xavier's, since the
usual initial std of 0.02 underfits at such widths, and its positions ten times wider. Larger images get the variant of
the catalogue with the fewest parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from vitdeploy.catalog import Variant, variants
from vitdeploy.errors import UsageError

SMALL_SIDE = 64
SHAPE = frozenset({"width", "depth", "widths", "depths", "units"})
"""Arguments that give a model a size of its own, so that none is chosen."""

Size = tuple[int, int]
_MOST_TOKENS = 32


def small_member(family: str, size: Size) -> dict[str, Any]:
    """Return the arguments of a small member that takes images of ``size`` (height, width).

    The arguments are empty for a family that is not known, and where the images are larger than ``SMALL_SIDE``.

    Raises:
        UsageError: The images do not divide into patches.
    """
    if family not in _MEMBERS or max(size) > SMALL_SIDE:
        return {}
    return _MEMBERS[family](size)


def smallest_variant(family: str, size: Size) -> Variant | None:
    """Return the variant of the catalogue with the fewest parameters, of those made for ``size`` if any."""
    known = [entry for entry in variants().values() if entry.family == family]
    fitting = [entry for entry in known if entry.preprocess.size == size] or known
    return min(fitting, key=lambda entry: (entry.parameters, not entry.name.startswith(family)), default=None)


def gives_shape(arguments: Mapping[str, Any]) -> bool:
    """Return whether ``arguments`` say how large the model is."""
    return not SHAPE.isdisjoint(arguments)


def _plain(size: Size) -> dict[str, Any]:
    patch = _stride(size, 4 if min(size) <= 8 else 8)
    return {"patch": patch, "width": 64, "depth": 3, "heads": 4, "init": "xavier", "position_std": 0.2}


def _vit_pytorch(size: Size) -> dict[str, Any]:
    patch = _stride(size, 4 if min(size) <= 8 else 8)
    return {"patch": patch, "width": 64, "depth": 3, "heads": 4, "head_width": 16, "hidden": 256}


def _hybrid(size: Size) -> dict[str, Any]:
    feature_map = (-(-size[0] // 4), -(-size[1] // 4))
    return {
        "units": [],
        "stem_width": 32,
        "groups": 8,
        "patch": _stride(feature_map, 8),
        "width": 64,
        "depth": 3,
        "heads": 4,
        "init": "xavier",
        "position_std": 0.2,
    }


def _t2t(size: Size) -> dict[str, Any]:
    tokens = 4 if min(size) <= 8 else 8
    splits = {
        1: ([3, 3, 3], [1, 1, 1]),
        2: ([3, 3, 3], [1, 2, 1]),
        4: ([3, 3, 3], [2, 2, 1]),
        8: ([7, 3, 3], [4, 2, 1]),
    }
    total = min(splits, key=lambda stride: abs(min(size) / stride - tokens))
    kernels, strides = splits[total]
    return {
        "split_kernels": kernels,
        "split_strides": strides,
        "token_width": 16,
        "width": 64,
        "depth": 3,
        "heads": 4,
        "mlp_ratio": 2,
        "init": "xavier",
    }


def _tnt(size: Size) -> dict[str, Any]:
    patch = _stride(size, min(8, max(1, min(size) // 4)))
    words = next((side for side in (2, 3, 5) if patch % side == 0), patch)
    return {
        "patch": patch,
        "inner_stride": patch // words,
        "width": 64,
        "depth": 3,
        "heads": 4,
        "inner_width": 16,
        "inner_heads": 2,
        "mlp_ratio": 2,
        "init": "xavier",
        "position_std": 0.2,
    }


def _pvt(size: Size) -> dict[str, Any]:
    fine, halves = _two_stages(size)
    return {
        "patches": [fine, 2 if halves else 1],
        "widths": [32, 64],
        "depths": [2, 2],
        "heads": [2, 4],
        "mlp_ratios": [2, 2],
        "sr_ratios": [2, 1],
        "init": "xavier",
        "position_std": 0.2,
    }


def _pvt_v2(size: Size) -> dict[str, Any]:
    stride = 1 << max(0, round(math.log2(min(size) / 16)))
    return {
        "patches": [3 if stride < 4 else 7, 3],
        "strides": [stride, 2],
        "widths": [32, 64],
        "depths": [2, 2],
        "heads": [2, 4],
        "mlp_ratios": [2, 2],
        "sr_ratios": [2, 1],
        "init": "xavier",
    }


def _swin(size: Size) -> dict[str, Any]:
    patch, halves = _two_stages(size)
    last = patch * 2 if halves else patch
    common = math.gcd(size[0] // last, size[1] // last)
    window = next(side for side in range(1, common + 1) if common % side == 0 and (side >= 4 or side == common))
    stages = 2 if halves else 1
    return {
        "patch": patch,
        "width": 48,
        "depths": [2] * stages,
        "heads": [4] * stages,
        "window": window,
        "mlp_ratio": 2,
        "init": "xavier",
    }


def _patchconvnet(size: Size) -> dict[str, Any]:
    tokens = 4 if min(size) <= 8 else 8
    splits = {1: [1, 1], 2: [1, 2], 4: [2, 2], 8: [2, 2, 2]}
    usable = [stride for stride in splits if size[0] % stride == 0 and size[1] % stride == 0]
    total = min(usable, key=lambda stride: abs(min(size) / stride - tokens))
    return {"stem_strides": splits[total], "width": 64, "depth": 6, "layer_scale": 0.1, "init": "xavier"}


_MEMBERS: dict[str, Callable[[Size], dict[str, Any]]] = {
    "vit": _plain,
    "deit": _plain,
    "vit_pytorch": _vit_pytorch,
    "hybrid": _hybrid,
    "t2t": _t2t,
    "tnt": _tnt,
    "pvt": _pvt,
    "pvt_v2": _pvt_v2,
    "swin": _swin,
    "swin_v2": _swin,
    "patchconvnet": _patchconvnet,
}


def _two_stages(size: Size) -> tuple[int, bool]:
    """Return the stride of a first stage with up to 16 tokens a side, and whether a second can halve its grid."""
    tokens = min(16, max(2, min(size) // 2))
    even = _strides(size, multiple=2)
    if even:
        return _nearest(even, size, tokens), True
    return _nearest(_strides(size), size, tokens), False


def _stride(size: Size, tokens: int) -> int:
    """Return the divisor of both sides that leaves about ``tokens`` on the shorter one."""
    return _nearest(_strides(size), size, tokens)


def _strides(size: Size, multiple: int = 1) -> list[int]:
    """Return the divisors of both sides that leave a multiple of ``multiple`` on each."""
    return [s for s in range(1, min(size) + 1) if all(side % (s * multiple) == 0 for side in size)]


def _nearest(strides: list[int], size: Size, tokens: int) -> int:
    """Return the stride that leaves about ``tokens`` on the shorter side.

    Raises:
        UsageError: Each of them leaves a single token, or more than ``_MOST_TOKENS``.
    """
    usable = [stride for stride in strides if min(size) < 4 or 2 <= min(size) / stride <= _MOST_TOKENS]
    if not usable:
        raise UsageError(
            f"images of {size[0]}×{size[1]} do not divide into 2 to {_MOST_TOKENS} patches a side: choose another "
            f"image_size, such as {max(8, round(min(size) / 8) * 8)}"
        )
    return min(usable, key=lambda stride: abs(min(size) / stride - tokens))
