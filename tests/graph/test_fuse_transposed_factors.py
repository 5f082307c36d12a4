"""A product takes k in place of kᵀ, and what the graph computes stays."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx_text import ops, parse

from vitdeploy.backends.onnxruntime import open_graph
from vitdeploy.graph.fuse_transposed_factors import FuseTransposedFactors


def attention(body: str) -> ir.Model:
    return parse(f"g (float[B, 5, 2, 4] q, float[B, 5, 2, 4] k) => (float[B, 2, I, J] logits) {{ {body} }}")


def logits_of(model: ir.Model) -> np.ndarray:
    random = np.random.default_rng(0)
    feed = {name: random.standard_normal((3, 5, 2, 4), np.float32) for name in ("q", "k")}
    with open_graph(model) as session:
        return session.run(feed)["logits"]


ROWS = "a = Transpose <perm = [0, 2, 1, 3]> (q)"


@pytest.mark.parametrize(
    ("body", "left"),
    [
        (f"{ROWS} t = Transpose <perm = [0, 2, 3, 1]> (k) logits = MatMul(a, t)", ["Transpose", "Transpose"]),
        (
            f"{ROWS} r = Transpose <perm = [0, 2, 1, 3]> (k) t = Transpose <perm = [0, 1, 3, 2]> (r) "
            "logits = MatMul(a, t)",
            ["Transpose", "Transpose"],
        ),
        (
            f"{ROWS} h = Neg(a) t = Transpose <perm = [0, 2, 3, 1]> (k) logits = MatMul(h, t)",
            ["Transpose", "Neg", "Transpose"],
        ),
    ],
)
def test_the_product_takes_the_last_step_over(body: str, left: list[str]) -> None:
    model = attention(body)
    before = logits_of(model)
    assert FuseTransposedFactors()(model).modified
    assert ops(model) == [*left, "FusedMatMul"]
    assert [list(node.attributes["perm"].as_ints()) for node in model.graph if node.op_type == "Transpose"] == [
        [0, 2, 1, 3]
    ] * 2
    assert np.allclose(logits_of(model), before, atol=1e-6)


@pytest.mark.parametrize(
    "body",
    [
        f"{ROWS} b = Transpose <perm = [0, 2, 1, 3]> (k) c = Transpose <perm = [0, 1, 3, 2]> (b) "
        "d = MatMul(a, c) e = MatMul(c, a) f = MatMul(d, e) logits = Identity(d)",
        "a = Transpose <perm = [0, 2, 3, 1]> (q) b = Transpose <perm = [0, 2, 1, 3]> (k) logits = MatMul(a, b)",
        f"{ROWS} b = Transpose <perm = [0, 2, 1, 3]> (k) logits = Add(a, b)",
    ],
    ids=["another reader", "the first factor", "no product"],
)
def test_what_a_product_cannot_take_over_stays(body: str) -> None:
    model = attention(body)
    before = ops(model)
    FuseTransposedFactors()(model)
    assert ops(model) == before
