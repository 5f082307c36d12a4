"""Remove arithmetic that changes nothing, and only that."""

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
    """Remove ``x + 0``, ``x - 0``, ``x * 1`` and ``x / 1`` where the constant is exactly that number.

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
