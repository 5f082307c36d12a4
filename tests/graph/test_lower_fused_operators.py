"""ONNX Runtime's fused operators become standard ones that compute the same."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx_text import add_constant, check, ops, run

from vitdeploy.graph.lower_fused_operators import LowerFusedOperators
from vitdeploy.graph.raise_opset import RaiseOpset

RNG = np.random.default_rng(0)
SHAPES = {
    "b": (8,), "gamma": (8,), "beta": (8,), "bias": (8,), "w": (8, 24), "wb": (24,), "ab": (1, 2, 5, 5), "m": (8, 8),
}  # fmt: skip
MS = "com.microsoft"
TAKEN = {
    "Gelu": f"y = {MS}.Gelu (x)",
    "BiasGelu": f"y = {MS}.BiasGelu (x, b)",
    "FastGelu": f"y = {MS}.FastGelu (x)",
    "FastGelu with bias": f"y = {MS}.FastGelu (x, b)",
    "QuickGelu": f"y = {MS}.QuickGelu <alpha = 1.5> (x)",
    "QuickGelu, default": f"y = {MS}.QuickGelu (x)",
    "FusedMatMul": f"y = {MS}.FusedMatMul <alpha = 0.25> (x, m)",
    "FusedMatMul, transposed": f"p = {MS}.FusedMatMul <transB = 1> (x, z) y = {MS}.FusedMatMul <transA = 1> (p, x)",
    "SkipLayerNormalization": f"y = {MS}.SkipLayerNormalization <epsilon = 0.01> (x, z, gamma, beta)",
    "SkipLayerNormalization with bias": f"y = {MS}.SkipLayerNormalization (x, z, gamma, beta, bias)",
    "SkipLayerNormalization, its sum": f"n, m1, v1, s = {MS}.SkipLayerNormalization (x, z, gamma, beta) y = Add (n, s)",
    "Attention": f"y = {MS}.Attention <num_heads = 2> (x, w, wb)",
    "Attention with a scale": f"y = {MS}.Attention <num_heads = 2, scale = 0.3> (x, w, wb)",
    "MultiHeadAttention": f"y = {MS}.MultiHeadAttention <num_heads = 2> (x, z, x)",
    "MultiHeadAttention with biases": f"y = {MS}.MultiHeadAttention <num_heads = 2> (x, z, x, wb)",
    "MultiHeadAttention, position bias": f'y = {MS}.MultiHeadAttention <num_heads = 2> (x, z, x, wb, "", ab)',
}
LEFT = {
    "a mask": f"y = {MS}.Attention <num_heads = 2> (x, w, wb, mask)",
    "causal": f"y = {MS}.Attention <num_heads = 2, unidirectional = 1> (x, w, wb)",
    "rotary": f"y = {MS}.Attention <num_heads = 2, do_rotary = 1> (x, w, wb)",
    "another operator": f"y = {MS}.BiasSplitGelu (x, b)",
}


def graph(body: str, opset: int = 20) -> ir.Model:
    text = f"""<ir_version: 10, opset_import: ["" : {opset}, "{MS}" : 1]>
        g (float[B, 5, 8] x, float[B, 5, 8] z) => (float[B, 5, 8] y) {{ {body} }}"""
    model = ir.from_onnx_text(text)
    for name, shape in SHAPES.items():
        if any(value is not None and value.name == name for node in model.graph for value in node.inputs):
            add_constant(model, name, RNG.standard_normal(shape).astype(np.float32))
    return model


@pytest.mark.parametrize("body", TAKEN.values(), ids=TAKEN)
def test_the_standard_operators_compute_the_same(body: str) -> None:
    x, z = RNG.standard_normal((2, 3, 5, 8)).astype(np.float32)
    model = graph(body)
    expected = run(model, x=x, z=z)[0]
    assert LowerFusedOperators()(model).modified
    assert {node.domain for node in model.graph} == {""}
    del model.opset_imports[MS]
    check(model)
    np.testing.assert_allclose(run(model, x=x, z=z)[0], expected, rtol=1e-4, atol=1e-5)
    assert not LowerFusedOperators()(model).modified


@pytest.mark.parametrize("body", LEFT.values(), ids=LEFT)
def test_what_it_does_not_know_stays(body: str) -> None:
    model = graph(body)
    assert not LowerFusedOperators()(model).modified
    assert model.graph[0].domain == MS


def test_a_norm_that_its_optimizer_wrote_into_an_old_opset_is_standard_after_raising() -> None:
    x = RNG.standard_normal((3, 5, 8)).astype(np.float32)
    model = graph("y = LayerNormalization <epsilon = 0.01> (x, gamma, beta)", opset=13)
    expected = run(model, x=x, z=x)[0]
    RaiseOpset()(model)
    LowerFusedOperators()(model)
    assert ops(model) == ["LayerNormalization"]
    assert model.graph[0].domain == ""
    np.testing.assert_allclose(run(model, x=x, z=x)[0], expected, rtol=1e-5, atol=1e-6)
