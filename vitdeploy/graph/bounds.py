"""Bounds on what a graph of others may take before anything runs it: turns of loops, sizes that are stated, memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import onnx_ir as ir

from vitdeploy.errors import GraphError
from vitdeploy.graph.quiet import quiet
from vitdeploy.graph.small_integers import SmallValues, static_shape
from vitdeploy.text import size_text

MAX_TURNS = 100_000
MAX_VALUES = 1 << 31
SIZES = {"ConstantOfShape": 0, "Expand": 1, "Reshape": 1}
"""Operator → its input with the sizes of what it makes."""


def refuse_unbounded(model: ir.Model, where: str) -> None:
    """Refuse loops that may not end in any useful time, and tensors stated larger than any image model's.

    Subgraphs and functions count too; turns of loops within loops are multiplied. Sizes are followed from constants
    through what graphs compute of them. Nothing is run, no tensor is made.

    Args:
        model: A graph that another tool wrote.
        where: What the message calls it.
    Raises:
        GraphError: A Loop has no constant number of turns, or it has more than 100,000 together with those around it;
            or a node makes more than 2³¹ values.
    """
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        _Walk(where).graph(graph, turns=1)


def refuse_large(model: ir.Model, where: str, *, batch: int, memory: int | None) -> None:
    """Refuse a graph whose values alone do not fit into memory, estimated from its static shapes.

    The estimate counts, at each node, the values that are made and still read later; what has no static size counts as
    one. It is a lower bound: runtimes need more.

    Args:
        model: The graph, with its image input at a fixed size.
        where: What the message calls it.
        batch: How many images will run at once.
        memory: Bytes of the machine; None for unknown.
    Raises:
        GraphError: The peak is larger than the memory, or one value larger than 2³¹ elements.
    """
    from onnx_ir.passes import common

    try:
        model.graph.sort()  # others' files need not be in order, and a copy can only be made of one that is
        copy = model.clone()
        with quiet():
            common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(copy)
    except Exception:  # onnx raises what its C++ raises; a graph that it cannot infer is judged by ONNX Runtime
        return
    peak, node, count = _peak(copy.graph, batch)
    name = "" if node is None else f" at node {node.name or node.op_type!r} ({node.op_type})"
    if count > MAX_VALUES:
        raise GraphError(f"{where} is not adopted:{name} a value has {count:.3g} elements, expected at most 2³¹")
    if memory is not None and peak > memory:
        raise GraphError(
            f"{where} is not adopted: it needs at least {size_text(peak)} for {batch} images{name}, and this machine "
            f"has {size_text(memory)}"
        )


def _peak(graph: ir.Graph, batch: int) -> tuple[int, ir.Node | None, int]:
    """Return the most bytes that are held at once, the node where, and the elements of the largest value."""
    nodes = list(graph)
    last = {value: index for index, node in enumerate(nodes) for value in node.inputs if value is not None}
    held = peak = largest = 0
    at: ir.Node | None = None
    sizes: dict[ir.Value, int] = {}
    for index, node in enumerate(nodes):
        for value in node.outputs:
            elements = math.prod(static_shape(value, batch) or [0])
            width = 4 if value.dtype is None else math.ceil(value.dtype.bitwidth / 8)
            sizes[value] = elements * width
            held += sizes[value]
            if elements > largest:
                largest = elements
                at = node if largest > MAX_VALUES else at
        if held > peak:
            peak, at = held, at if largest > MAX_VALUES else node
        for value in {value for value in (*node.inputs, *node.outputs) if value is not None}:
            if value in sizes and last.get(value, index) <= index and not value.is_graph_output():
                held -= sizes.pop(value)
    return peak, at, largest


class _Walk:
    """Goes over graphs in order, with the turns of the loops around each node."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.values = SmallValues()

    def graph(self, graph: ir.Graph, *, turns: int) -> None:
        """Refuse what a graph or a subgraph has; protobuf itself bounds how deep these are nested."""
        for node in graph:
            inner = turns
            if not node.domain:
                self.values.visit(node)
                inner = turns * self.turns(node, turns)
                if (rule := _RULES.get(node.op_type)) is not None:
                    self.refuse_more(node, rule(self.values, node))
            for subgraph in _subgraphs(node):
                self.graph(subgraph, turns=inner)

    def turns(self, node: ir.Node, around: int) -> int:
        """Return how often a Loop turns, 1 for any other node."""
        if node.op_type != "Loop":
            return 1
        found = self.values.of(node.inputs[0]) if node.inputs else None
        if found is None or found.size != 1:
            self.refuse(
                node, "loops a number of times that the graph does not state, so it may never end: export without loops"
            )
            return 1
        count = max(0, int(found.reshape(-1)[0]))
        if count * around > MAX_TURNS:
            within = f" within {around} turns of the loops around it" if around > 1 else ""
            self.refuse(node, f"loops {count} times{within}, expected at most {MAX_TURNS}: export without loops")
        return max(1, count)

    def refuse_more(self, node: ir.Node, count: float | None) -> None:
        if count is not None and not count <= MAX_VALUES:
            self.refuse(node, f"makes at least {count:.3g} values, expected at most 2³¹")

    def refuse(self, node: ir.Node, reason: str) -> None:
        raise GraphError(f"{self.where} is not adopted: node {node.name or node.op_type!r} ({node.op_type}) {reason}")


def _subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def _input(values: SmallValues, node: ir.Node, index: int) -> list[float] | None:
    found = values.of(node.inputs[index]) if len(node.inputs) > index else None
    return None if found is None or not found.size else [float(entry) for entry in found.reshape(-1)]


def _shape(node: ir.Node, index: int = 0) -> list[int] | None:
    value = node.inputs[index] if len(node.inputs) > index else None
    return None if value is None else static_shape(value)


def _product(sizes: list[float] | list[int]) -> float:
    return math.prod(max(1.0, float(size)) for size in sizes)


def _stated(index: int) -> Callable[[SmallValues, ir.Node], float | None]:
    def rule(values: SmallValues, node: ir.Node) -> float | None:
        sizes = _input(values, node, index)
        return None if sizes is None else _product(sizes)

    return rule


def _scaled(scales: list[float] | None, shape: list[int] | None) -> float | None:
    if scales is None:
        return None
    shape = shape if shape is not None and len(shape) == len(scales) else [1] * len(scales)
    return _product([size * scale for size, scale in zip(shape, scales, strict=True)])


def _resized(values: SmallValues, node: ir.Node) -> float | None:
    sizes = _input(values, node, 3)
    return _product(sizes) if sizes is not None else _scaled(_input(values, node, 2), _shape(node))


def _upsampled(values: SmallValues, node: ir.Node) -> float | None:
    scales = node.attributes.get("scales")
    return _scaled(list(scales.as_floats()) if scales is not None else _input(values, node, 1), _shape(node))


def _padded(values: SmallValues, node: ir.Node) -> float | None:
    attribute = node.attributes.get("pads")
    pads = [float(pad) for pad in attribute.as_ints()] if attribute is not None else _input(values, node, 1)
    if pads is None or len(pads) % 2:
        return None
    added = [before + after for before, after in zip(pads[: len(pads) // 2], pads[len(pads) // 2 :], strict=True)]
    shape = _shape(node)
    if shape is None or len(shape) != len(added):
        shape = [1] * len(added)
    return _product([size + more for size, more in zip(shape, added, strict=True)])


def _one_hot(values: SmallValues, node: ir.Node) -> float | None:
    depth = _input(values, node, 1)
    return None if depth is None else _product(depth) * _product(_shape(node) or [1])


def _ranged(values: SmallValues, node: ir.Node) -> float | None:
    limits = [_input(values, node, index) for index in range(3)]
    if any(limit is None or len(limit) != 1 for limit in limits):
        return None
    start, end, step = (limit[0] for limit in limits if limit is not None)
    if not all(map(math.isfinite, (start, end, step))):
        return math.inf
    return math.inf if step == 0 else max(0.0, (end - start) / step)


def _attribute_shape(_values: SmallValues, node: ir.Node) -> float | None:
    attribute = node.attributes.get("shape")
    return None if attribute is None else _product(list(attribute.as_ints()))


def _sparse(_values: SmallValues, node: ir.Node) -> float | None:
    return math.inf if "sparse_value" in node.attributes else None


_RULES: dict[str, Callable[[SmallValues, ir.Node], float | None]] = {
    **{operator: _stated(index) for operator, index in SIZES.items()},
    "Tile": lambda values, node: _scaled(_input(values, node, 1), _shape(node)),
    "Resize": _resized,
    "Upsample": _upsampled,
    "Pad": _padded,
    "OneHot": _one_hot,
    "Range": _ranged,
    "RandomNormal": _attribute_shape,
    "RandomUniform": _attribute_shape,
    "Constant": _sparse,
}
