"""The last two axes of a product's second factor are swapped by themselves, which a product can do as it reads."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
import pytest
from onnx_text import check, parse, run

from vitdeploy.graph.transpose_factors_last import TransposeFactorsLast

SIGNATURE = "g (float[2, 5, 3, 4] k, float[2, 3, 7, 4] q) => (float[2, 3, 7, 5] y) "
KEYS = "kt = Transpose <perm = [0, 2, 3, 1]> (k) "


def graph(body: str) -> ir.Model:
    model = parse(f"{SIGNATURE} {{ {body} }}")
    for index, node in enumerate(model.graph):
        node.name = f"{node.op_type}{index}"
    common.ShapeInferencePass()(model)
    return model


def orders(model: ir.Model) -> list[tuple[int, ...]]:
    return [tuple(node.attributes["perm"].as_ints()) for node in model.graph if node.op_type == "Transpose"]


def test_rows_are_moved_first_and_the_last_two_axes_swapped_by_themselves() -> None:
    model = graph(KEYS + "y = MatMul (q, kt)")
    rng = np.random.default_rng(0)
    feed = {"k": rng.standard_normal((2, 5, 3, 4), np.float32), "q": rng.standard_normal((2, 3, 7, 4), np.float32)}
    before = run(model, **feed)
    assert TransposeFactorsLast()(model).modified
    assert orders(model) == [(0, 2, 1, 3), (0, 1, 3, 2)]
    check(model)
    np.testing.assert_array_equal(run(model, **feed)[0], before[0])


@pytest.mark.parametrize(
    "body",
    [
        KEYS + "z = Relu (kt) y = MatMul (q, kt)",
        KEYS + "r = Relu (kt) y = MatMul (q, r)",
        "t = Transpose <perm = [0, 2, 1, 3]> (k) kt = Transpose <perm = [0, 1, 3, 2]> (t) y = MatMul (q, kt)",
    ],
    ids=["read twice", "not read by a product", "already in two"],
)
def test_everything_else_stays(body: str) -> None:
    model = graph(body)
    before = orders(model)
    assert not TransposeFactorsLast()(model).modified
    assert orders(model) == before
