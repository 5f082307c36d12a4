"""Foreign graphs get back the operators that old exporters wrote in pieces."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx_text import check, ops, parse, run

from vitdeploy.errors import GraphError
from vitdeploy.graph.clean import clean
from vitdeploy.graph.fuse_gelu import FuseGelu
from vitdeploy.graph.fuse_layer_norm import FuseLayerNorm
from vitdeploy.graph.raise_opset import RaiseOpset

RNG = np.random.default_rng(0)
X = (3 * RNG.standard_normal((5, 4))).astype(np.float32)
NORM = "m = ReduceMean(input, axes) d = Sub(input, m) {square} v = ReduceMean(p, axes) e = Add(v, eps) s = Sqrt(e) "
POW, MUL = "p = Pow(d, two)", "p = Mul(d, d)"
DIV, RECIPROCAL = "n = Div(d, s) ", "r = Reciprocal(s) n = Mul(d, r) "
AFFINE = "g = Mul(n, gamma) logits = Add(g, beta)"


def norm_constants(text, **replaced: Any):
    values = {
        "axes": np.array([-1]),
        "two": np.float32(2),
        "eps": np.float32(1e-5),
        "gamma": RNG.standard_normal(4).astype(np.float32),
        "beta": RNG.standard_normal(4).astype(np.float32),
        **replaced,
    }
    return {name: value for name, value in values.items() if f" {name})" in text}


@pytest.mark.parametrize("square", [POW, MUL])
@pytest.mark.parametrize("quotient", [DIV, RECIPROCAL])
@pytest.mark.parametrize("affine", [AFFINE, "g = Mul(n, gamma) logits = Relu(g)"])
def test_layer_norm_in_pieces_becomes_one_node(square: str, quotient: str, affine: str) -> None:
    text = NORM.format(square=square) + quotient + affine
    model = parse(text, **norm_constants(text))
    expected = run(model, input=X)[0]
    assert FuseLayerNorm()(model).modified
    check(model)
    assert ops(model) == ["LayerNormalization"] + (["Relu"] if "Relu" in affine else [])
    assert model.graph[0].attributes["epsilon"].as_float() == pytest.approx(1e-5)
    np.testing.assert_allclose(run(model, input=X)[0], expected, rtol=1e-5, atol=1e-6)
    assert not FuseLayerNorm()(model).modified


@pytest.mark.parametrize(
    ("text", "replaced"),
    [
        (NORM.format(square=POW) + DIV + AFFINE, {"axes": np.array([0])}),
        (NORM.format(square=POW) + DIV + AFFINE, {"two": np.float32(3)}),
        (NORM.format(square=POW) + DIV + AFFINE, {"gamma": np.ones((5, 1), np.float32)}),
        (NORM.format(square=POW) + DIV + "g = Mul(n, gamma) h = Add(g, beta) logits = Add(h, s)", {}),
        (NORM.format(square=POW) + DIV + "logits = Relu(n)", {}),
    ],
    ids=["another axis", "a cube", "gamma over rows", "the root is read elsewhere", "no gamma"],
)
def test_what_is_no_layer_norm_over_the_last_axis_stays(text: str, replaced: dict[str, Any]) -> None:
    model = parse(text, **norm_constants(text, **replaced))
    before = ops(model)
    assert not FuseLayerNorm()(model).modified
    assert ops(model) == before


GELUS = {
    "torch": "a = Div(input, c) e = Erf(a) o = Add(e, one) g = Mul(input, o) logits = Mul(g, half)",
    "half first": "a = Div(input, c) e = Erf(a) o = Add(e, one) h = Mul(input, half) logits = Mul(h, o)",
    "half last": "a = Mul(input, i) e = Erf(a) o = Add(one, e) g = Mul(o, half) logits = Mul(g, input)",
}
TANH_GELUS = {
    "GPT-2": "p = Pow(input, three) k = Mul(p, cube) s = Add(input, k) m = Mul(s, slope) t = Tanh(m) o = Add(t, one) "
    "h = Mul(input, half) logits = Mul(h, o)",
    "by products": "q = Mul(input, input) p = Mul(q, input) k = Mul(cube, p) s = Add(input, k) m = Mul(slope, s) "
    "t = Tanh(m) o = Add(one, t) g = Mul(input, o) logits = Mul(g, half)",
    "JAX": "q = Mul(input, input) k = Mul(q, cube) s = Add(k, one) r = Mul(input, slope) m = Mul(r, s) t = Tanh(m) "
    "o = Add(t, one) g = Mul(o, half) logits = Mul(input, g)",
}
NUMBERS = {"c": np.sqrt(2), "i": np.sqrt(0.5), "one": 1.0, "half": 0.5}
NUMBERS |= {"three": 3.0, "cube": 0.044715, "slope": np.sqrt(2 / np.pi)}


def numbers(text, **replaced: Any):
    return {
        name: np.float32(value)
        for name, value in {**NUMBERS, **replaced}.items()
        if f" {name})" in text or f"({name}," in text
    }


@pytest.mark.parametrize("text", GELUS.values(), ids=GELUS)
def test_gelu_in_pieces_becomes_one_node(text: str) -> None:
    model = parse(text, **numbers(text))
    expected = run(model, input=X)[0]
    assert FuseGelu()(model).modified
    check(model)
    assert ops(model) == ["Gelu"]
    np.testing.assert_allclose(run(model, input=X)[0], expected, rtol=1e-5, atol=1e-6)
    assert not FuseGelu()(model).modified


@pytest.mark.parametrize("text", TANH_GELUS.values(), ids=TANH_GELUS)
def test_gelu_with_tanh_in_pieces_becomes_one_node(text: str) -> None:
    model = parse(text, **numbers(text))
    expected = run(model, input=X)[0]
    assert FuseGelu()(model).modified
    check(model)
    assert ops(model) == ["Gelu"]
    assert model.graph[0].attributes["approximate"].as_string() == "tanh"
    np.testing.assert_allclose(run(model, input=X)[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("replaced", [{"cube": 0.05}, {"slope": 0.85}, {"three": 2.0}])
def test_other_numbers_are_no_gelu_with_tanh(replaced: dict[str, float]) -> None:
    text = TANH_GELUS["GPT-2"]
    model = parse(text, **numbers(text, **replaced))
    assert not FuseGelu()(model).modified


def test_an_intermediate_result_that_is_read_elsewhere_keeps_a_gelu_in_pieces() -> None:
    text = TANH_GELUS["GPT-2"].replace("logits = Mul(h, o)", "g = Mul(h, o) logits = Add(g, t)")
    model = parse(text, **numbers(text))
    assert not FuseGelu()(model).modified


@pytest.mark.parametrize("replaced", [{"c": 1.5}, {"one": 0.9}, {"half": 0.4}])
def test_other_numbers_are_no_gelu(replaced: dict[str, float]) -> None:
    text = GELUS["torch"]
    model = parse(text, **numbers(text, **replaced))
    assert not FuseGelu()(model).modified


def test_gelu_is_not_made_below_opset_20() -> None:
    model = parse(GELUS["torch"], opset=17, **numbers(GELUS["torch"]))
    assert not FuseGelu()(model).modified


def test_an_opset_13_graph_is_raised_cleaned_and_means_the_same() -> None:
    """What an exporter of 2022 wrote: axes as attributes, LayerNorm and GELU in pieces."""
    text = """g (float[N, 4] pixels) => (float[N, 4] scores) {
        m = ReduceMean <axes = [-1]> (pixels) d = Sub(pixels, m) p = Pow(d, two) v = ReduceMean <axes = [-1]> (p)
        e = Add(v, eps) s = Sqrt(e) n = Div(d, s) g = Mul(n, gamma) h = Add(g, beta)
        a = Div(h, c) f = Erf(a) o = Add(f, one) k = Mul(h, o) q = Mul(k, half)
        t = Transpose <perm = [1, 0]> (w) scores = MatMul(q, t)
    }"""
    constants = {"two": np.float32(2), "eps": np.float32(1e-6), "gamma": np.full(4, 1.5, np.float32)}
    constants |= {"beta": np.ones(4, np.float32), "w": RNG.standard_normal((4, 4)).astype(np.float32)}
    model = parse(text, opset=13, **constants, **{k: np.float32(NUMBERS[k]) for k in ("c", "one", "half")})
    expected = run(model, pixels=X)[0]
    clean(model)
    check(model)
    assert model.opset_imports[""] == 20
    assert ops(model) == ["LayerNormalization", "Gelu", "MatMul"]
    np.testing.assert_allclose(run(model, input=X)[0], expected, rtol=1e-4, atol=1e-5)
    written = parse(text, opset=13, **constants, **{k: np.float32(NUMBERS[k]) for k in ("c", "one", "half")})
    clean(written, opset=17)
    assert "LayerNormalization" in ops(written)
    assert "Erf" in ops(written)


def test_a_graph_that_cannot_be_raised_is_refused() -> None:
    model = parse("logits = ImageScaler(input)", opset=5)
    with pytest.raises(GraphError, match="cannot be raised from opset 5 to 20"):
        RaiseOpset()(model)
