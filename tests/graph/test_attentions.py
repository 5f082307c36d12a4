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
