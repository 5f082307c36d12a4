"""Quantize FP16 activations from FP32, for runtimes whose FP16 QuantizeLinear does not round."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy.graph.values import array_of


class QuantizeInFloat32(ir.passes.InPlacePass):
    """Put a Cast to FP32 in front of each QuantizeLinear that reads FP16, its scale widened as well.

    The integers are those that QuantizeLinear defines (round half to even of x / scale): every FP16 number and every
    quotient's rounding is kept. DequantizeLinear and its FP16 result are left as they are.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph):
            if node.op_type != "QuantizeLinear" or node.domain != "":
                continue
            x, scale = node.inputs[0], node.inputs[1]
            values = array_of(scale)
            if x is None or scale is None or values is None or values.dtype != np.float16:
                continue
            wide = _float32_of(model.graph, scale, values.astype(np.float32))
            cast = ir.node("Cast", [x], attributes={"to": ir.DataType.FLOAT.value}, name=f"{node.name}/Cast")
            cast.outputs[0].name = f"{cast.name}_out"
            cast.outputs[0].type, cast.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), x.shape
            model.graph.insert_before(node, cast)
            node.replace_input_with(0, cast.outputs[0])
            node.replace_input_with(1, wide)
            modified = True
        return ir.passes.PassResult(model, modified=modified)


def _float32_of(graph: ir.Graph, scale: ir.Value, values: NDArray[np.float32]) -> ir.Value:
    name = f"{scale.name}.float32"
    if name in graph.initializers:
        return graph.initializers[name]
    tensor = ir.tensor(values, name=name)
    wide = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(values.shape), const_value=tensor)
    graph.register_initializer(wide)
    return wide
