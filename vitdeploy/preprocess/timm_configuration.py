"""What timm's evaluation transform does with a model's ``pretrained_cfg``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from vitdeploy.errors import DataError
from vitdeploy.preprocess.record import IMAGENET_MEAN, IMAGENET_STD, make_record
from vitdeploy.records import Preprocess

_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")


def preprocess_from_timm(source: str) -> Preprocess:
    """Return the preprocessing of ``timm:NAME``, from timm's own table; nothing is fetched.

    Raises:
        DataError: timm is missing or has no such configuration, or a ``Preprocess`` cannot say what it does.
    """
    name = source.removeprefix("timm:")
    try:
        import timm
    except ImportError as error:
        raise DataError(f"timm is not installed, which {source!r} needs: pip install 'vitdeploy[torch]'") from error
    if not timm.is_model(name.partition(".")[0]):
        raise DataError(f"timm has no model {name.partition('.')[0]!r}: 'timm.list_models()' names them")
    try:
        config = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:
        raise DataError(f"timm knows no configuration {name!r}: {' '.join(str(error).split())}") from error
    return preprocess_from_timm_config(config.to_dict(), source)


def preprocess_from_timm_config(config: Mapping[str, Any], source: str) -> Preprocess:
    """Return what timm's evaluation transform does for a ``pretrained_cfg``, at its ``input_size``.

    ``center`` scales the shorter side to size / ``crop_pct`` and crops, ``squash`` scales both sides so and crops,
    ``border`` scales the longer side so and adds borders in the colour of ``mean``.

    Raises:
        DataError: ``crop_mode`` or ``interpolation`` is none that timm evaluates with.
    """
    channels, height, width = _input_size(config, source)
    part, mode = float(config.get("crop_pct") or 0.875), config.get("crop_mode") or "center"
    if mode not in ("center", "squash", "border"):
        raise DataError(f"{source}: crop_mode {mode!r} is not known, expected 'center', 'squash' or 'border'")
    interpolation = config.get("interpolation") or "bicubic"
    if interpolation not in _INTERPOLATIONS:
        raise DataError(
            f"{source}: interpolation {interpolation!r} is none for evaluation, expected one of "
            f"{', '.join(_INTERPOLATIONS)}"
        )
    mean = _per_channel(config.get("mean") or IMAGENET_MEAN, channels, "mean", source)
    std = _per_channel(config.get("std") or IMAGENET_STD, channels, "std", source)
    if not part > 0:
        raise DataError(f"{source}: crop_pct {part!r} must be positive")
    scaled = (math.floor(height / part), math.floor(width / part))
    values: dict[str, Any] = {"resize_size": scaled, "crop": "center"}
    if mode == "squash":
        values = {"resize": "squash", "crop": "none"} if part == 1.0 else {**values, "resize": "squash"}
    elif mode == "border":
        values |= {"resize": "contain", "fill": tuple(min(max(round(255 * value), 0), 255) for value in mean)}
    elif scaled[0] == scaled[1]:
        values |= {"resize": "shortest", "resize_size": scaled[0]}
    else:
        values |= {"resize": "cover"}
    common = {"size": (height, width), "channels": channels, "interpolation": interpolation, "mean": mean, "std": std}
    return make_record({**common, **values, "source": source}, source)


def _input_size(config: Mapping[str, Any], source: str) -> tuple[int, int, int]:
    size = config.get("input_size") or (3, 224, 224)
    if isinstance(size, (list, tuple)) and len(size) == 3 and all(type(side) is int for side in size):
        return size[0], size[1], size[2]
    raise DataError(f"{source}: input_size is {size!r}, expected channels, height and width")


def _per_channel(values: Any, channels: int, key: str, source: str) -> tuple[float, ...]:
    if isinstance(values, (int, float)):
        values = (values,)
    if isinstance(values, (list, tuple)) and all(isinstance(value, (int, float)) for value in values):
        if len(values) == 1:
            return tuple(values) * channels
        if len(values) == channels:
            return tuple(values)
    raise DataError(f"{source}: {key} is {values!r}, expected {channels} numbers, one per channel")
