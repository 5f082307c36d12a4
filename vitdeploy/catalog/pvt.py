"""PVT v1, PVT v2 and PVT v2 Linear as in the repository of their authors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vitdeploy.catalog.presets import cropped
from vitdeploy.catalog.variant import Variant

PREPROCESS = cropped(224, 224 / 256, "PVT evaluation, crop 224 / 256")


def _variant(
    name: str,
    family: str,
    arguments: dict[str, Any],
    cost: tuple[int, float],
    top1: float,
    checkpoints: tuple[str, ...],
) -> Variant:
    """Return a variant; ``cost`` is (parameters, GMACs)."""
    return Variant(
        name=name,
        family=family,
        arguments={"image_size": 224, **arguments},
        preprocess=PREPROCESS,
        parameters=cost[0],
        gmacs=cost[1],
        top1=top1,
        source="PVT README",
        checkpoints=checkpoints,
    )


def _v1(size: str, depths: Sequence[int], parameters: int, gmacs: float, top1: float) -> Variant:
    checkpoints = (f"pvt_{size}.pth", f"hf:Zetatech/pvt-{size}-224")
    return _variant(f"pvt_{size}", "pvt", {"depths": depths}, (parameters, gmacs), top1, checkpoints)


def _v2(size: str, arguments: dict[str, Any], parameters: int, gmacs: float, top1: float) -> Variant:
    name = f"pvt_v2_{size}"
    checkpoints = (f"{name}.pth", f"timm:{name}.in1k", f"hf:OpenGVLab/{name.replace('_li', '_linear')}")
    return _variant(name, "pvt_v2", arguments, (parameters, gmacs), top1, checkpoints)


VARIANTS = (
    _v1("tiny", [2, 2, 2, 2], 13_229_288, 1.933, 0.751),
    _v1("small", [3, 4, 6, 3], 24_485_864, 3.816, 0.798),
    _v1("medium", [3, 4, 18, 3], 44_208_104, 6.659, 0.812),
    _v1("large", [3, 8, 27, 3], 61_369_320, 9.814, 0.817),
    _v2("b0", {"depths": [2, 2, 2, 2], "widths": [32, 64, 160, 256]}, 3_666_760, 0.566, 0.705),
    _v2("b1", {"depths": [2, 2, 2, 2]}, 14_009_000, 2.108, 0.787),
    _v2("b2", {"depths": [3, 4, 6, 3]}, 25_362_856, 4.027, 0.820),
    _v2("b2_li", {"depths": [3, 4, 6, 3], "linear": True}, 22_553_512, 3.889, 0.821),
    _v2("b3", {"depths": [3, 4, 18, 3]}, 45_238_696, 6.897, 0.831),
    _v2("b4", {"depths": [3, 8, 27, 3]}, 62_556_072, 10.101, 0.836),
    _v2("b5", {"depths": [3, 6, 40, 3], "mlp_ratios": [4, 4, 4, 4]}, 81_956_008, 11.717, 0.838),
)
