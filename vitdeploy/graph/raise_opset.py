"""Bring a foreign graph to the opset that the passes are written for."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import version_converter

from vitdeploy.errors import GraphError
from vitdeploy.graph.lower_fused_operators import DOMAIN
from vitdeploy.graph.lower_opset import NEWEST
from vitdeploy.graph.quiet import quiet
from vitdeploy.text import one_line

NORM_OPSET = 17


class RaiseOpset(ir.passes.InPlacePass):
    """Convert a graph of an older opset to opset 20 with onnxscript's converter, and onnx's below 18.

    Raises:
        GraphError: Neither converter takes the graph.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        opset = model.opset_imports.get("", 0)
        if opset >= NEWEST:
            return ir.passes.PassResult(model, modified=False)
        _mark_early_norms(model, opset)
        with quiet():
            try:
                version_converter.convert_version(model, NEWEST, fallback=True)
            except Exception as error:  # the converters raise RuntimeError, and their own kinds
                reason = one_line(error)
                raise GraphError(f"the graph cannot be raised from opset {opset} to {NEWEST}: {reason}") from error
        if model.opset_imports.get("", 0) != NEWEST:
            raise GraphError(
                f"the graph cannot be raised from opset {opset} to {NEWEST}: export it again with opset 17 or newer"
            )
        return ir.passes.PassResult(model, modified=True)


def _mark_early_norms(model: ir.Model, opset: int) -> None:
    """Give LayerNormalization of an opset that has none to the domain of ONNX Runtime, whose optimizer wrote it."""
    early = [node for node in model.graph if node.op_type == "LayerNormalization" and not node.domain]
    if opset < NORM_OPSET and early:
        for node in early:
            node.domain = DOMAIN
        model.opset_imports.setdefault(DOMAIN, 1)
