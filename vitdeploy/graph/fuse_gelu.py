"""Put a GELU that was exported in pieces together again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy.graph.values import scalar_of

Array = NDArray[np.float64]
_POINTS = np.linspace(-6.0, 6.0, 97)
_CLOSE = 1e-6
_MOST_NODES = 12


def _erf(x: Array) -> Array:
    return np.vectorize(math.erf, otypes=[np.float64])(x)


_ARITHMETIC: dict[str, Callable[..., Array]] = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide, "Pow": np.power, "Neg": np.negative,
    "Erf": _erf, "Tanh": np.tanh,
}  # fmt: skip
_GELUS = {
    "Erf": ("none", 0.5 * _POINTS * (1 + _erf(_POINTS / math.sqrt(2)))),
    "Tanh": ("tanh", 0.5 * _POINTS * (1 + np.tanh(math.sqrt(2 / math.pi) * (_POINTS + 0.044715 * _POINTS**3)))),
}
"""The function with its node, as ``approximate`` of Gelu, and its values at the points."""


class FuseGelu(ir.passes.InPlacePass):
    """Replace ``0.5 x (1 + erf(x / √2))``, or its form with tanh, by Gelu, in whichever way it is written.

    Exporters below opset 20 write the first in five nodes and the other (Hendrycks and Gimpel 2016, arXiv:1606.08415,
    section 2) in eight: the cube as Pow or products, factors in any order. So the arithmetic between a value and one
    that depends on nothing else is computed at points from −6 to 6, and is a GELU where it gives the values of one.

    Refused: other numbers than these, an intermediate result that something else reads, an opset below 20.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        fused = 0
        if model.opset_imports.get("", 0) >= 20:
            for node in [node for node in model.graph if node.op_type in _GELUS and node.domain == ""]:
                found = _match(node)
                if found is not None:
                    _replace(model.graph, *found, approximate=_GELUS[node.op_type][0])
                    fused += 1
        return ir.passes.PassResult(model, modified=bool(fused))


def _match(core: ir.Node) -> tuple[ir.Value, list[ir.Node]] | None:
    """Return x and the nodes of the expression around an Erf or Tanh, last first."""
    expected = _GELUS[core.op_type][1]
    for last in _following(core):
        for x in _before(core):
            nodes = _between(x, last)
            if nodes is not None and core in nodes and _closed(nodes, last):
                found = _value(last.outputs[0], x, {})
                if found is not None and np.allclose(found, expected, rtol=0, atol=_CLOSE):
                    return x, nodes
    return None


def _following(node: ir.Node) -> Iterator[ir.Node]:
    """Yield the arithmetic behind a node as far as it has one reader each."""
    for _ in range(_MOST_NODES):
        readers = set(node.outputs[0].consumers())
        if len(readers) != 1 or node.outputs[0].is_graph_output():
            return
        (node,) = readers
        if node.op_type not in _ARITHMETIC or node.domain:
            return
        yield node


def _before(core: ir.Node) -> Iterator[ir.Value]:
    """Yield what the argument of a node may be computed from, the nearest first."""
    pending, seen = [core.inputs[0]], set[ir.Value]()
    while pending and len(seen) < _MOST_NODES:
        value = pending.pop(0)
        if value is None or value in seen or scalar_of(value) is not None:
            continue
        seen.add(value)
        yield value
        producer = value.producer()
        if producer is not None and producer.op_type in _ARITHMETIC and not producer.domain:
            pending.extend(producer.inputs)


def _between(x: ir.Value, last: ir.Node) -> list[ir.Node] | None:
    """Return the nodes from x to ``last``, last first; None where they read something else or are too many."""
    found: dict[ir.Node, None] = {}
    pending = [last]
    while pending:
        node = pending.pop(0)
        found[node] = None
        if len(found) > _MOST_NODES:
            return None
        for value in node.inputs:
            if value is x or scalar_of(value) is not None:
                continue
            producer = value.producer() if value is not None else None
            if producer is None or producer.op_type not in _ARITHMETIC or producer.domain:
                return None
            if producer not in found:
                pending.append(producer)
    graph = last.graph
    assert graph is not None
    order = {node: index for index, node in enumerate(graph) if node in found}
    return sorted(found, key=order.__getitem__, reverse=True)


def _closed(nodes: list[ir.Node], last: ir.Node) -> bool:
    """Return whether nothing outside reads an intermediate result."""
    members = set(nodes)
    return all(
        set(node.outputs[0].consumers()) <= members and not node.outputs[0].is_graph_output()
        for node in nodes
        if node is not last
    )


def _value(value: ir.Value | None, x: ir.Value, known: dict[ir.Value, Array | None]) -> Array | None:
    """Return what the expression gives where x takes the points; None where it is no expression of x."""
    if value is x:
        return _POINTS
    number = scalar_of(value)
    if number is not None:
        return np.full_like(_POINTS, number)
    producer = value.producer() if value is not None else None
    if value is None or producer is None:
        return None
    if value not in known:
        operands = [_value(one, x, known) for one in producer.inputs]
        with np.errstate(all="ignore"):
            known[value] = None if any(one is None for one in operands) else _ARITHMETIC[producer.op_type](*operands)
    return known[value]


def _replace(graph: ir.Graph, x: ir.Value, nodes: list[ir.Node], *, approximate: str) -> None:
    last = nodes[0]
    attributes = {} if approximate == "none" else {"approximate": approximate}
    gelu = ir.node("Gelu", [x], attributes, name=f"{last.name}/Gelu")
    gelu.metadata_props.update(last.metadata_props)
    gelu.outputs[0].type, gelu.outputs[0].shape = last.outputs[0].type, last.outputs[0].shape
    ir.convenience.replace_nodes_and_values(graph, last, nodes, [gelu], [last.outputs[0]], [gelu.outputs[0]])
