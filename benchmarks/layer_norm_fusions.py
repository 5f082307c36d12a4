"""In how many of its written forms LayerNorm is found: by our pass and by onnxscript's rewrite rules.

    python benchmarks/layer_norm_fusions.py

Each form is a small graph, run in ONNX Runtime before and after; a fusion that changes the result counts as wrong.
"""

from __future__ import annotations

import itertools
import logging
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
from onnxscript.rewriter.rules.fusion._layer_norm import fuse_layer_normalization

from vitdeploy.graph.fuse_layer_norm import FuseLayerNorm
from vitdeploy.graph.raise_opset import RaiseOpset

WIDTH = 8
MEANS = {
    "axes as attribute, opset 17": (17, "ReduceMean <axes = [-1], keepdims = 1> ({x})"),
    "axes as input, opset 18": (18, "ReduceMean <keepdims = 1> ({x}, axes)"),
    "axes as input, positive": (18, "ReduceMean <keepdims = 1> ({x}, last)"),
}
SQUARES = {"Pow": "Pow (d, two)", "Mul": "Mul (d, d)"}
QUOTIENTS = {"Div": "n = Div (d, s)", "Reciprocal": "r = Reciprocal (s) n = Mul (d, r)"}
AFFINES = {
    "γ and β": "g = Mul (n, gamma) y = Add (g, beta)",
    "γ and β, first": "g = Mul (gamma, n) y = Add (beta, g)",
    "γ alone": "y = Mul (n, gamma)",
}
CONSTANTS: dict[str, Any] = {
    "axes": np.array([-1], np.int64),
    "last": np.array([2], np.int64),
    "two": np.float32(2),
    "eps": np.float32(1e-6),
    "gamma": np.linspace(0.5, 2, WIDTH, dtype=np.float32),
    "beta": np.linspace(-1, 1, WIDTH, dtype=np.float32),
}


def graph(opset: int, mean: str, square: str, quotient: str, affine: str) -> ir.Model:
    """Return one written form of LayerNorm over the last axis of [N, 4, WIDTH]."""
    first, second = mean.format(x="x"), mean.format(x="q")
    body = f"m = {first} d = Sub (x, m) q = {square} v = {second} e = Add (v, eps) s = Sqrt (e) {quotient} {affine}"
    head = f'<ir_version: 10, opset_import: ["" : {opset}]> g (float[N, 4, {WIDTH}] x) => (float[N, 4, {WIDTH}] y)'
    model = ir.from_onnx_text(f"{head} {{ {body} }}")
    values = {value.name: value for node in model.graph for value in node.inputs if value is not None}
    for name, array in CONSTANTS.items():
        if name in values:
            value, tensor = values[name], ir.tensor(np.asarray(array), name=name)
            value.const_value, value.shape, value.dtype = tensor, ir.Shape(np.shape(array)), tensor.dtype
            model.graph.register_initializer(value)
    if opset < 18:
        RaiseOpset()(model)  # as adoption does before it fuses
        ir.passes.common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    ir.passes.common.ShapeInferencePass()(model)
    return model


def result(model: ir.Model) -> np.ndarray:
    """Return the output for seeded numbers, as the graph is written."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).standard_normal((3, 4, WIDTH)).astype(np.float32)
    return np.asarray(session.run(None, {"x": images})[0])


def verdict(model: ir.Model, before: np.ndarray) -> str:
    """Return whether a rewritten graph has one LayerNormalization and gives what it gave."""
    ir.passes.common.RemoveUnusedNodesPass()(model)
    if [node.op_type for node in model.graph] != ["LayerNormalization"]:
        return "-"
    return "found" if np.allclose(result(model), before, atol=1e-5) else "WRONG"


def main() -> None:
    """Print a line per form, and both counts."""
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # of constants that are not registered yet
    counts = {"ours": 0, "onnxscript": 0}
    forms = list(itertools.product(MEANS, SQUARES, QUOTIENTS, AFFINES))
    for mean, square, quotient, affine in forms:
        opset, text = MEANS[mean]
        parts = opset, text, SQUARES[square], QUOTIENTS[quotient], AFFINES[affine]
        before = result(graph(*parts))
        ours, theirs = graph(*parts), graph(*parts)
        FuseLayerNorm()(ours)
        fuse_layer_normalization(theirs)
        found = {"ours": verdict(ours, before), "onnxscript": verdict(theirs, before)}
        for name, said in found.items():
            counts[name] += said == "found"
        print(f"{mean:28} {square:4} {quotient:11} {affine:15}", *(f"{n}: {v:6}" for n, v in found.items()))
    print(f"of {len(forms)} forms", ", ".join(f"{name} finds {count}" for name, count in counts.items()))


if __name__ == "__main__":
    main()
