"""Biases go into ONNX Runtime's integer product, and what the graph computes stays."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx_text import ops, parse

from vitdeploy.backends.onnxruntime import open_graph
from vitdeploy.graph.lower_integer_matmuls import LowerIntegerMatMuls
from vitdeploy.measure.statistics import logits_sqnr_db

WIDTH = 4


def linear(after: str, **constants: Any) -> ir.Model:
    """Return a graph of an 8-bit product ``m`` [N, 5, 4], and what comes after it."""
    random = np.random.default_rng(3)
    return parse(
        f"""g (float[N, 5, 8] input) => (float[N, 5, 4] logits) {{
            q = QuantizeLinear(input, s, z)
            x = DequantizeLinear(q, s, z)
            wd = DequantizeLinear <axis = 1> (w, ws, wz)
            m = MatMul(x, wd)
            {after}
        }}""",
        s=np.float32(0.02),
        z=np.uint8(120),
        w=random.integers(-127, 128, (8, WIDTH)).astype(np.int8),
        ws=np.linspace(0.01, 0.02, WIDTH, dtype=np.float32),
        wz=np.zeros(WIDTH, np.int8),
        **constants,
    )


@pytest.mark.parametrize("shape", [(WIDTH,), (1, WIDTH), (1, 1, WIDTH)])
@pytest.mark.parametrize("first", ["m, b", "b, m"])
def test_a_bias_goes_into_the_product_and_nothing_is_left_behind(shape: tuple[int, ...], first: str) -> None:
    model = linear(f"logits = Add({first})", b=np.linspace(-1, 1, WIDTH, dtype=np.float32).reshape(shape))
    images = np.random.default_rng(0).standard_normal((3, 5, 8), np.float32)
    with open_graph(model) as session:
        before = session.run({"input": images})["logits"]
    assert LowerIntegerMatMuls()(model).modified
    assert ops(model) == ["QuantizeLinear", "MatMulIntegerToFloat"]
    assert set(model.graph.initializers) == {"s", "z", "w", "ws", "wz", str(model.graph[1].inputs[6].name)}
    with open_graph(model) as session:
        after = session.run({"input": images})["logits"]
    assert logits_sqnr_db(after.reshape(-1, WIDTH), before.reshape(-1, WIDTH)) > 100


@pytest.mark.parametrize(
    ("after", "constants"),
    [
        ("logits = Identity(m)", {}),
        ("r = Relu(m) logits = Add(m, r)", {}),
        ("logits = Add(m, b)", {"b": np.ones((5, WIDTH), np.float32)}),
        ("logits = Add(m, b)", {"b": np.ones((), np.float32)}),
        ("r = Add(m, b) logits = Mul(r, m)", {"b": np.ones(WIDTH, np.float32)}),
    ],
    ids=["no bias", "a sum of tensors", "rows of biases", "one number", "another reader"],
)
def test_what_is_no_bias_stays(after: str, constants: dict[str, np.ndarray]) -> None:
    model = linear(after, **constants)
    before = ops(model)
    assert not LowerIntegerMatMuls()(model).modified
    assert ops(model) == before
    assert "com.microsoft" not in model.opset_imports
