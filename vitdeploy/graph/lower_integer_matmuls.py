"""Products of integers with their biases as one operator of ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.insert_qdq import new_initializer
from vitdeploy.graph.keep_integer_matmuls import is_integer_product
from vitdeploy.graph.values import array_of, is_constant

DOMAIN = "com.microsoft"


class LowerIntegerMatMuls(ir.passes.InPlacePass):
    """Write DequantizeLinear, MatMul and the Add of a constant bias as MatMulIntegerToFloat, ONNX Runtime's operator.

    It makes the operator of the product by itself, but leaves the bias to an Add, which reads and writes the whole
    output once more. Products without a bias stay as they are. Values keep what they were, up to the last bit where a
    kernel multiplies and adds at once.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        changed = sum(_lower(model.graph, node) for node in list(model.graph) if is_integer_product(node))
        if changed:
            model.opset_imports[DOMAIN] = 1
        return ir.passes.PassResult(model, modified=bool(changed))


def _lower(graph: ir.Graph, product: ir.Node) -> bool:
    output = product.outputs[0]
    readers = output.consumers()
    if len(output.uses()) != 1 or output.is_graph_output() or readers[0].op_type != "Add" or readers[0].domain:
        return False
    addition = readers[0]
    bias = addition.inputs[1 if addition.inputs[0] is output else 0]
    dequantizers = [value.producer() for value in product.inputs if value is not None]
    sources = [[value for value in node.inputs if value is not None] for node in dequantizers if node is not None]
    width = _size(sources[1][0])
    array = array_of(bias) if bias is not None and is_constant(bias) else None
    if array is None or width is None or array.size != width or array.shape[-1] != width:
        return False
    name = f"{addition.name}.bias"
    while name in graph.initializers:
        name += "_"
    (activation, scale, zero), (weight, steps, zeros) = sources
    inputs = [activation, weight, scale, steps, zero, zeros, new_initializer(graph, name, np.ravel(array))]
    fused = ir.node("MatMulIntegerToFloat", inputs, domain=DOMAIN, name=product.name)
    fused.metadata_props.update(product.metadata_props)
    total = addition.outputs[0]
    fused.outputs[0].name, fused.outputs[0].type, fused.outputs[0].shape = total.name, total.type, output.shape
    ir.convenience.replace_nodes_and_values(graph, addition, [product, addition], [fused], [total], [fused.outputs[0]])
    for node in dequantizers:  # ONNX Runtime would compute what nobody reads
        if node is not None and not node.outputs[0].uses():
            graph.remove(node, safe=True)
    if bias is not None and not bias.uses() and bias.is_initializer():
        del graph.initializers[str(bias.name)]
    return True


def _size(weight: ir.Value) -> int | None:
    array = weight.const_value
    return None if array is None else int(array.shape[-1])  # type: ignore[arg-type]
