"""Find the two products of each attention, q·kᵀ and p·v, by structure."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from vitdeploy.graph.linear_groups import path_of, shapes_at_batch_one
from vitdeploy.graph.values import is_constant

MOST_TOKENS = 512
HEAD_WIDTHS = (16, 32, 64)


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


def find_attentions(model: ir.Model) -> tuple[Attention, ...]:
    """Return every MatMul → Softmax → MatMul, in graph order.

    An attention has an obstacle outside the conditions under which TensorRT fuses it with INT8 (developer guide,
    "Multi-Head Attention Fusion": at most 512 keys, head width 16, 32 or 64, the scale on q or k before the first
    product), and where something is added before the softmax: the sum's range, wide with a mask of −100, is no match
    for 8 bits.
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
