"""From a plan and observed ranges to what is written into the graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy.errors import CalibrationError, GraphError
from vitdeploy.graph.insert_qdq import ActivationPair, QdqPlacement, QuantizedTensor
from vitdeploy.graph.linear_groups import Linear, LinearGroup
from vitdeploy.quantization.affine import (
    FP8_MAX,
    ScaleType,
    quantize_affine,
    quantize_fp8,
    scale_of,
    storable,
    symmetric_scale,
)
from vitdeploy.records import NodePrecision

INTEGER_PRECISIONS: tuple[NodePrecision, ...] = ("int8", "int8-weight-only", "fp8")


@dataclass(frozen=True)
class QuantizedGroup:
    """A group, its precision, and the largest magnitude of its activation that is represented (None: weights only)."""

    group: LinearGroup
    precision: NodePrecision
    clip: float | None = None


def place(groups: Sequence[QuantizedGroup], scale_type: ScaleType) -> tuple[QdqPlacement, ...]:
    """Return one placement per number format: INT8 first, then E4M3.

    Weights are per output channel, activations per tensor, both symmetric. Groups that read one tensor share its pair,
    with the largest of their clips. Scales are values that ``scale_type`` holds exactly.
    """
    placements = []
    for dtype in (ir.DataType.INT8, ir.DataType.FLOAT8E4M3FN):
        chosen = [group for group in groups if (group.precision == "fp8") == (dtype == ir.DataType.FLOAT8E4M3FN)]
        if not chosen:
            continue
        fp8 = dtype == ir.DataType.FLOAT8E4M3FN
        weights = {
            str(linear.weight.name): quantize_weight(linear, scale_type, fp8=fp8)
            for item in chosen
            for linear in item.group.linears
        }
        placements.append(QdqPlacement(_pairs(chosen, scale_type, FP8_MAX if fp8 else 127.0), weights, dtype))
    return tuple(placements)


def quantize_weight(linear: Linear, scale_type: ScaleType, *, fp8: bool = False) -> QuantizedTensor:
    """Return the weight of a linear in integers (or E4M3) with one scale per output channel.

    Raises:
        GraphError: The weight has NaN or infinite values; the message names it.
    """
    assert linear.weight.const_value is not None
    weight: NDArray[np.float32] = linear.weight.const_value.numpy().astype(np.float32, copy=False)
    axes = tuple(axis for axis in range(weight.ndim) if axis != linear.channel_axis)
    lo, hi = weight.min(axis=axes), weight.max(axis=axes)
    try:
        exact = symmetric_scale(lo, hi)
    except CalibrationError as error:
        raise GraphError(f"the weight {linear.weight.name!r} cannot be quantized: {error}") from error
    if fp8:
        exact = scale_of(np.maximum(np.abs(lo), np.abs(hi)), steps=FP8_MAX)
    scale = storable(exact, scale_type)
    quantize = quantize_fp8 if fp8 else _quantize_narrow
    return QuantizedTensor(quantize(weight, scale, axis=linear.channel_axis), scale, linear.channel_axis)


def _quantize_narrow(x: NDArray[np.float32], scale: NDArray[np.float32], *, axis: int) -> NDArray[np.int8]:
    return quantize_affine(x, scale, axis=axis, narrow=True)


def _pairs(groups: Sequence[QuantizedGroup], scale_type: ScaleType, steps: float) -> tuple[ActivationPair, ...]:
    clips: dict[ir.Value, float] = {}
    uses: dict[ir.Value, list[tuple[ir.Node, int]]] = {}
    for item in groups:
        if item.clip is None:
            continue
        value = item.group.activation
        clips[value] = max(clips.get(value, 0.0), item.clip)
        uses.setdefault(value, []).extend(use for use in item.group.uses if use not in uses.get(value, []))
    return tuple(
        ActivationPair(value, float(storable(scale_of(clip, steps=steps), scale_type)), tuple(uses[value]))
        for value, clip in clips.items()
    )
