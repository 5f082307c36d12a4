"""Leave the last step of transposing kᵀ to the product that reads it."""

from __future__ import annotations

import onnx_ir as ir


class TransposeFactorsLast(ir.passes.InPlacePass):
    """Write a Transpose in front of a product's second factor in two, of which the second swaps the last two axes.

    Cases:
        k [B, N, H, D] → Transpose (0, 2, 3, 1) → MatMul
                     becomes Transpose (0, 2, 1, 3), which copies whole rows, and Transpose (0, 1, 3, 2), which OpenVINO
                     makes an option of the product. It has no fast kernel for the one Transpose.
        other        a Transpose that has other readers, keeps the innermost axis, or only swaps the last two, stays.

    Values do not change.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        changed = sum(_split(model.graph, node) for node in list(model.graph))
        return ir.passes.PassResult(model, modified=bool(changed))


def _split(graph: ir.Graph, node: ir.Node) -> bool:
    if node.domain or node.op_type != "Transpose" or "perm" not in node.attributes:
        return False
    order, output = list(node.attributes["perm"].as_ints()), node.outputs[0]
    uses, last = tuple(output.uses()), len(order) - 1
    moved = [*order[:-2], order[-1], last]
    if len(order) < 3 or order[-2] != last or moved == sorted(moved) or output.is_graph_output():
        return False
    if len(uses) != 1 or uses[0].node.op_type != "MatMul" or uses[0].idx != 1:
        return False
    names = {str(value.name) for one in graph for value in one.outputs} | {str(one.name) for one in graph}
    rows = ir.node("Transpose", [node.inputs[0]], {"perm": moved})
    rows.name, rows.outputs[0].name = _free(f"{node.name}/rows", names), _free(f"{output.name}_rows", names)
    rows.outputs[0].type = output.type
    if output.shape is not None:
        rows.outputs[0].shape = ir.Shape([*output.shape[:-2], output.shape[-1], output.shape[-2]])
    swap = ir.node("Transpose", [rows.outputs[0]], {"perm": [*range(last - 1), last, last - 1]}, name=node.name)
    swap.outputs[0].name, swap.outputs[0].type, swap.outputs[0].shape = output.name, output.type, output.shape
    for one in (rows, swap):
        one.metadata_props.update(node.metadata_props)
    ir.convenience.replace_nodes_and_values(graph, node, [node], [rows, swap], [output], [swap.outputs[0]])
    return True


def _free(name: str, names: set[str]) -> str:
    while name in names:
        name += "_"
    return name
