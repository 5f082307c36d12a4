"""Remove operators that change nothing, and only those."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.values import array_of, is_constant

_NEUTRAL: dict[str, tuple[float, tuple[int, ...]]] = {
    "Add": (0.0, (0, 1)),
    "Sub": (0.0, (1,)),
    "Mul": (1.0, (0, 1)),
    "Div": (1.0, (1,)),
}


class RemoveNoOps(ir.passes.InPlacePass):
    """Remove ``x + 0``, ``x - 0``, ``x * 1`` and ``x / 1`` where the constant is exactly that number, and empty moves.

    An empty move is a Pad by zero, a Slice of everything, or a Concat of one tensor: window attention pads and crops by
    amounts that are zero where the windows fit.

    onnxscript's rules of the same purpose compare with an absolute tolerance of 1e-8 and a relative one of 1e-5, so
    they delete the ``+ 1e-8`` in a denominator, which keeps T2T-ViT's performer finite.

    Refused: a constant that broadcasts ``x`` to another shape, and a constant that has more than one element, because
    a graph's structure must not depend on the values of its weights.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        removed = 0
        for node in list(ir.traversal.RecursiveGraphIterator(model.graph)):
            kept = _kept_input(node)
            if kept is None or node.outputs[0].is_graph_output():
                continue
            node.outputs[0].replace_all_uses_with(kept)
            assert node.graph is not None
            node.graph.remove(node, safe=True)
            removed += 1
        return ir.passes.PassResult(model, modified=bool(removed))


def _kept_input(node: ir.Node) -> ir.Value | None:
    if node.domain == "" and node.op_type in _MOVES:
        return node.inputs[0] if _MOVES[node.op_type](node) else None
    if node.domain != "" or node.op_type not in _NEUTRAL or len(node.inputs) != 2:
        return None
    number, positions = _NEUTRAL[node.op_type]
    for position in positions:
        constant, other = node.inputs[position], node.inputs[1 - position]
        if other is None or constant is None or not is_constant(constant) or is_constant(other):
            continue
        array = array_of(constant)
        if array is None or array.size != 1 or not np.all(array == number):
            continue
        rank = None if other.shape is None else len(other.shape)
        if array.ndim == 0 or (rank is not None and array.ndim <= rank):
            return other
    return None


def _pads_nothing(node: ir.Node) -> bool:
    pads = array_of(node.inputs[1]) if len(node.inputs) > 1 else None
    return pads is not None and not np.any(pads)


def _slices_everything(node: ir.Node) -> bool:
    source, output = node.inputs[0], node.outputs[0]
    if source is None or len(node.inputs) < 3:
        return False
    starts, ends = (array_of(value) for value in node.inputs[1:3])
    axes = array_of(node.inputs[3]) if len(node.inputs) > 3 else None
    steps = array_of(node.inputs[4]) if len(node.inputs) > 4 else None
    if starts is None or ends is None or (steps is not None and np.any(steps != 1)) or np.any(starts != 0):
        return False
    if len(node.inputs) > 4 and node.inputs[4] is not None and steps is None:
        return False
    if np.all(ends >= np.iinfo(np.int32).max):
        return True
    listed = range(len(ends)) if axes is None else [int(axis) for axis in axes]
    if len(node.inputs) > 3 and node.inputs[3] is not None and axes is None:
        return False
    if source.shape is None or output.shape is None:
        return False
    sizes = [source.shape[axis] for axis in listed]
    return all(isinstance(size, int) and end >= size for size, end in zip(sizes, ends, strict=True))


def _joins_one(node: ir.Node) -> bool:
    return len(node.inputs) == 1


_MOVES = {"Pad": _pads_nothing, "Slice": _slices_everything, "Concat": _joins_one}
