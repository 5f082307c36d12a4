"""Write the fused floating-point operators of ONNX Runtime as operators of the ONNX standard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from vitdeploy.graph.insert_qdq import new_initializer
from vitdeploy.graph.quiet import quiet

DOMAIN = "com.microsoft"


class LowerFusedOperators(ir.passes.InPlacePass):
    """Replace what ``onnxruntime.transformers`` and ONNX Runtime's own optimizer fuse, one for one and exactly.

    Taken: Gelu, FastGelu, QuickGelu, BiasGelu, FusedMatMul, SkipLayerNormalization, LayerNormalization (which it also
    writes into graphs of older opsets), and Attention and MultiHeadAttention without masks, past or rotary positions.

    Refused: every other operator of the domain, and these with an input or an attribute that is not named above. They
    stay, and no other runtime has them.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        total = 0
        while lowered := _lower(model):  # shapes behind what was lowered are known only then
            total += lowered
        return ir.passes.PassResult(model, modified=bool(total))


def _lower(model: ir.Model) -> int:
    """Lower what can be, and return how many nodes that were."""
    fused = [node for node in model.graph if node.domain == DOMAIN and node.op_type in _RULES]
    if not fused:
        return 0
    with quiet():
        common.ShapeInferencePass(check_type=False, strict_mode=False)(model)
    lowered = 0
    for node in fused:
        written = _Writer(model.graph, node)
        result = _RULES[node.op_type](written, node)
        if result is not None:
            written.replace(result)
            lowered += 1
    return lowered


class _Writer:
    """Collects the nodes that take the place of one."""

    def __init__(self, graph: ir.Graph, node: ir.Node) -> None:
        self.graph, self.node, self.nodes = graph, node, list[ir.Node]()
        self.stem = node.name or node.outputs[0].name

    def op(self, op_type: str, inputs: Sequence[ir.Value | None], **attributes: Any) -> ir.Value:
        node = ir.node(op_type, inputs, attributes, name=f"{self.stem}/{op_type}_{len(self.nodes)}")
        node.metadata_props.update(self.node.metadata_props)
        first = next(value for value in inputs if value is not None)
        node.outputs[0].name = f"{node.name}_out"
        node.outputs[0].type = first.type
        self.nodes.append(node)
        return node.outputs[0]

    def split(self, value: ir.Value, parts: int) -> list[ir.Value]:
        node = ir.node("Split", [value], {"axis": -1, "num_outputs": parts}, num_outputs=parts)
        node.name = f"{self.stem}/Split_{len(self.nodes)}"
        for index, output in enumerate(node.outputs):
            output.name, output.type = f"{node.name}_out{index}", value.type
        self.nodes.append(node)
        return list(node.outputs)

    def constant(self, array: Any, like: ir.Value | None = None) -> ir.Value:
        if like is not None:
            array = np.asarray(array).astype((like.dtype or ir.DataType.FLOAT).numpy())
        name = f"{self.stem}.constant"
        while name in self.graph.initializers:
            name += "_"
        return new_initializer(self.graph, name, np.asarray(array))

    def replace(self, results: Sequence[ir.Value | None]) -> None:
        kept = [(old, new) for old, new in zip(self.node.outputs, results, strict=False) if new is not None]
        for old, new in kept:
            new.type, new.shape = old.type, old.shape
        ir.convenience.replace_nodes_and_values(
            self.graph, self.node, [self.node], self.nodes, [old for old, _ in kept], [new for _, new in kept]
        )


Results = Sequence["ir.Value | None"]


def _gelu(w: _Writer, node: ir.Node) -> Results | None:
    return [w.op("Gelu", [_input(node, 0)])]


def _bias_gelu(w: _Writer, node: ir.Node) -> Results | None:
    return [w.op("Gelu", [w.op("Add", [_input(node, 0), _input(node, 1)])])]


def _fast_gelu(w: _Writer, node: ir.Node) -> Results | None:
    x, bias = _input(node, 0), _input(node, 1)
    return [w.op("Gelu", [x if bias is None else w.op("Add", [x, bias])], approximate="tanh")]


def _quick_gelu(w: _Writer, node: ir.Node) -> Results | None:
    x = _input(node, 0)
    assert x is not None
    alpha = w.constant(_float(node, "alpha", 1.702), x)
    return [w.op("Mul", [x, w.op("Sigmoid", [w.op("Mul", [x, alpha])])])]


def _fused_matmul(w: _Writer, node: ir.Node) -> Results | None:
    if _integer(node, "transBatchA") or _integer(node, "transBatchB"):
        return None
    factors: list[ir.Value] = []
    for index, name in enumerate(("transA", "transB")):
        value = _input(node, index)
        assert value is not None
        if _integer(node, name):
            if value.shape is None or len(value.shape) < 2:
                return None
            rank = len(value.shape)
            value = w.op("Transpose", [value], perm=[*range(rank - 2), rank - 1, rank - 2])
        factors.append(value)
    product, alpha = w.op("MatMul", factors), _float(node, "alpha", 1.0)
    return [product if alpha == 1.0 else w.op("Mul", [product, w.constant(alpha, product)])]


def _skip_layer_norm(w: _Writer, node: ir.Node) -> Results | None:
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:3]):
        return None
    total = w.op("Add", [_input(node, 0), _input(node, 1)])
    if (bias := _input(node, 4)) is not None:
        total = w.op("Add", [total, bias])
    inputs = [total, _input(node, 2), *([beta] if (beta := _input(node, 3)) is not None else [])]
    normed = w.op("LayerNormalization", inputs, axis=-1, epsilon=_float(node, "epsilon", 1e-12))
    return [normed, None, None, total]


def _layer_norm(w: _Writer, node: ir.Node) -> Results | None:
    if any(output.uses() for output in node.outputs[1:]):
        return None
    axis, epsilon = _integer(node, "axis", -1), _float(node, "epsilon", 1e-5)
    return [w.op("LayerNormalization", list(node.inputs), axis=axis, epsilon=epsilon)]


def _attention(w: _Writer, node: ir.Node) -> Results | None:
    """Attention(x, W, b): q, k and v by one product."""
    x, weight, bias = (_input(node, index) for index in range(3))
    plain = not any(_input(node, index) is not None for index in range(3, len(node.inputs)))
    sizes = node.attributes.get("qkv_hidden_sizes")
    if not plain or x is None or len(set(sizes.as_ints() if sizes is not None else ())) > 1 or not _is_plain(node):
        return None
    packed = w.op("MatMul", [x, weight])
    query, key, held = w.split(packed if bias is None else w.op("Add", [packed, bias]), 3)
    width = None if weight is None or weight.shape is None else weight.shape[-1]
    return _heads(w, node, query, key, held, width // 3 if isinstance(width, int) else None, None)


def _multi_head_attention(w: _Writer, node: ir.Node) -> Results | None:
    """MultiHeadAttention(q, k, v, bias, _, attention_bias) with three tensors [B, S, D]."""
    query, key, held, bias = (_input(node, index) for index in range(4))
    others = [index for index in range(4, len(node.inputs)) if index != 5 and _input(node, index) is not None]
    if others or query is None or key is None or held is None or not _is_plain(node):
        return None
    sizes = [
        value.shape[-1] if value.shape is not None and len(value.shape) == 3 else None for value in (query, key, held)
    ]
    if len(set(sizes)) > 1 or not isinstance(sizes[0], int):
        return None
    if bias is not None:
        biases = w.split(bias, 3)
        query, key, held = (w.op("Add", [x, b]) for x, b in zip((query, key, held), biases, strict=True))
    return _heads(w, node, query, key, held, sizes[0], _input(node, 5))


def _heads(
    w: _Writer,
    node: ir.Node,
    query: ir.Value,
    key: ir.Value,
    held: ir.Value,
    width: int | None,
    bias: ir.Value | None,
) -> Results | None:
    heads = _integer(node, "num_heads")
    if width is None or not heads or width % heads or any(output.uses() for output in node.outputs[1:]):
        return None
    shape = w.constant(np.array([0, -1, heads, width // heads], np.int64))
    parts = [
        w.op("Transpose", [w.op("Reshape", [part, shape])], perm=perm)
        for part, perm in zip((query, key, held), ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]), strict=True)
    ]
    scale = w.constant(_float(node, "scale", 0.0) or (width // heads) ** -0.5, query)
    scores = w.op("MatMul", [w.op("Mul", [parts[0], scale]), parts[1]])
    weights = w.op("Softmax", [scores if bias is None else w.op("Add", [scores, bias])], axis=-1)
    joined = w.op("Transpose", [w.op("MatMul", [weights, parts[2]])], perm=[0, 2, 1, 3])
    return [w.op("Reshape", [joined, w.constant(np.array([0, -1, width], np.int64))])]


_RULES: dict[str, Callable[[_Writer, ir.Node], Results | None]] = {
    "Gelu": _gelu,
    "BiasGelu": _bias_gelu,
    "FastGelu": _fast_gelu,
    "QuickGelu": _quick_gelu,
    "FusedMatMul": _fused_matmul,
    "SkipLayerNormalization": _skip_layer_norm,
    "LayerNormalization": _layer_norm,
    "Attention": _attention,
    "MultiHeadAttention": _multi_head_attention,
}


def _is_plain(node: ir.Node) -> bool:
    """Return whether an attention looks at all keys alike."""
    return not (
        _integer(node, "unidirectional") or _integer(node, "do_rotary") or _integer(node, "past_present_share_buffer")
    )


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _integer(node: ir.Node, name: str, default: int = 0) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default


def _float(node: ir.Node, name: str, default: float) -> float:
    return node.attributes[name].as_float() if name in node.attributes else default
