"""Find the two products of each attention, q·kᵀ and p·v, by structure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from vitdeploy.graph.linear_groups import path_of, shapes_at_batch_one
from vitdeploy.graph.values import array_of, is_constant

_MOVES = frozenset(("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Split", "Slice", "Gather", "Identity"))
Use = tuple[ir.Node, int]

MOST_TOKENS = 512
HEAD_WIDTHS = (16, 32, 64)
ONE_QUERY = "attention of one query per image: a product of one row gains nothing, and a constant one is in no integers"


@dataclass(frozen=True)
class Attention:
    """softmax(q·kᵀ)·v: the MatMul ``scores``, the Softmax, and the MatMul ``context`` that it feeds.

    ``obstacle`` says why TensorRT has no fused integer kernel for it, "" where it has.
    """

    name: str
    scores: ir.Node
    softmax: ir.Node
    context: ir.Node
    obstacle: str = ""

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of both products."""
        return str(self.scores.name), str(self.context.name)

    @property
    def factors(self) -> tuple[tuple[ir.Value, Use], ...]:
        """q, kᵀ, p and v, each with where a product reads it."""
        uses = [(node, index) for node in (self.scores, self.context) for index in (0, 1)]
        found = [(node.inputs[index], (node, index)) for node, index in uses]
        return tuple((value, use) for value, use in found if value is not None)

    def computed(self) -> tuple[tuple[ir.Value, tuple[Use, ...]], ...]:
        """Return q, kᵀ and v where they are computed, before they are split, moved or scaled, and p, with their uses.

        A linear that gives all three is one value. None of these values has another reader than this attention; where
        one on the way has, the factor counts as computed behind it.
        """
        chains = [list(_moved(value)) for value, _ in self.factors if value is not self.softmax.outputs[0]]
        own = {self.scores, self.context, *(node for chain in chains for node, _ in chain)}
        found: dict[ir.Value, tuple[Use, ...]] = {}
        for value, use in self.factors:
            origin, uses = value, tuple[Use, ...]([use])
            if value is not self.softmax.outputs[0]:
                for node, source in _moved(value):
                    if any(reader not in own for output in (source, *node.outputs) for reader in output.consumers()):
                        break
                    origin, uses = source, tuple((reader, index) for reader, index in source.uses())
            found[origin] = (*found.get(origin, ()), *(one for one in uses if one not in found.get(origin, ())))
        return tuple(found.items())


def find_attentions(model: ir.Model) -> tuple[Attention, ...]:
    """Return every MatMul → Softmax → MatMul, in graph order.

    An attention has an obstacle outside the conditions under which TensorRT fuses it with INT8 (developer guide,
    "Multi-Head Attention Fusion": at most 512 keys, head width 16, 32 or 64, the scale on q or k before the first
    product), where one query per image leaves nothing to gain, and where something is added before the softmax: the
    sum's range, wide with a mask of −100, is no match for 8 bits.
    """
    shapes = shapes_at_batch_one(model)
    found: list[Attention] = []
    names: set[str] = set()
    for node in model.graph:
        if node.op_type != "Softmax" or node.domain:
            continue
        between, scores = _upstream_product(node)
        context = _reader_product(node)
        if scores is None or context is None:
            continue
        name = f"{path_of(scores) or path_of(node) or node.name}.attention"
        while name in names:
            name += "_"
        names.add(name)
        obstacle = _obstacle(between, shapes.get(_name(scores, 0)), shapes.get(_name(node, 0)))
        found.append(Attention(name, scores, node, context, obstacle))
    return tuple(found)


def _moved(value: ir.Value) -> Iterator[tuple[ir.Node, ir.Value]]:
    """Yield the nodes that move a value's elements or multiply them by one number, upwards, with what they read."""
    while (node := value.producer()) is not None and not node.domain:
        sources = [one for one in node.inputs if one is not None and not is_constant(one)]
        if len(sources) != 1 or any(output.is_graph_output() for output in node.outputs):
            return
        numbers = [array_of(one) for one in node.inputs if is_constant(one)]
        by_one_number = node.op_type == "Mul" or (node.op_type == "Div" and node.inputs[0] is sources[0])
        if not (
            (node.op_type in _MOVES and node.inputs[0] is sources[0])
            or (by_one_number and all(array is not None and array.size == 1 for array in numbers))
        ):
            return
        yield node, sources[0]
        value = sources[0]


def _upstream_product(softmax: ir.Node) -> tuple[list[ir.Node], ir.Node | None]:
    """Return what lies between q·kᵀ and the softmax, and the product itself (None if there is none)."""
    between: list[ir.Node] = []
    pending = [softmax.inputs[0]]
    while pending:
        value = pending.pop()
        node = value.producer() if value is not None else None
        if node is None or node.domain:
            continue
        if node.op_type == "MatMul" and not any(is_constant(value) for value in node.inputs):
            return between, node
        if node.op_type in ("Add", "Mul", "Div", "Reshape", "Cast", "Where", "Identity"):
            between.append(node)
            pending.extend(node.inputs)
    return between, None


def _reader_product(softmax: ir.Node) -> ir.Node | None:
    readers = softmax.outputs[0].consumers()
    if len(readers) != 1 or readers[0].op_type != "MatMul" or readers[0].inputs[0] is not softmax.outputs[0]:
        return None
    return readers[0]


def _obstacle(
    between: list[ir.Node], query: tuple[int | None, ...] | None, scores: tuple[int | None, ...] | None
) -> str:
    if query is not None and len(query) > 1 and query[-2] == 1:
        return ONE_QUERY
    operators = {node.op_type for node in between}
    if operators & {"Add", "Where"}:
        return (
            "attention with a bias or mask before the softmax: its range is no match for 8 bits, and it does not fuse"
        )
    if operators & {"Mul", "Div"}:
        return "attention whose scale comes after q·kᵀ, which TensorRT does not fuse"
    width, keys = query[-1] if query else None, scores[-1] if scores else None
    if width not in HEAD_WIDTHS:
        return f"attention with head width {width}, TensorRT fuses {', '.join(map(str, HEAD_WIDTHS))} in INT8"
    if keys is None or keys > MOST_TOKENS:
        return f"attention over {keys} keys, TensorRT fuses up to {MOST_TOKENS} in INT8"
    return ""


def _name(node: ir.Node, index: int) -> str:
    value = node.inputs[index]
    return "" if value is None else str(value.name)
