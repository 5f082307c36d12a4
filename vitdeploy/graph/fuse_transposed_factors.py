"""Products with kᵀ as an operator of ONNX Runtime that takes k."""

from __future__ import annotations

import onnx_ir as ir

from vitdeploy.graph.lower_integer_matmuls import DOMAIN
from vitdeploy.graph.transpose_factors_last import TransposeFactorsLast


class FuseTransposedFactors(ir.passes.InPlacePass):
    """Write MatMul with a second factor whose last two axes a Transpose swaps as FusedMatMul with ``transB``.

    Cases:
        k [B, N, H, D] → Transpose (0, 2, 3, 1) → MatMul
                     becomes Transpose (0, 2, 1, 3), which copies whole rows, and FusedMatMul. ONNX Runtime has no fast
                     kernel for the one Transpose, and makes it of any two that follow each other.
        other        a Transpose with other readers, or of another factor, stays.

    Values do not change.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        divided = TransposeFactorsLast()(model).modified
        changed = sum(_fuse(model.graph, node) for node in list(model.graph))
        if changed:
            model.opset_imports[DOMAIN] = 1
        return ir.passes.PassResult(model, modified=divided or bool(changed))


def _fuse(graph: ir.Graph, product: ir.Node) -> bool:
    if product.domain or product.op_type != "MatMul":
        return False
    factor = product.inputs[1]
    swap = factor.producer() if factor is not None else None
    if factor is None or swap is None or swap.domain or swap.op_type != "Transpose" or "perm" not in swap.attributes:
        return False
    order = list(swap.attributes["perm"].as_ints())
    last = len(order) - 1
    if last < 1 or order != [*range(last - 1), last, last - 1]:
        return False
    if len(factor.uses()) != 1 or factor.is_graph_output():
        return False
    fused = ir.node("FusedMatMul", [product.inputs[0], swap.inputs[0]], {"transB": 1}, domain=DOMAIN, name=product.name)
    fused.metadata_props.update(product.metadata_props)
    before, after = product.outputs[0], fused.outputs[0]
    after.name, after.type, after.shape = before.name, before.type, before.shape
    ir.convenience.replace_nodes_and_values(graph, product, [product], [fused], [before], [after])
    graph.remove(swap, safe=True)
    return True
