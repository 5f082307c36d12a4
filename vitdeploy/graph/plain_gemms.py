"""Write every Gemm as y = x·W + b."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy.graph.values import array_of, is_constant


class PlainGemms(ir.passes.InPlacePass):
    """Fold ``alpha`` of a Gemm into its weight and ``beta`` into its bias, where these are constants.

    An integer linear has no place for them: a Gemm that kept them would be computed in floating point.

    Refused: a weight or bias that is not constant; a transposed activation is no linear.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        folded = 0
        for node in list(model.graph):
            if node.op_type == "Gemm" and node.domain == "" and is_constant(node.inputs[1]):
                folded += _fold(model.graph, node, 1, "alpha")
                if len(node.inputs) > 2 and is_constant(node.inputs[2]):
                    folded += _fold(model.graph, node, 2, "beta")
        return ir.passes.PassResult(model, modified=bool(folded))


def _fold(graph: ir.Graph, node: ir.Node, index: int, name: str) -> bool:
    factor = node.attributes[name].as_float() if name in node.attributes else 1.0
    value = node.inputs[index]
    array = array_of(value)
    if factor == 1.0 or value is None or array is None:
        return False
    node.replace_input_with(index, _scaled(graph, value, array, factor))
    node.attributes[name] = ir.AttrFloat32(name, 1.0)
    return True


def _scaled(graph: ir.Graph, value: ir.Value, array: NDArray[Any], factor: float) -> ir.Value:
    name = f"{value.name}.scaled"
    while name in graph.initializers:
        name += "_"
    tensor = ir.tensor((array * np.asarray(factor, array.dtype)).astype(array.dtype), name=name)
    scaled = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
    graph.register_initializer(scaled)
    return scaled
