"""Counting in which precision nodes compute."""

import numpy as np
import pytest
from onnx_text import parse

from vitdeploy.graph.fp16 import ConvertToFloat16
from vitdeploy.graph.precisions import count_precisions

QUANTIZED = """
    n = Softmax(input) xq = QuantizeLinear(n, s, z) xd = DequantizeLinear(xq, s, z)
    wd = DequantizeLinear(wq, s, z) {product} logits = Relu(y)
"""


@pytest.mark.parametrize(
    ("product", "expected"),
    [
        ("y = MatMul(xd, wd)", {"fp32": 2, "int8": 1}),
        ("y = MatMul(n, wd)", {"fp32": 2, "int8-weight-only": 1}),
        ("y = MatMul(xd, n)", {"fp32": 3}),
    ],
)
def test_a_node_is_int8_when_all_its_operands_are(product: str, expected: dict[str, int]) -> None:
    model = parse(QUANTIZED.format(product=product), s=np.float32(0.01), z=np.int8(0), wq=np.ones((4, 4), np.int8))
    if "MatMul(xd, n)" in product:
        model = parse(
            "g (float[4, 4] input) => (float[4, 4] logits) {" + QUANTIZED.format(product=product) + "}",
            s=np.float32(0.01),
            z=np.int8(0),
            wq=np.ones((4, 4), np.int8),
        )
    assert count_precisions(model) == expected


def test_fp16_and_its_islands_are_counted_apart() -> None:
    model = parse("[a] a = Relu(input) [b] b = Softmax(a) [c] logits = Neg(b)")
    ConvertToFloat16({"b"})(model)
    assert count_precisions(model) == {"fp16": 2, "fp32": 1}
