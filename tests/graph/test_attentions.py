"""The products of attention are found by structure, and left where TensorRT has no integer kernel for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx_text import parse
from small_vit import small_vit

from vitdeploy.graph.attentions import find_attentions


def attention(tokens: int = 64, width: int = 16, scores: str = "s = MatMul (qs, kt)", **constants: Any):
    text = f"""g (float[batch, 2, {tokens}, {width}] input) => (float[batch, 2, {tokens}, {width}] logits) {{
        q = Relu (input) qs = Mul (q, c) k = Sigmoid (input) kt = Transpose <perm = [0, 1, 3, 2]> (k) v = Tanh (input)
        {scores} p = Softmax <axis = -1> (s) logits = MatMul (p, v)
    }}"""
    constants = {"c": np.float32(0.25), **constants}
    model = parse(text, **{name: value for name, value in constants.items() if name in text})
    for node in model.graph:
        node.name = node.outputs[0].name
    return model


def obstacles(model: ir.Model):
    return [found.obstacle for found in find_attentions(model)]


def test_both_products_of_every_block_are_found() -> None:
    found = find_attentions(ir.serde.deserialize_model(small_vit(depth=3)))
    assert len(found) == 3
    assert len({attention.name for attention in found}) == 3
    for attention_ in found:
        assert attention_.scores.op_type == attention_.context.op_type == "MatMul"
        assert attention_.softmax.outputs[0] is attention_.context.inputs[0]


@pytest.mark.parametrize("width", [16, 32, 64])
def test_head_widths_that_tensorrt_fuses_are_free(width: int) -> None:
    assert obstacles(attention(width=width)) == [""]


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (attention(width=24), "head width 24"),
        (attention(tokens=513), "over 513 keys"),
        (attention(tokens=1), "one query per image"),
        (
            attention(scores="m = MatMul (qs, kt) s = Add (m, bias)", bias=np.zeros((1, 2, 64, 64), "f4")),
            "bias or mask",
        ),
        (attention(scores="m = MatMul (q, kt) s = Mul (m, c)"), "scale comes after"),
        (attention(scores="m = MatMul (q, kt) s = Div (m, c)"), "scale comes after"),
    ],
)
def test_what_tensorrt_does_not_fuse_is_left_with_the_reason(model: ir.Model, text: str) -> None:
    (obstacle,) = obstacles(model)
    assert text in obstacle


def test_512_keys_are_the_last_that_fuse() -> None:
    assert obstacles(attention(tokens=512)) == [""]


def test_a_softmax_over_classes_is_no_attention() -> None:
    model = parse("a = MatMul (input, w) logits = Softmax (a)", w=np.eye(4, dtype=np.float32))
    assert find_attentions(model) == ()


def test_a_softmax_that_is_read_twice_is_no_attention() -> None:
    model = attention()
    model.graph.outputs.append(next(node for node in model.graph if node.op_type == "Softmax").outputs[0])
    extra = ir.node("Relu", [model.graph.outputs[1]], name="extra")
    model.graph.append(extra)
    assert find_attentions(model) == ()


FUSED = "qkv = Relu (input) q0, k0, v0 = Split <axis = 2, num_outputs = 3> (qkv) "
APART = "q0 = Relu (input) k0 = Sigmoid (input) v0 = Tanh (input) "
HEADS = """qr = Reshape (q0, heads) kr = Reshape (k0, heads) vr = Reshape (v0, heads)
    qh = Transpose <perm = [0, 2, 1, 3]> (qr) kt = Transpose <perm = [0, 2, 3, 1]> (kr)
    v = Transpose <perm = [0, 2, 1, 3]> (vr) q = Mul (qh, c) s = MatMul (q, kt) p = Softmax <axis = -1> (s)
    o = MatMul (p, v) """


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (FUSED + HEADS, {"qkv": ["Split"], "p": ["MatMul"]}),
        (APART + HEADS, {"q0": ["Reshape"], "k0": ["Reshape"], "v0": ["Reshape"], "p": ["MatMul"]}),
        # what others read too must not be rounded for them
        (FUSED + HEADS + "other = Relu (k0) ",
         {"q0": ["Reshape"], "kr": ["Transpose"], "p": ["MatMul"], "v0": ["Reshape"]}),
        (APART + HEADS + "other = Relu (kr) ",
         {"q0": ["Reshape"], "kt": ["MatMul"], "p": ["MatMul"], "v0": ["Reshape"]}),
        # a scale for each head is more than one number
        (APART + HEADS.replace("(qh, c)", "(qh, each)"),
         {"q": ["MatMul"], "k0": ["Reshape"], "p": ["MatMul"], "v0": ["Reshape"]}),
    ],
)  # fmt: skip
def test_factors_are_followed_to_where_they_are_computed(text: str, expected: dict[str, list[str]]) -> None:
    constants = {"heads": np.array([0, 5, 2, 8]), "c": np.float32(0.25), "each": np.ones((2, 1, 1), np.float32)}
    model = parse(
        f"g (float[b, 5, {48 if text.startswith(FUSED) else 16}] input) => (float[b, 2, 5, 8] o) {{ {text} }}",
        **{name: value for name, value in constants.items() if f", {name})" in text},
    )
    (found,) = find_attentions(model)
    assert {value.name: [node.op_type for node, _ in uses] for value, uses in found.computed()} == expected
    assert [value.name for value, _ in found.factors] == ["q", "kt", "p", "v"]
