"""Operators of opsets 23 and 24 in those of opset 20: ONNX Runtime gives the same for both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx_text import check, ops, parse, run

from vitdeploy.errors import GraphError
from vitdeploy.graph.lower_attention import LowerAttention
from vitdeploy.graph.lower_opset import LowerOpset

FOUR = "g (float[N, 2, 5, 8] x, float[N, 2, 5, 8] k, float[N, 2, 5, 6] v) => (float[N, 2, 5, 6] y) "
THREE = "g (float[N, 5, 16] x, float[N, 5, 16] k, float[N, 5, 12] v) => (float[N, 5, 12] y) "
MASK = np.random.default_rng(3).standard_normal((5, 5)).astype(np.float32)


def both(text: str, shapes: Mapping[str, tuple[int, ...]], opset: int = 23, dtype: type = np.float32, **constants):
    """Return what a graph gives before and after, and the operators after."""
    rng = np.random.default_rng(0)
    feed: dict[str, Any] = {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
    before = run(parse(text, opset=opset, **constants), **feed)
    model = parse(text, opset=opset, **constants)
    LowerAttention()(model)
    LowerOpset(20)(model)
    check(model)
    return before, run(model, **feed), ops(model)


@pytest.mark.parametrize(
    ("body", "constants"),
    [
        ("y = Attention (x, k, v)", {}),
        ("y = Attention <scale = 0.25> (x, k, v)", {}),
        ("y = Attention (x, k, v, mask)", {"mask": MASK}),
        ("y = Attention (x, k, v, mask)", {"mask": MASK[None, None]}),
        ("y = Attention (x, k, v, mask)", {"mask": np.tril(np.ones((5, 5), bool))}),
    ],
)
def test_attention_of_four_dimensions(body: str, constants: dict[str, Any]) -> None:
    shapes = {"x": (3, 2, 5, 8), "k": (3, 2, 5, 8), "v": (3, 2, 5, 6)}
    before, after, found = both(f"{FOUR}{{ {body} }}", shapes, **constants)
    np.testing.assert_allclose(after, before, atol=1e-6)
    assert [name for name in found if name in ("Mul", "MatMul", "Softmax")] == ["Mul", "MatMul", "Softmax", "MatMul"]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("more", ["", ", scale = 0.3"])
def test_attention_of_three_dimensions_is_split_into_heads(batch: int, more: str) -> None:
    body = f"y = Attention <q_num_heads = 2, kv_num_heads = 2{more}> (x, k, v)"
    shapes = {"x": (batch, 5, 16), "k": (batch, 5, 16), "v": (batch, 5, 12)}
    before, after, _ = both(f"{THREE}{{ {body} }}", shapes)
    np.testing.assert_allclose(after, before, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            f"{FOUR}{{ [att] y = Attention <is_causal = 1> (x, k, v) }}",
            "'?att'? .*has is_causal=1, which opset 20 cannot",
        ),
        (f"{FOUR}{{ [att] y = Attention <softcap = 30.0> (x, k, v) }}", "has softcap=30"),
        (
            "g (float[N, 4, 5, 8] x, float[N, 2, 5, 8] k) => (float[N, 4, 5, 8] y) { [att] y = Attention (x, k, k) }",
            "has 4 heads of queries and 2 of keys",
        ),
        (
            "g (float[N, 2, 5, 8] x, float[N, 2, 3, 8] p) => "
            "(float[N, 2, 5, 8] y, float[N, 2, 8, 8] a, float[N, 2, 8, 8] b) "
            "{ [att] y, a, b = Attention (x, x, x, , p, p) }",
            "keeps keys and values of earlier calls",
        ),
        (
            "g (float[N, 2, 5, d] x) => (float[N, 2, 5, d] y) { [att] y = Attention (x, x, x) }",
            "heads of unknown width",
        ),
    ],
)
def test_what_an_encoder_does_not_have_is_refused_by_name_with_the_way_out(text: str, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        LowerAttention()(parse(text, opset=23))


@pytest.mark.parametrize("attributes", ["", "<epsilon = 0.1>", "<axis = 1>"])
def test_rms_normalization(attributes: str) -> None:
    scale = np.random.default_rng(1).standard_normal((5, 8) if "axis" in attributes else 8).astype(np.float32)
    text = f"g (float[N, 5, 8] x) => (float[N, 5, 8] y) {{ y = RMSNormalization {attributes} (x, s) }}"
    before, after, found = both(text, {"x": (3, 5, 8)}, s=scale)
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)
    assert "RMSNormalization" not in found


def test_rms_normalization_of_fp16_squares_in_float32() -> None:
    """300² is more than FP16 holds."""
    text = "g (float16[N, 8] x) => (float16[N, 8] y) { y = RMSNormalization (x, s) }"
    model = parse(text, opset=23, s=np.ones(8, np.float16))
    LowerAttention()(model)
    LowerOpset(20)(model)
    x = np.full((1, 8), 300, np.float16)
    np.testing.assert_allclose(run(model, x=x)[0], np.ones((1, 8)), rtol=1e-3)


@pytest.mark.parametrize("alpha", [1.0, 1.702])
def test_swish(alpha: float) -> None:
    text = f"g (float[N, 8] x) => (float[N, 8] y) {{ y = Swish <alpha = {alpha}> (x) }}"
    model = parse(text, opset=24)
    LowerAttention()(model)
    LowerOpset(20)(model)
    x = np.linspace(-4, 4, 8, dtype=np.float32)[None]
    np.testing.assert_allclose(run(model, x=x)[0], x / (1 + np.exp(-alpha * x)), rtol=1e-4)


def test_names_follow_the_node_that_was_replaced() -> None:
    model = parse("g (float[N, 2, 5, 8] x) => (float[N, 2, 5, 8] y) { [att] y = Attention (x, x, x) }", opset=23)
    LowerAttention()(model)
    assert all(node.name.startswith("att/") for node in model.graph)
    assert isinstance(model.graph.outputs[0], ir.Value)
    assert model.graph.outputs[0].name == "y"
