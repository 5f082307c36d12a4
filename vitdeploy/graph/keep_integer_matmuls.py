"""Keep ONNX Runtime from making a floating-point Gemm of an integer MatMul and its bias."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy.graph.insert_qdq import new_initializer
from vitdeploy.graph.values import array_of, is_constant

_RANK = 3


class KeepIntegerMatMuls(ir.passes.InPlacePass):
    """Give the bias behind every integer MatMul three dimensions, [1, 1, N] instead of [N].

    ONNX Runtime fuses MatMul and Add into Gemm before it looks for integers, wherever the bias is a vector and the
    product has two dimensions or a static shape (``MatMulAddFusion``). Its integer Gemm wants an int32 bias, so that
    linear is then computed in FP32 from dequantized values. Biases of three dimensions do not fuse, at any batch.

    A product [M, N] of two dimensions becomes [1, M, N] with such a bias; a Reshape puts it back, unless all that
    reads it are Reshapes to constant shapes anyway. Values do not change.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        changed = 0
        for node in list(model.graph):
            if is_integer_product(node):
                changed += _guard(model.graph, node)
        return ir.passes.PassResult(model, modified=bool(changed))


def is_integer_product(node: ir.Node) -> bool:
    """Return whether a node is a MatMul whose two operands are dequantized integers."""
    return node.op_type == "MatMul" and node.domain == "" and all(_dequantized(value) for value in node.inputs)


def _dequantized(value: ir.Value | None) -> bool:
    producer = value.producer() if value is not None else None
    return producer is not None and producer.op_type == "DequantizeLinear"


def _guard(graph: ir.Graph, product: ir.Node) -> bool:
    """Reshape what is added to a product, where ONNX Runtime would fuse it; return whether it would."""
    output = product.outputs[0]
    readers = output.consumers()
    if len(output.uses()) != 1 or output.is_graph_output() or readers[0].op_type != "Add" or readers[0].domain:
        return False
    addition = readers[0]
    index = 1 if addition.inputs[0] is output else 0
    bias = addition.inputs[index]
    if bias is None or output.shape is None:
        return False
    flat = len(output.shape) < _RANK
    if is_constant(bias):
        array = array_of(bias)
        if array is None or array.ndim >= _RANK or (array.ndim == 2 and not flat and array.shape[0] != 1):
            return False
        wide = array.reshape((1,) * (_RANK - array.ndim) + array.shape)
        addition.replace_input_with(index, _widened(graph, bias, wide))
    elif flat and bias.shape is not None and len(bias.shape) < _RANK:
        _insert_reshape(graph, addition, index, [1, -1, _last(output, bias)])
    else:
        return False  # a sum with a tensor of three dimensions is no Gemm
    if flat:
        _flatten(graph, addition, _last(output, bias))
    return True


def _last(output: ir.Value, bias: ir.Value) -> int:
    for value in (output, bias):
        size = value.shape[-1] if value.shape is not None and len(value.shape) else None
        if isinstance(size, int):
            return size
    return -1


def _widened(graph: ir.Graph, bias: ir.Value, array: NDArray[Any]) -> ir.Value:
    """Return the bias in its new shape: under its own name where nothing else reads it."""
    alone = len(bias.uses()) == 1 and bias.is_initializer()
    name = str(bias.name)
    if alone:
        del graph.initializers[name]
    else:
        name = f"{name}.wide"
        while name in graph.initializers:
            if np.array_equal(array_of(graph.initializers[name]), array):  # type: ignore[arg-type]
                return graph.initializers[name]
            name += "_"
    return new_initializer(graph, name, array)


def _insert_reshape(graph: ir.Graph, node: ir.Node, index: int, target: list[int]) -> None:
    source = node.inputs[index]
    assert source is not None
    shape = new_initializer(graph, _free(graph, f"{source.name}.wide_shape"), np.array(target, np.int64))
    reshape = ir.node("Reshape", [source, shape], name=f"{node.name}/wide")
    reshape.outputs[0].name, reshape.outputs[0].type = f"{source.name}_wide", source.type
    reshape.outputs[0].shape = None if source.shape is None else ir.Shape([1, *source.shape])
    reshape.metadata_props.update(node.metadata_props)
    graph.insert_before(node, reshape)
    node.replace_input_with(index, reshape.outputs[0])


def _flatten(graph: ir.Graph, addition: ir.Node, width: int) -> None:
    """Put a sum that became [1, M, N] back to [M, N], where a reader minds."""
    total = addition.outputs[0]
    before = total.shape
    if not total.is_graph_output() and all(_ignores_rank(node, index) for node, index in total.uses()):
        total.shape = None if before is None else ir.Shape([1, *before])
        return
    shape = new_initializer(graph, _free(graph, f"{total.name}.flat_shape"), np.array([-1, width], np.int64))
    inner = ir.node("Add", addition.inputs, name=addition.name)
    inner.metadata_props.update(addition.metadata_props)
    inner.outputs[0].name, inner.outputs[0].type = f"{total.name}_wide", total.type
    inner.outputs[0].shape = None if before is None else ir.Shape([1, *before])
    back = ir.node("Reshape", [inner.outputs[0], shape], name=f"{addition.name}/flat")
    back.metadata_props.update(addition.metadata_props)
    ir.convenience.replace_nodes_and_values(graph, addition, [addition], [inner, back], [total], [back.outputs[0]])


def _ignores_rank(node: ir.Node, index: int) -> bool:
    target = array_of(node.inputs[1]) if node.op_type == "Reshape" and index == 0 and not node.domain else None
    return target is not None and bool(np.all(target != 0))


def _free(graph: ir.Graph, name: str) -> str:
    while name in graph.initializers:
        name += "_"
    return name
