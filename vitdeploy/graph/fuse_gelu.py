"""Put a GELU that was exported in pieces together again."""

from __future__ import annotations

import math

import onnx_ir as ir

from vitdeploy.graph.values import scalar_of

SQRT2 = math.sqrt(2.0)


class FuseGelu(ir.passes.InPlacePass):
    """Replace ``0.5 x (1 + erf(x / √2))`` by Gelu, in whichever order its three factors are multiplied.

    Exporters below opset 20 write it in five nodes.

    Refused: other numbers than these, an intermediate result that something else reads, an opset below 20.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        fused = 0
        if model.opset_imports.get("", 0) >= 20:
            for node in [node for node in model.graph if node.op_type == "Erf" and node.domain == ""]:
                found = _match(node)
                if found is not None:
                    _replace(model.graph, *found)
                    fused += 1
        return ir.passes.PassResult(model, modified=bool(fused))


def _match(erf: ir.Node) -> tuple[ir.Value, list[ir.Node]] | None:
    """Return x and the nodes of the expression, last first."""
    inner = erf.inputs[0].producer() if erf.inputs[0] is not None else None
    x = _halved_variance(inner) if inner is not None else None
    one = _sole_reader(erf.outputs[0], "Add")
    if inner is None or x is None or one is None or not _has(one, 1.0) or len(inner.outputs[0].uses()) != 1:
        return None
    nodes, seen_x, seen_half = [one, erf, inner], False, False
    last = one
    while not (seen_x and seen_half):
        product = _sole_reader(last.outputs[0], "Mul")
        if product is None:
            return None
        other = product.inputs[1] if product.inputs[0] is last.outputs[0] else product.inputs[0]
        half_x = other.producer() if other is not None else None
        if other is x and not seen_x:
            seen_x = True
        elif _close(scalar_of(other), 0.5) and not seen_half:
            seen_half = True
        elif half_x is not None and not (seen_x or seen_half) and _is_half_of(half_x, x):
            seen_x = seen_half = True
            nodes.append(half_x)
        else:
            return None
        nodes.insert(0, product)
        last = product
    return x, nodes


def _halved_variance(node: ir.Node) -> ir.Value | None:
    """Return x of ``x / √2`` or ``x · (1 / √2)``."""
    if node.op_type == "Div" and _close(scalar_of(node.inputs[1]), SQRT2):
        return node.inputs[0]
    if node.op_type == "Mul":
        for position in (0, 1):
            if _close(scalar_of(node.inputs[position]), 1.0 / SQRT2):
                return node.inputs[1 - position]
    return None


def _is_half_of(node: ir.Node, x: ir.Value) -> bool:
    return node.op_type == "Mul" and x in node.inputs and _has(node, 0.5) and len(node.outputs[0].uses()) == 1


def _has(node: ir.Node, number: float) -> bool:
    return any(_close(scalar_of(value), number) for value in node.inputs)


def _close(value: float | None, number: float) -> bool:
    return value is not None and math.isclose(value, number, rel_tol=1e-6)


def _sole_reader(value: ir.Value, op_type: str) -> ir.Node | None:
    readers = value.consumers()
    if value.is_graph_output() or len(value.uses()) != 1 or readers[0].op_type != op_type:
        return None
    return readers[0]


def _replace(graph: ir.Graph, x: ir.Value, nodes: list[ir.Node]) -> None:
    last = nodes[0]
    gelu = ir.node("Gelu", [x], name=f"{last.name}/Gelu")
    gelu.metadata_props.update(last.metadata_props)
    gelu.outputs[0].type, gelu.outputs[0].shape = last.outputs[0].type, last.outputs[0].shape
    ir.convenience.replace_nodes_and_values(graph, last, nodes, [gelu], [last.outputs[0]], [gelu.outputs[0]])
