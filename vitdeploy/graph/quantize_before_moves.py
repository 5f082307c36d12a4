"""Round a tensor before its elements are moved, so that what is moved is 8 bits wide."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from vitdeploy.graph.linear_groups import shapes_at_batch_one
from vitdeploy.graph.values import array_of, is_constant, scalar_of

REARRANGING = frozenset(("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity"))
"""Moves that keep every element once."""
CHOOSING = frozenset(("Slice", "Gather", "Split", "Concat", "Expand", "Tile", "Pad"))
"""Moves that leave elements out, take them several times, or join tensors."""
_ALL_DATA = frozenset(("Concat",))
"""Moves whose inputs are all data; of the others it is the first."""


class QuantizeBeforeMoves(ir.passes.InPlacePass):
    """Put a Q/DQ pair in front of the moves that lead to it, which commute with it: QDQ(move(x)) = move(QDQ(x)).

    Cases:
        x → Transpose → Reshape → Q → DQ
                     becomes x → Q → DQ → Transpose → Reshape, which OpenVINO runs on bytes: the heads of an attention
                     are merged, a tensor is cut into windows, in a quarter of the memory.
        x → Slice, Slice → Concat → Q → DQ
                     (a cyclic shift) becomes x → Q → DQ → Slice, Slice → Concat; so does whatever is divided and joined
                     between one tensor and Q. Pad is moved over where it repeats elements or puts zeros, which every
                     pair keeps.
        other        a scale for each channel, a tensor on the way that something else reads, a Concat of tensors of
                     different origin, moves that leave fewer elements to round than they read, and what starts from a
                     value of ``without``, stay.

    Values do not change, not by a bit.
    """

    def __init__(self, without: frozenset[ir.Value] = frozenset()) -> None:
        super().__init__()
        self.without = without

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        names = {str(value.name) for node in model.graph for value in node.outputs} | set(model.graph.initializers)
        names |= {str(node.name) for node in model.graph}
        places = {node: index for index, node in enumerate(model.graph)}
        shapes: dict[str, tuple[int | None, ...]] = {}

        def shape_of(value: ir.Value) -> tuple[int | None, ...] | None:
            if not shapes:
                shapes.update(shapes_at_batch_one(model))
            return shapes.get(str(value.name))

        modified = False
        for node in places:
            back = _pair_of(node)
            chain = None if back is None else _chain_to(node, places, shape_of)
            if back is not None and chain is not None and chain.source not in self.without:
                _move(model.graph, chain, back, names)
                modified = True
        return ir.passes.PassResult(model, modified=modified)


def _move(graph: ir.Graph, chain: _Chain, back: ir.Node, names: set[str]) -> None:
    down, rounded, end = chain.down, back.outputs[0], chain.down.inputs[0]
    readers = [(node, index) for node, index in rounded.uses()]
    assert end is not None
    down.replace_input_with(0, chain.source)
    for node in chain.moves:
        for index, value in enumerate(node.inputs):
            if value is chain.source:
                node.replace_input_with(index, rounded)
    for node, index in readers:
        node.replace_input_with(index, end)
    for node in (down, back):
        graph.remove(node)
        _rename(node, f"{chain.source.name}/{node.op_type}", names)
        node.outputs[0].shape = chain.source.shape
    producer = chain.source.producer()
    if producer is not None:
        graph.insert_after(producer, [down, back])
    else:
        graph.insert_before(graph[0], [down, back])


@dataclass(frozen=True)
class _Chain:
    """A QuantizeLinear, the moves that lead to it, and the one tensor that they start from."""

    down: ir.Node
    moves: tuple[ir.Node, ...]
    source: ir.Value


def _pair_of(down: ir.Node) -> ir.Node | None:
    """Return the DequantizeLinear of a pair with one constant scale for the whole tensor; None for other nodes."""
    if down.op_type != "QuantizeLinear" or down.domain or len(down.inputs) != 3:
        return None
    scale, zero, stored = array_of(down.inputs[1]), array_of(down.inputs[2]), down.outputs[0]
    if scale is None or zero is None or scale.ndim or zero.ndim or len(stored.uses()) != 1 or stored.is_graph_output():
        return None
    back = stored.consumers()[0]
    same = back.op_type == "DequantizeLinear" and not back.domain and back.inputs[1:] == down.inputs[1:]
    return back if same and not back.outputs[0].is_graph_output() else None


def _chain_to(
    down: ir.Node,
    places: Mapping[ir.Node, int],
    shape_of: Callable[[ir.Value], tuple[int | None, ...] | None],
) -> _Chain | None:
    """Return the longest chain that starts from one tensor; None where nothing is moved."""
    end = down.inputs[0]
    assert end is not None
    moves: dict[ir.Node, None] = {}
    open_values = {end}
    found = None
    while True:
        producers = {value: node for value in open_values if (node := value.producer()) is not None}
        if not producers:
            return found
        latest = max(producers.values(), key=places.__getitem__)
        if not _moves(latest) or any(not _read_by(value, moves, down) for value in latest.outputs):
            return found
        moves[latest] = None
        open_values -= set(latest.outputs)
        open_values |= set(_data(latest))
        if len(open_values) == 1:
            (source,) = open_values
            if is_constant(source) or not _rounds_no_more(moves, source, end, shape_of):
                continue
            found = _Chain(down, tuple(moves), source)


def _moves(node: ir.Node) -> bool:
    if node.domain or node.op_type not in REARRANGING | CHOOSING or not node.inputs:
        return False
    data = _data(node)
    if not data or any(is_constant(value) for value in data) or len(data) != len(set(data)):
        return False
    if node.op_type != "Pad" or _pad_mode(node) != "constant":
        return True
    return len(node.inputs) < 3 or node.inputs[2] is None or scalar_of(node.inputs[2]) == 0.0


def _data(node: ir.Node) -> list[ir.Value]:
    """Return what a move moves."""
    inputs = node.inputs if node.op_type in _ALL_DATA else node.inputs[:1]
    return [value for value in inputs if value is not None]


def _read_by(value: ir.Value, moves: Mapping[ir.Node, None], down: ir.Node) -> bool:
    """Return whether nothing but these moves and Q reads a tensor."""
    return not value.is_graph_output() and all(node in moves or node is down for node in value.consumers())


def _rounds_no_more(
    moves: Mapping[ir.Node, None],
    source: ir.Value,
    end: ir.Value,
    shape_of: Callable[[ir.Value], tuple[int | None, ...] | None],
) -> bool:
    """Return whether the source has no more elements than what the moves make of it."""
    if all(node.op_type in REARRANGING for node in moves):
        return True
    before, after = shape_of(source), shape_of(end)
    if before is None or after is None or None in before or None in after:
        return False
    return math.prod(size or 0 for size in before) <= math.prod(size or 0 for size in after)


def _pad_mode(node: ir.Node) -> str:
    return node.attributes["mode"].as_string() if "mode" in node.attributes else "constant"


def _rename(node: ir.Node, name: str, names: set[str]) -> None:
    """Name a node and what it gives after the tensor that it now reads."""
    names -= {str(node.name), str(node.outputs[0].name)}
    node.name = _free(name, names)
    node.outputs[0].name = _free(f"{node.name}_out", names)


def _free(name: str, names: set[str]) -> str:
    while name in names:
        name += "_"
    names.add(name)
    return name
