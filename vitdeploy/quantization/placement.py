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
from vitdeploy.quantization.activation import Interval
from vitdeploy.quantization.affine import (
    FP8_MAX,
    Grid,
    ScaleType,
    convolution_scale,
    pairwise_scale,
    quantize_affine,
    quantize_fp8,
    scale_of,
    storable,
    symmetric_scale,
    unsigned_grid,
)
from vitdeploy.records import CpuIntegers, NodePrecision

INTEGER_PRECISIONS: tuple[NodePrecision, ...] = ("int8", "int8-weight-only", "fp8")


Use = tuple[ir.Node, int]
Wanted = tuple[ir.Value, tuple[Use, ...], Interval]
"""A tensor, its consumers, and its range."""


@dataclass(frozen=True)
class QuantizedGroup:
    """A group, its precision, its weights by name, and the range of its activation (None: weights only)."""

    group: LinearGroup
    precision: NodePrecision
    weights: Mapping[str, QuantizedTensor]
    interval: Interval | None = None


@dataclass(frozen=True)
class QuantizedTensors:
    """Activations of nodes that hold no weights, each with its consumers and range.

    On a CPU the second factor of a product takes the place of weights, which its kernels want signed.
    """

    precision: NodePrecision
    tensors: tuple[Wanted, ...]


@dataclass(frozen=True)
class Format:
    """What the integers must suit: the type in which scales are stored, and whether a CPU multiplies them.

    On a CPU weights keep clear of the overflow of ``pairwise_scale``, unless it is one with ``vnni``, and activations
    are unsigned: that is what the kernels of x86 multiply with signed weights. ONNX Runtime converts signed ones, but
    only where a single node reads them; linears that share a signed one (q, k, v of most exporters) run in FP32 there
    without a word. ``signed``: activations that can be negative are signed all the same, for OpenVINO on a
    processor with AMX, which multiplies them as they are, while a zero point costs time. ``openvino``: the factors of
    attention and the images are signed too, as its products of attention and convolutions want them, and those factors
    are rounded where they are computed, so that what is split and moved is 8 bits wide.
    """

    scale_type: ScaleType = "float32"
    cpu: bool = False
    vnni: bool = False
    signed: bool = False
    openvino: bool = False

    @property
    def processor(self) -> CpuIntegers:
        """How the processor multiplies integers that they are made for."""
        return "amx" if self.signed else "vnni" if self.vnni else "any"

    @property
    def judged_as(self) -> CpuIntegers:
        """As which processor a CPU has to multiply them in trials: TensorRT adds in 32 bits, as VNNI does."""
        return self.processor if self.cpu else "vnni"

    @property
    def rounds_convolved(self) -> bool:
        """Return whether what a convolution gives is rounded too: ONNX Runtime has no integer one that gives floats."""
        return self.cpu and not self.openvino

    @property
    def clearance(self) -> bool:
        """Return whether weights must keep clear of the overflow."""
        return self.cpu and not self.vnni


def place(
    groups: Sequence[QuantizedGroup], form: Format, others: Sequence[QuantizedTensors] = ()
) -> tuple[QdqPlacement, ...]:
    """Return one placement per number format: INT8 first, then E4M3.

    Activations are per tensor. Groups that read one tensor share its pair, with the union of their ranges.
    Scales are values that ``form.scale_type`` holds exactly.
    """
    placements = []
    for dtype in (ir.DataType.INT8, ir.DataType.FLOAT8E4M3FN):
        fp8 = dtype == ir.DataType.FLOAT8E4M3FN
        chosen = [item for item in groups if (item.precision == "fp8") == fp8]
        wanted = [
            (item.group.activation, item.group.uses, item.interval, form.openvino and _has_kernel(item.group))
            for item in chosen
            if item.interval
        ] + [(*tensor, form.openvino) for item in others if (item.precision == "fp8") == fp8 for tensor in item.tensors]
        if not chosen and not wanted:
            continue
        weights = {name: weight for item in chosen for name, weight in item.weights.items()}
        placements.append(QdqPlacement(_pairs(wanted, form, fp8), weights, dtype))
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
    elif form.clearance and weight.ndim == 2:
        exact = pairwise_scale(weight if linear.channel_axis == 1 else weight.T)
    elif form.clearance:
        exact = convolution_scale(weight)
    scale = storable(exact, form.scale_type)
    quantize = quantize_fp8 if fp8 else _quantize_narrow
    return QuantizedTensor(quantize(weight, scale, axis=linear.channel_axis), scale, linear.channel_axis)


def _quantize_narrow(x: NDArray[np.float32], scale: NDArray[np.float32], *, axis: int) -> NDArray[np.int8]:
    return quantize_affine(x, scale, axis=axis, narrow=True)


def activation_grid(interval: Interval, form: Format, *, fp8: bool = False, signed: bool = False) -> Grid:
    """Return the grid of an activation with values in ``interval``."""
    signed = signed or (form.signed and interval[0] < 0)
    if form.cpu and not (fp8 or signed):
        return unsigned_grid(*interval)
    clip = max(abs(limit) for limit in interval)
    return Grid(float(storable(scale_of(clip, steps=FP8_MAX if fp8 else 127.0), form.scale_type)))


def _has_kernel(group: LinearGroup) -> bool:
    """Return whether a group is a convolution that is no linear."""
    weights = [linear.weight.const_value for linear in group.linears]
    return any(size > 1 for weight in weights if weight is not None for size in weight.shape.numpy()[2:])


def _pairs(
    wanted: Sequence[tuple[ir.Value, tuple[Use, ...], Interval, bool]], form: Format, fp8: bool
) -> tuple[ActivationPair, ...]:
    """Return the pairs of tensors, each of which says whether it is signed where it can be negative."""
    ranges: dict[tuple[ir.Value, bool], Interval] = {}
    uses: dict[tuple[ir.Value, bool], list[Use]] = {}
    for value, readers, (low, high), signed_if_negative in wanted:
        for use in readers:
            key = value, is_second_factor(*use) or (signed_if_negative and low < 0)
            before = ranges.get(key, (low, high))
            ranges[key] = min(low, before[0]), max(high, before[1])
            listed = uses.setdefault(key, [])
            listed.extend([use] if use not in listed else [])
    pairs = []
    for (value, signed), interval in ranges.items():
        grid = activation_grid(interval, form, fp8=fp8, signed=signed)
        pairs.append(ActivationPair(value, grid.scale, tuple(uses[value, signed]), grid.zero_point))
    return tuple(pairs)


def is_second_factor(node: ir.Node, index: int) -> bool:
    """Return whether a use is the right factor of a MatMul."""
    return node.op_type == "MatMul" and index == 1
