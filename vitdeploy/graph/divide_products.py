"""A product whose output is divided, as one product for each part."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.insert_qdq import new_initializer
from vitdeploy.graph.lower_integer_matmuls import DOMAIN
from vitdeploy.graph.values import array_of

_OPERATOR = "MatMulIntegerToFloat"
_OF_COLUMNS = (1, 3, 5, 6)
"""Inputs of the operator with a value for each column of its output: weight, scales, zero points, bias."""


class DivideProducts(ir.passes.InPlacePass):
    """Write MatMulIntegerToFloat and the Split behind it as a product for each part of the output.

    Cases:
        q, k and v of one product [B, N, 3·D], Split  become three products [B, N, D] with a third of the columns each:
                     Split would read and write the whole output once more.
        other        an output that something else reads too, a Split along another axis, or into parts that are not
                     known, stays.

    Values do not change.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        products = [node for node in model.graph if node.op_type == _OPERATOR and node.domain == DOMAIN]
        changed = sum(_divide(model.graph, node) for node in products)
        return ir.passes.PassResult(model, modified=bool(changed))


def _divide(graph: ir.Graph, product: ir.Node) -> bool:
    output = product.outputs[0]
    readers = output.consumers()
    if len(output.uses()) != 1 or output.is_graph_output() or readers[0].op_type != "Split" or readers[0].domain:
        return False
    split = readers[0]
    arrays = {index: array_of(value) for index, value in enumerate(product.inputs) if index in _OF_COLUMNS and value}
    weight = arrays.get(1)
    if weight is None or weight.ndim != 2 or any(array is None for array in arrays.values()):
        return False
    ends = _ends(split, weight.shape[1])
    if ends is None or not _along_last(split, output):
        return False
    parts = []
    for index, (low, high) in enumerate(zip([0, *ends], ends, strict=False)):
        inputs = list(product.inputs)
        for place, array in arrays.items():
            assert array is not None
            if array.ndim and array.shape[-1] == weight.shape[1]:
                value = product.inputs[place]
                assert value is not None
                name = _free(graph, f"{value.name}.{index}")
                inputs[place] = new_initializer(graph, name, np.ascontiguousarray(array[..., low:high]))
        part = ir.node(_OPERATOR, inputs, domain=DOMAIN, name=f"{product.name}/{index}")
        part.metadata_props.update(product.metadata_props)
        before = split.outputs[index]
        part.outputs[0].name, part.outputs[0].type, part.outputs[0].shape = before.name, before.type, before.shape
        parts.append(part)
    old, new = list(split.outputs), [part.outputs[0] for part in parts]
    sources = [product.inputs[place] for place in arrays]
    ir.convenience.replace_nodes_and_values(graph, split, [product, split], parts, old, new)
    for value in sources:
        if value is not None and value.is_initializer() and not value.uses():
            graph.initializers.pop(str(value.name), None)
    return True


def _ends(split: ir.Node, width: int) -> list[int] | None:
    """Return where each part of a Split ends; None where that is not known."""
    count = len(split.outputs)
    if len(split.inputs) > 1 and split.inputs[1] is not None:
        sizes = array_of(split.inputs[1])
        if sizes is None or len(sizes) != count or int(sizes.sum()) != width:
            return None
        return [int(end) for end in np.cumsum(sizes)]
    if width % count:
        return None
    return [width // count * (index + 1) for index in range(count)]


def _along_last(split: ir.Node, value: ir.Value) -> bool:
    axis = split.attributes["axis"].as_int() if "axis" in split.attributes else 0
    return axis == -1 or (value.shape is not None and axis == len(value.shape) - 1)


def _free(graph: ir.Graph, name: str) -> str:
    while name in graph.initializers:
        name += "_"
    return name
