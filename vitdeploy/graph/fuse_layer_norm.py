"""Put a LayerNorm that was exported in pieces together again."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from vitdeploy.graph.values import array_of, is_constant, scalar_of


class FuseLayerNorm(ir.passes.InPlacePass):
    """Replace ``γ (x - mean) / √(mean((x - mean)²) + ε) + β`` over the last axis by LayerNormalization.

    Exporters below opset 17 write it in eight nodes, whose square overflows in FP16 and which TensorRT does not always
    recognise. The square may be Pow or Mul, the quotient Div or Mul by Reciprocal; β may be missing.

    Refused: another axis than the last, a γ or β that is no vector of that axis, an intermediate result that
    something else reads, an opset below 17.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        fused = 0
        if model.opset_imports.get("", 0) >= 17:
            for node in list(model.graph):
                found = _match(node) if node.op_type in ("Div", "Mul") and node.graph is not None else None
                if found is not None:
                    _replace(model.graph, found)
                    fused += 1
        return ir.passes.PassResult(model, modified=bool(fused))


@dataclass(frozen=True)
class _Parts:
    """The operands of one LayerNorm, and the nodes that it was written in, last first."""

    x: ir.Value
    gamma: ir.Value
    beta: ir.Value | None
    epsilon: float
    nodes: tuple[ir.Node, ...]


def _match(quotient: ir.Node) -> _Parts | None:
    """Match from the quotient outwards."""
    normalised = _numerator_and_root(quotient)
    if normalised is None:
        return None
    deviation, root, divided = normalised
    total = _producer(root.inputs[0], "Add")
    subtraction = _producer(deviation, "Sub")
    if total is None or subtraction is None or subtraction.inputs[0] is None:
        return None
    variance_value, epsilon = _with_scalar(total)
    variance = _producer(variance_value, "ReduceMean")
    x = subtraction.inputs[0]
    mean = _producer(subtraction.inputs[1], "ReduceMean")
    if epsilon is None or variance is None or mean is None or mean.inputs[0] is not x:
        return None
    square = _square_of(variance.inputs[0], deviation)
    if square is None or not (_over_last_axis(mean) and _over_last_axis(variance)):
        return None
    inner = (*divided, root, total, variance, square, subtraction, mean)
    scaled = _sole_reader(quotient.outputs[0], "Mul")
    gamma = _vector(scaled, quotient.outputs[0]) if scaled is not None else None
    if scaled is None or gamma is None or not _closed(inner, subtraction, quotient):
        return None
    shifted = _sole_reader(scaled.outputs[0], "Add")
    beta = _vector(shifted, scaled.outputs[0]) if shifted is not None else None
    last = (shifted, scaled) if shifted is not None and beta is not None else (scaled,)
    return _Parts(x, gamma, beta, epsilon, (*last, quotient, *inner))


def _numerator_and_root(node: ir.Node) -> tuple[ir.Value, ir.Node, tuple[ir.Node, ...]] | None:
    """Return deviation, Sqrt node and the Reciprocal between, of ``d / √v`` or ``d · (1 / √v)``."""
    if node.op_type == "Div":
        root = _producer(node.inputs[1], "Sqrt")
        return (node.inputs[0], root, ()) if root is not None and node.inputs[0] is not None else None
    for position in (0, 1):
        inverse = _producer(node.inputs[position], "Reciprocal")
        root = _producer(inverse.inputs[0], "Sqrt") if inverse is not None else None
        deviation = node.inputs[1 - position]
        if inverse is not None and root is not None and deviation is not None:
            return deviation, root, (inverse,)
    return None


def _square_of(value: ir.Value | None, deviation: ir.Value) -> ir.Node | None:
    node = value.producer() if value is not None else None
    if node is None or node.inputs[0] is not deviation:
        return None
    squared = node.op_type == "Pow" and scalar_of(node.inputs[1]) == 2.0
    return node if squared or (node.op_type == "Mul" and node.inputs[1] is deviation) else None


def _over_last_axis(node: ir.Node) -> bool:
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        axes = array_of(node.inputs[1])
        listed = None if axes is None else [int(axis) for axis in axes.reshape(-1)]
    else:
        listed = list(node.attributes["axes"].as_ints()) if "axes" in node.attributes else None
    x = node.inputs[0]
    rank = len(x.shape) if x is not None and x.shape is not None else None
    keeps = "keepdims" not in node.attributes or node.attributes["keepdims"].as_int() == 1
    return keeps and listed is not None and (listed == [-1] or (rank is not None and listed == [rank - 1]))


def _vector(node: ir.Node, other: ir.Value) -> ir.Value | None:
    """Return the constant 1-D operand beside ``other``."""
    for value in node.inputs:
        if value is not None and value is not other and is_constant(value) and value.shape is not None:
            return value if len(value.shape) == 1 else None
    return None


def _closed(inner: tuple[ir.Node, ...], subtraction: ir.Node, quotient: ir.Node) -> bool:
    """Return whether nothing outside reads an intermediate result."""
    members = {*inner, quotient}
    return all(
        not value.is_graph_output() and set(value.consumers()) <= members for node in inner for value in node.outputs
    )


def _with_scalar(node: ir.Node) -> tuple[ir.Value | None, float | None]:
    for position in (0, 1):
        number = scalar_of(node.inputs[position])
        if number is not None:
            return node.inputs[1 - position], number
    return None, None


def _producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op_type and node.domain == "" else None


def _sole_reader(value: ir.Value, op_type: str) -> ir.Node | None:
    readers = value.consumers()
    if value.is_graph_output() or len(readers) != 1 or readers[0].op_type != op_type:
        return None
    return readers[0]


def _replace(graph: ir.Graph, parts: _Parts) -> None:
    last = parts.nodes[0]
    inputs = [parts.x, parts.gamma, *([parts.beta] if parts.beta is not None else [])]
    attributes = {"axis": -1, "epsilon": parts.epsilon, "stash_type": 1}
    node = ir.node("LayerNormalization", inputs, attributes, name=f"{last.name}/LayerNormalization")
    node.metadata_props.update(last.metadata_props)
    node.outputs[0].type, node.outputs[0].shape = last.outputs[0].type, last.outputs[0].shape
    ir.convenience.replace_nodes_and_values(
        graph, last, list(parts.nodes), [node], [last.outputs[0]], [node.outputs[0]]
    )
