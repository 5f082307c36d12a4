"""Make convolutions of linears that only a convolution reads, so that ONNX Runtime hands on bytes between the two."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.insert_qdq import new_initializer
from vitdeploy.graph.values import array_of

_CHANNELS_FIRST = [0, 3, 1, 2]


class ConvolveLinears(ir.passes.InPlacePass):
    """Write an 8-bit linear whose output is rounded for an 8-bit convolution as a convolution of 1×1.

    Cases:
        x → MatMul (int8 w) → Add (b) → Q/DQ → Reshape [B, H, W, C] → Transpose → Conv
                     becomes x → Reshape [B, H, W, K] → Transpose → Conv 1×1 (int8 wᵀ, b) → Q/DQ → Conv. The kernel of
                     ONNX Runtime adds the bias and rounds; as a MatMul it gives floats, which an Add and a
                     QuantizeLinear read and write once more, at the widest place of a block (fc1 of PVT v2).
        other        where anything else reads one of these tensors, the weight is not int8 with a scale per output
                     channel, or the Reshape does not keep the channels, the linear stays.

    The function is the same; ONNX Runtime rounds the bias of a convolution to the step of a product, 2⁻³¹ of its range.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        found = [path for node in model.graph if (path := _path_of(node)) is not None]
        for path in found:
            _convolve(model.graph, path)
        return ir.passes.PassResult(model, modified=bool(found))


@dataclass(frozen=True)
class _Path:
    """The nodes from a linear's product to the convolution that reads it; ``addition`` is None without a bias."""

    product: ir.Node
    addition: ir.Node | None
    down: ir.Node
    up: ir.Node
    reshape: ir.Node
    transpose: ir.Node
    convolution: ir.Node


def _path_of(product: ir.Node) -> _Path | None:
    if product.op_type != "MatMul" or product.domain or not all(map(_dequantizes, product.inputs)):
        return None
    weight = _producer(product.inputs[1])
    assert weight is not None
    axis = weight.attributes["axis"].as_int() if "axis" in weight.attributes else 1
    values = array_of(weight.inputs[0])
    if values is None or values.ndim != 2 or values.dtype != np.int8 or axis not in (1, -1):
        return None
    if len(weight.outputs[0].uses()) != 1 or len(weight.inputs[0].uses()) != 1:  # type: ignore[union-attr]
        return None
    addition = _only_reader(product, "Add")
    if addition is not None and _bias(addition, product, values.shape[1]) is None:
        return None
    down = _only_reader(addition or product, "QuantizeLinear")
    up = None if down is None else _only_reader(down, "DequantizeLinear")
    reshape = None if up is None else _only_reader(up, "Reshape")
    transpose = None if reshape is None else _only_reader(reshape, "Transpose")
    convolution = None if transpose is None else _only_reader(transpose, "Conv")
    if down is None or up is None or reshape is None or transpose is None or convolution is None:
        return None
    target = array_of(reshape.inputs[1])
    order = list(transpose.attributes["perm"].as_ints()) if "perm" in transpose.attributes else []
    if target is None or target.shape != (4,) or target[-1] != values.shape[1] or order != _CHANNELS_FIRST:
        return None
    if not _dequantizes(convolution.inputs[1]) or 0 in target:
        return None
    return _Path(product, addition, down, up, reshape, transpose, convolution)


def _convolve(graph: ir.Graph, path: _Path) -> None:
    product, weight = path.product, _producer(path.product.inputs[1])
    assert weight is not None
    integers, scale, name = weight.inputs[0], array_of(weight.inputs[1]), str(product.name)
    values, target = array_of(integers), array_of(path.reshape.inputs[1])
    assert integers is not None
    assert values is not None
    assert scale is not None
    assert target is not None
    size = np.array([*target[:-1], len(values)], np.int64)
    shape = new_initializer(graph, _free(graph, f"{name}.map"), size)
    kernel = np.ascontiguousarray(values.T)[:, :, None, None]
    stored = new_initializer(graph, _free(graph, f"{integers.name}.kernel"), kernel)
    laid_out = ir.node("Reshape", [product.inputs[0], shape], name=f"{name}/Reshape")
    moved = ir.node("Transpose", [laid_out.outputs[0]], {"perm": _CHANNELS_FIRST}, name=f"{name}/Transpose")
    restored = ir.node("DequantizeLinear", [stored, *weight.inputs[1:]], {"axis": 0}, name=weight.name)
    operands = [moved.outputs[0], restored.outputs[0]]
    bias = None if path.addition is None else _bias(path.addition, product, len(values.T))
    if bias is not None:
        vector = np.ascontiguousarray(bias.reshape(-1))
        operands.append(new_initializer(graph, _free(graph, f"{name}.bias"), vector))
    convolution = ir.node("Conv", operands, {"kernel_shape": [1, 1]}, name=name)
    total = (path.addition or product).outputs[0]
    for node, what in ((laid_out, "map"), (moved, "channels_first"), (restored, "kernel")):
        node.outputs[0].name, node.outputs[0].type = f"{name}.{what}_out", ir.TensorType(ir.DataType.FLOAT)
    result = convolution.outputs[0]
    result.name, result.type, result.shape = total.name, total.type, path.transpose.outputs[0].shape
    batch = None if total.shape is None else total.shape[0]
    restored.outputs[0].shape = ir.Shape(kernel.shape)
    laid_out.outputs[0].shape = ir.Shape([batch, None, None, len(values)])
    moved.outputs[0].shape = ir.Shape([batch, len(values), None, None])
    for node in (laid_out, moved, restored, convolution):
        node.metadata_props.update(product.metadata_props)
    graph.insert_before(product, [laid_out, moved, restored, convolution])
    path.down.replace_input_with(0, result)
    for node in (path.down, path.up):
        node.outputs[0].shape = result.shape
    path.convolution.replace_input_with(0, path.up.outputs[0])
    gone = [path.transpose, path.reshape, *([] if path.addition is None else [path.addition]), product, weight]
    graph.remove(gone, safe=True)
    unread = [integers, path.reshape.inputs[1], *([] if path.addition is None else path.addition.inputs)]
    for value in unread:
        if value is not None and value.is_initializer() and not value.uses():
            graph.initializers.pop(str(value.name), None)


def _bias(addition: ir.Node, product: ir.Node, width: int) -> np.ndarray | None:
    """Return the constant that an Add has beside a product, a number for each column."""
    other = [value for value in addition.inputs if value is not product.outputs[0]]
    array = array_of(other[0]) if len(other) == 1 else None
    fits = array is not None and array.size == width and array.shape[-1] == width and array.ndim <= len(_CHANNELS_FIRST)
    return array if fits else None


def _dequantizes(value: ir.Value | None) -> bool:
    producer = _producer(value)
    return producer is not None and producer.op_type == "DequantizeLinear"


def _producer(value: ir.Value | None) -> ir.Node | None:
    return None if value is None else value.producer()


def _only_reader(node: ir.Node, operator: str) -> ir.Node | None:
    """Return the one node that reads what another gives, as its first input but for a sum, if it is of that kind."""
    uses = tuple(node.outputs[0].uses())
    if len(uses) != 1 or node.outputs[0].is_graph_output() or uses[0].node.domain:
        return None
    (use,) = uses
    return use.node if use.node.op_type == operator and (use.idx == 0 or operator == "Add") else None


def _free(graph: ir.Graph, name: str) -> str:
    while name in graph.initializers:
        name += "_"
    return name
