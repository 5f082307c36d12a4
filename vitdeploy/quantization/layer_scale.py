"""Fold LayerScale into the linear before it, whose weights are quantized per output channel all the same."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy.graph.linear_groups import Linear, LinearGroup
from vitdeploy.graph.values import array_of
from vitdeploy.quantization.placement import Format
from vitdeploy.quantization.scaling import matrix

_SMALLEST_STEP = 2.0**-20
"""A step that FP16 holds within 4 %; LayerScales of 1e-5 would leave less."""


def fold_layer_scales(graph: ir.Graph, group: LinearGroup, form: Format) -> int:
    """Multiply columns and bias of the group's linears by the constant that multiplies their outputs, in place.

    y = γ·(xW + b) = x(W·γ) + b·γ: the Mul goes, and the steps of the weights take γ in. Where scales are FP16 it stays
    if a step became too small for that. Returns how many Muls went.
    """
    return sum(_fold(graph, linear, form) for linear in group.linears)


def _fold(graph: ir.Graph, linear: Linear, form: Format) -> bool:
    if linear.node.op_type == "Conv" or len(linear.weight.uses()) != 1:
        return False
    output, bias = linear.node.outputs[0], None
    if linear.node.op_type == "Gemm":
        bias = linear.node.inputs[2] if len(linear.node.inputs) > 2 else None
        if any(name in linear.node.attributes and linear.node.attributes[name].as_float() != 1.0 for name in ("beta",)):
            return False
    elif (add := _only_reader(output, "Add")) is not None:
        bias = next((value for value in add.inputs if value is not output), None)
        output = add.outputs[0]
        if array_of(bias) is None:
            return False
    product = _only_reader(output, "Mul")
    if product is None:
        return False
    constant = next((value for value in product.inputs if value is not output), None)
    scale, width = array_of(constant), linear.out_features
    if scale is None or scale.size not in (1, width) or (scale.size == width and scale.shape[-1] != width):
        return False
    if bias is not None and (not bias.is_initializer() or len(bias.uses()) != 1 or array_of(bias) is None):
        return False
    factor = np.broadcast_to(np.asarray(scale, np.float64).reshape(-1), (width,))
    steps = np.abs(matrix(linear)).max(axis=0) * np.abs(factor) / 127
    if form.scale_type == "float16" and np.any((steps > 0) & (steps < _SMALLEST_STEP)):
        return False
    shape = (1, -1) if linear.channel_axis == 1 else (-1, 1)
    _multiply(linear.weight, factor.reshape(shape))
    if bias is not None:
        _multiply(bias, factor)
    product.outputs[0].replace_all_uses_with(output)
    graph.remove(product, safe=True)
    return True


def _only_reader(value: ir.Value, op_type: str) -> ir.Node | None:
    readers = value.consumers()
    if value.is_graph_output() or len(value.uses()) != 1 or readers[0].op_type != op_type:
        return None
    return None if readers[0].outputs[0].is_graph_output() else readers[0]


def _multiply(value: ir.Value, factor: NDArray[np.float64]) -> None:
    assert value.const_value is not None
    array = (value.const_value.numpy() * factor).astype(np.float32)
    value.const_value, value.shape = ir.tensor(array, name=value.name), ir.Shape(array.shape)
