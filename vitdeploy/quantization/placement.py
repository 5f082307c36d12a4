"""From a plan and observed ranges to what is written into the graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    pairwise_scale,
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
    """A group, its precision, its weights by name, and the clip of its activation (None: weights only)."""

    group: LinearGroup
    precision: NodePrecision
    weights: Mapping[str, QuantizedTensor]
    clip: float | None = None


@dataclass(frozen=True)
class QuantizedTensors:
    """Activations of nodes that hold no weights, each with its consumers and clip."""

    precision: NodePrecision
    tensors: tuple[tuple[ir.Value, tuple[tuple[ir.Node, int], ...], float], ...]


@dataclass(frozen=True)
class Format:
    """What the integers must suit: the type in which scales are stored, and whether a CPU multiplies them.

    On a CPU weights keep clear of the overflow of ``pairwise_scale``.
    """

    scale_type: ScaleType = "float32"
    cpu: bool = False


def place(
    groups: Sequence[QuantizedGroup], form: Format, others: Sequence[QuantizedTensors] = ()
) -> tuple[QdqPlacement, ...]:
    """Return one placement per number format: INT8 first, then E4M3.

    Activations are per tensor, symmetric. Groups that read one tensor share its pair, with the largest of their clips.
    Scales are values that ``form.scale_type`` holds exactly.
    """
    placements = []
    for dtype in (ir.DataType.INT8, ir.DataType.FLOAT8E4M3FN):
        fp8 = dtype == ir.DataType.FLOAT8E4M3FN
        chosen = [item for item in groups if (item.precision == "fp8") == fp8]
        wanted = [(item.group.activation, item.group.uses, item.clip) for item in chosen if item.clip is not None] + [
            tensor for item in others if (item.precision == "fp8") == fp8 for tensor in item.tensors
        ]
        if not chosen and not wanted:
            continue
        weights = {name: weight for item in chosen for name, weight in item.weights.items()}
        placements.append(QdqPlacement(_pairs(wanted, form, FP8_MAX if fp8 else 127.0), weights, dtype))
    return tuple(placements)


def quantize_weight(linear: Linear, form: Format, *, fp8: bool = False) -> QuantizedTensor:
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
    elif form.cpu and weight.ndim == 2:
        exact = pairwise_scale(weight if linear.channel_axis == 1 else weight.T)
    scale = storable(exact, form.scale_type)
    quantize = quantize_fp8 if fp8 else _quantize_narrow
    return QuantizedTensor(quantize(weight, scale, axis=linear.channel_axis), scale, linear.channel_axis)


def _quantize_narrow(x: NDArray[np.float32], scale: NDArray[np.float32], *, axis: int) -> NDArray[np.int8]:
    return quantize_affine(x, scale, axis=axis, narrow=True)


def activation_scale(clip: float, form: Format, steps: float = 127.0) -> float:
    """Return the step of an activation whose largest magnitude is ``clip``."""
    return float(storable(scale_of(clip, steps=steps), form.scale_type))


def _pairs(
    wanted: Sequence[tuple[ir.Value, tuple[tuple[ir.Node, int], ...], float]], form: Format, steps: float
) -> tuple[ActivationPair, ...]:
    clips: dict[ir.Value, float] = {}
    uses: dict[ir.Value, list[tuple[ir.Node, int]]] = {}
    for value, readers, clip in wanted:
        clips[value] = max(clips.get(value, 0.0), clip)
        uses.setdefault(value, []).extend(use for use in readers if use not in uses.get(value, []))
    return tuple(
        ActivationPair(value, activation_scale(clip, form, steps), tuple(uses[value])) for value, clip in clips.items()
    )
