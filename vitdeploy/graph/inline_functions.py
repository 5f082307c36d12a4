"""Put the bodies of a model's functions in the place of their calls."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common

from vitdeploy.errors import GraphError
from vitdeploy.graph.quiet import quiet


class InlineFunctions(ir.passes.InPlacePass):
    """Replace every call of a function of the model by its nodes, which the passes after this one look for.

    A function may state another opset than the graph where that means the same operators.

    Raises:
        GraphError: An operator of a function means something else in the graph's opset.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        if not model.functions:
            return ir.passes.PassResult(model, modified=False)
        opset = model.opset_imports.get("")
        for function in model.functions.values():
            stated = function.opset_imports.get("")
            if opset is None or stated is None or stated == opset:
                continue
            for node in ir.traversal.RecursiveGraphIterator(function.graph):
                if not node.domain and _since(node.op_type, stated) != _since(node.op_type, opset):
                    raise GraphError(
                        f"the function {function.domain}::{function.name} has {node.op_type} of opset {stated}, the "
                        f"graph is of opset {opset}: export it with one opset"
                    )
            function.opset_imports[""] = opset
        with quiet():
            common.InlinePass()(model)
        return ir.passes.PassResult(model, modified=True)


def _since(operator: str, opset: int) -> int | None:
    """Return the opset in which an operator got the meaning that it has in this one; None where it has none."""
    if not onnx.defs.has(operator, opset, ""):
        return None
    return int(onnx.defs.get_schema(operator, opset, "").since_version)
