"""Fold constants and remove dead nodes, without losing a constant that matters."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript.optimizer import fold_constants_ir
from onnxscript.rewriter import RewritePass
from onnxscript.rewriter.rules import common as rules

from vitdeploy.graph.fold_transposes import FoldTransposes
from vitdeploy.graph.quiet import quiet
from vitdeploy.graph.remove_no_ops import RemoveNoOps
from vitdeploy.graph.resolve_shapes import ResolveShapes

FOLD_LIMIT = 1 << 24
"""Elements: above it a folded constant (64 MB in float32) would cost more in the file than in the graph."""

_REWRITES = (
    # Left out on purpose: the no-op arithmetic rules (see RemoveNoOps), and the removal of biases that happen to be
    # zero, because then the graph of a fresh model would differ from that of the trained one. Neither is there the one
    # rule with two outputs (two Slices into a Split), whose search grows with the square of the graph.
    rules.dropout_zero_rule,
    rules.dropout_inference_rule,
    rules.collapse_slice_rule,
    rules.collapse_slice2_rule,
    rules.materialize_reshape_shape_rule,
    rules.no_op_cast_rule,
    rules.no_op_expand_rule,
    rules.no_op_transpose_rule,
    rules.transpose_transpose_rule,
    rules.reshape_reshape_rule,
    rules.unsqueeze_unsqueeze_rule,
    rules.flatten_to_reshape_rule,
    rules.no_op_static_scatter_nd_rule,
    rules.no_op_dynamic_scatter_nd_rule,
    rules.fuse_batchnorm_into_conv_rule,
    rules.fuse_batchnorm_into_gemm_rule,
    rules.fuse_pad_into_conv_rule,
)
_NEVER_FOLDED = frozenset(("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"))


class Simplify(ir.passes.InPlacePass):
    """Fold constants, apply onnxscript's exact rewrites, drop dead nodes, sort topologically.

    Parameters are not merged even where they are equal (LayerNorm weights of a fresh model), because each must stay
    addressable by its name.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        before, initializers = model.graph.num_nodes(), list(model.graph.initializers.values())
        with quiet():
            FoldTransposes()(model)
            for _ in range(4):
                changed = _fold(model)
                for step in (
                    RewritePass(_REWRITES),
                    RemoveNoOps(),
                    common.IdentityEliminationPass(),
                    common.RemoveUnusedNodesPass(),
                ):
                    changed = bool(step(model).modified) or changed
                if not changed:
                    break
            for last in (
                common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
                FoldTransposes(),
                ShareShapes(),
                common.CommonSubexpressionEliminationPass(),
                common.RemoveUnusedNodesPass(),
                common.RemoveUnusedOpsetsPass(),
                common.OutputFixPass(),
                common.TopologicalSortPass(),
            ):
                last(model)
        for value in initializers:
            if not value.is_initializer():
                value.const_value = None  # graph.inputs remembers what was ever one of them, and would keep its data
        return ir.passes.PassResult(model, modified=before != model.graph.num_nodes())


def _fold(model: ir.Model) -> bool:
    """Fold until nothing is left, as each constant shape may make others constant; return whether anything changed."""
    changed = False
    for _ in range(4):
        resolved = ResolveShapes()(model).modified
        folded = fold_constants_ir(
            model, onnx_shape_inference=True, output_size_limit=FOLD_LIMIT, should_fold=_should_fold
        ).modified
        common.RemoveUnusedNodesPass()(model)
        if not (resolved or folded):
            break
        changed = True
    return changed


class ShareShapes(ir.passes.InPlacePass):
    """Let equal integer constants of a few elements (the shapes of Reshape, axes, indices) be one initializer."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        first: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
        shared = 0
        for value in list(model.graph.initializers.values()):
            tensor = value.const_value
            if tensor is None or not tensor.dtype.is_integer() or tensor.size > 16 or value.is_graph_input():
                continue
            key = (str(tensor.dtype), tuple(tensor.shape.numpy()), tensor.tobytes())
            other = first.setdefault(key, value)
            if other is not value and not value.is_graph_output():
                value.replace_all_uses_with(other)
                del model.graph.initializers[str(value.name)]
                shared += 1
        return ir.passes.PassResult(model, modified=bool(shared))


def _should_fold(node: ir.Node) -> bool:
    """Return whether a node whose inputs are all constant becomes one itself."""
    if node.op_type in _NEVER_FOLDED:
        return False
    sizes = [value.const_value.size for value in node.inputs if value is not None and value.const_value is not None]
    return all(size <= FOLD_LIMIT for size in sizes)
