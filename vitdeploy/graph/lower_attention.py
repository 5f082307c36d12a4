"""Attention, RMSNormalization and Swish of opsets 23 and 24, written in operators that every runtime has."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
from numpy.typing import NDArray

from vitdeploy.errors import GraphError

FLOAT = ir.DataType.FLOAT
_NEGLIGIBLE = {ir.DataType.FLOAT16: -65504.0}
_UNUSED = {"is_causal": 0, "softcap": 0.0, "qk_matmul_output_mode": 0}
"""Attributes of Attention and the values with which they do nothing in an encoder."""


class LowerAttention(ir.passes.InPlacePass):
    """Replace the three operators by MatMul, Softmax, Mul and their like, exactly.

    Attention becomes softmax(scale · q kᵀ + mask) v in the form that runtimes fuse, with q, k and v of four dimensions
    or of three. What only decoders have (caches, causal masks, soft caps, fewer heads of k and v) is refused.

    Raises:
        GraphError: A node has such a part, or heads of unknown width.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        found = [node for node in model.graph if not node.domain and node.op_type in _LOWERED]
        if not found:
            return ir.passes.PassResult(model, modified=False)
        if any(node.op_type == "Attention" for node in found):
            common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
        for node in found:
            _LOWERED[node.op_type](model.graph, node)
        return ir.passes.PassResult(model, modified=True)


class _Builder:
    """Makes nodes and constants that are named after the node which they replace."""

    def __init__(self, graph: ir.Graph, node: ir.Node) -> None:
        self.graph, self.node = graph, node
        self.name = node.name or node.outputs[0].name or node.op_type
        self.nodes: list[ir.Node] = []

    def op(self, op_type: str, *inputs: ir.Value, dtype: ir.DataType | None = None, **attributes: Any) -> ir.Value:
        name = f"{self.name}/{op_type}_{len(self.nodes)}"
        node = ir.node(op_type, inputs, attributes, name=name)
        node.outputs[0].name = f"{name}_out"
        kind = dtype or inputs[0].dtype
        node.outputs[0].type = None if kind is None else ir.TensorType(kind)
        self.nodes.append(node)
        return node.outputs[0]

    def constant(self, role: str, array: NDArray[Any]) -> ir.Value:
        name = f"{self.name}.{role}"
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
        self.graph.register_initializer(value)
        return value

    def number(self, role: str, value: float, dtype: ir.DataType) -> ir.Value:
        return self.constant(role, np.array(value, dtype.numpy()))

    def finish(self, result: ir.Value) -> None:
        output = self.node.outputs[0]
        result.type, result.shape = output.type or result.type, output.shape
        ir.convenience.replace_nodes_and_values(self.graph, self.node, [self.node], self.nodes, [output], [result])


def _attention(graph: ir.Graph, node: ir.Node) -> None:
    _refuse_decoders(node)
    make = _Builder(graph, node)
    q, k, v = (node.inputs[index] for index in range(3))
    assert q is not None
    assert k is not None
    assert v is not None
    flat = _rank(q) == 3
    if flat:
        heads = _integer(node, "q_num_heads")
        q, k, v = (_split(make, value, heads) for value in (q, k, v))
    dtype = q.dtype or FLOAT
    q = make.op("Mul", q, make.number("scale", _scale(node, flat), dtype))
    scores = make.op("MatMul", q, make.op("Transpose", k, perm=[0, 1, 3, 2]))
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    if mask is not None and mask.dtype == ir.DataType.BOOL:
        zero = make.number("open", 0.0, dtype)
        least = make.number("closed", _NEGLIGIBLE.get(dtype, float(np.finfo(np.float32).min)), dtype)
        mask = make.op("Where", mask, zero, least, dtype=dtype)
    if mask is not None:
        scores = make.op("Add", scores, mask)
    y = make.op("MatMul", make.op("Softmax", scores, axis=-1), v)
    if flat:
        joined = make.constant("joined", np.array([0, 0, -1], np.int64))
        y = make.op("Reshape", make.op("Transpose", y, perm=[0, 2, 1, 3]), joined)
    make.finish(y)


def _split(make: _Builder, value: ir.Value, heads: int) -> ir.Value:
    """Return [B, N, H·d] as [B, H, N, d]."""
    existing = make.graph.initializers.get(f"{make.name}.split")
    target = existing if existing is not None else make.constant("split", np.array([0, 0, heads, -1], np.int64))
    return make.op("Transpose", make.op("Reshape", value, target), perm=[0, 2, 1, 3])


def _refuse_decoders(node: ir.Node) -> None:
    where = f"node {node.name or node.op_type!r} (Attention of opset 23)"
    more = [value for value in node.inputs[4:] if value is not None]
    outputs = [value for value in node.outputs[1:] if value.uses() or value.is_graph_output()]
    if more or outputs:
        raise GraphError(f"{where} keeps keys and values of earlier calls, as a decoder does: no image classifier")
    for name, harmless in _UNUSED.items():
        attribute = node.attributes.get(name)
        if attribute is not None and attribute.value != harmless:
            raise GraphError(
                f"{where} has {name}={attribute.value}, which opset 20 cannot say: export it again for opset 20, where "
                "attention is written out"
            )
    heads = [node.attributes.get(name) for name in ("q_num_heads", "kv_num_heads")]
    sizes = [_size(value, 1) for value in node.inputs[:2]] if _rank(node.inputs[0]) == 4 else []
    counts = [one.as_int() for one in heads if one is not None] + [size for size in sizes if size is not None]
    if len(set(counts)) > 1:
        raise GraphError(
            f"{where} has {counts[0]} heads of queries and {counts[1]} of keys: export it again for opset 20, where "
            "attention is written out"
        )


def _scale(node: ir.Node, flat: bool) -> float:
    attribute = node.attributes.get("scale")
    if attribute is not None:
        return float(attribute.as_float())
    width = _size(node.inputs[0], 2 if flat else 3)
    if width is None:
        raise GraphError(
            f"node {node.name or node.op_type!r} (Attention of opset 23) has heads of unknown width and states no "
            "scale: export it again for opset 20, where attention is written out"
        )
    return 1.0 / math.sqrt(width // _integer(node, "q_num_heads") if flat else width)


def _rms_normalization(graph: ir.Graph, node: ir.Node) -> None:
    """Write x / √(mean(x²) + ε) · scale (Zhang and Sennrich 2019, arXiv:1910.07467) in the type of ``stash_type``."""
    make = _Builder(graph, node)
    x, scale = node.inputs[0], node.inputs[1]
    assert x is not None
    assert scale is not None
    dtype, rank = x.dtype or FLOAT, _rank(x)
    stash = ir.DataType(node.attributes["stash_type"].as_int()) if "stash_type" in node.attributes else FLOAT
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else -1
    if rank is None and axis != -1:
        raise GraphError(f"node {node.name or node.op_type!r} (RMSNormalization) normalizes a value of unknown rank")
    axes = [-1] if rank is None else list(range(axis % rank, rank))
    inner = make.op("Cast", x, to=int(stash), dtype=stash) if stash != dtype else x
    epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
    squares = make.op("Mul", inner, inner)
    mean = make.op("ReduceMean", squares, make.constant("axes", np.array(axes, np.int64)), keepdims=1)
    root = make.op("Sqrt", make.op("Add", mean, make.number("epsilon", epsilon, stash)))
    y = make.op("Div", inner, root)
    if stash != dtype:
        y = make.op("Cast", y, to=int(dtype), dtype=dtype)
    make.finish(make.op("Mul", y, scale))


def _swish(graph: ir.Graph, node: ir.Node) -> None:
    """Write x · σ(αx)."""
    make = _Builder(graph, node)
    x = node.inputs[0]
    assert x is not None
    alpha = node.attributes["alpha"].as_float() if "alpha" in node.attributes else 1.0
    inner = x if alpha == 1.0 else make.op("Mul", x, make.number("alpha", alpha, x.dtype or FLOAT))
    make.finish(make.op("Mul", x, make.op("Sigmoid", inner)))


def _integer(node: ir.Node, name: str) -> int:
    if name not in node.attributes:
        raise GraphError(f"node {node.name or node.op_type!r} (Attention of opset 23) does not state {name}")
    return node.attributes[name].as_int()


def _rank(value: ir.Value | None) -> int | None:
    return None if value is None or value.shape is None else len(value.shape)


def _size(value: ir.Value | None, axis: int) -> int | None:
    size = None if value is None or value.shape is None or len(value.shape) <= axis else value.shape[axis]
    return size if isinstance(size, int) else None


_LOWERED: dict[str, Callable[[ir.Graph, ir.Node], None]] = {
    "Attention": _attention,
    "RMSNormalization": _rms_normalization,
    "Swish": _swish,
}
