"""A product that Split divides becomes one for each part, and what the graph computes stays."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx_text import ops, parse

from vitdeploy.backends.onnxruntime import open_graph
from vitdeploy.graph.divide_products import DivideProducts

WIDTH = 6


def product(after: str, *, bias: bool = True, **constants: Any) -> ir.Model:
    """Return a graph of an integer product ``m`` [N, 5, 6] of ONNX Runtime, and what comes after it."""
    random = np.random.default_rng(3)
    biases: dict[str, Any] = {"b": np.linspace(-1, 1, WIDTH, dtype=np.float32)} if bias else {}
    model = parse(
        f"""g (float[N, 5, 8] input) => (float[N, 5, K] logits) {{
            q = QuantizeLinear(input, s, z)
            m = com.microsoft.MatMulIntegerToFloat(q, w, s, ws, z, wz{", b" if bias else ""})
            {after}
        }}""",
        s=np.float32(0.02),
        z=np.uint8(120),
        w=random.integers(-127, 128, (8, WIDTH)).astype(np.int8),
        ws=np.linspace(0.01, 0.02, WIDTH, dtype=np.float32),
        wz=np.zeros(WIDTH, np.int8),
        **biases,
        **constants,
    )
    model.opset_imports["com.microsoft"] = 1
    for node in model.graph:
        if node.outputs[0].name == "m":
            node.outputs[0].shape = ir.Shape(["N", 5, WIDTH])
    return model


def logits_of(model: ir.Model) -> np.ndarray:
    images = np.random.default_rng(0).standard_normal((3, 5, 8), np.float32)
    with open_graph(model) as session:
        return session.run({"input": images})["logits"]


@pytest.mark.parametrize(
    ("after", "constants", "count"),
    [
        ("a, b1, c = Split <axis = 2, num_outputs = 3> (m) d = Mul(a, b1) logits = Sub(d, c)", {}, 3),
        ("a, c = Split <axis = -1> (m, n) logits = Concat <axis = 2> (c, a)", {"n": np.array([2, 4])}, 2),
        ("a, c = Split <axis = 2> (m, n) logits = Concat <axis = 2> (c, a)", {"n": np.array([5, 1])}, 2),
    ],
    ids=["q, k and v", "sizes", "unequal sizes"],
)
@pytest.mark.parametrize("bias", [True, False])
def test_each_part_is_a_product_of_its_own(after: str, constants: dict[str, Any], count: int, bias: bool) -> None:
    model = product(after, bias=bias, **constants)
    before = logits_of(model)
    assert DivideProducts()(model).modified
    assert ops(model).count("MatMulIntegerToFloat") == count
    assert "Split" not in ops(model)
    assert not {"w", "ws", "wz", "b"} & set(model.graph.initializers)
    assert np.array_equal(logits_of(model), before)


@pytest.mark.parametrize(
    "after",
    [
        "logits = Identity(m)",
        "a, c = Split <axis = 2, num_outputs = 2> (m) d = Concat <axis = 2> (c, a) logits = Add(d, m)",
        "t = Transpose <perm = [0, 2, 1]> (m) a, c = Split <axis = 1, num_outputs = 2> (t) logits = Sub(a, c)",
        "a, c, d, e = Split <axis = 2, num_outputs = 4> (m) logits = Concat <axis = 2> (e, d, c, a)",
    ],
    ids=["nothing is divided", "another reader", "something between", "parts of different size"],
)
def test_what_is_not_divided_into_known_parts_stays(after: str) -> None:
    model = product(after)
    before = ops(model)
    assert not DivideProducts()(model).modified
    assert ops(model) == before


def test_a_split_along_another_axis_stays() -> None:
    model = product("a, c = Split <axis = 0, num_outputs = 2> (m) logits = Concat <axis = 0> (c, a)")
    assert not DivideProducts()(model).modified
