"""A Q/DQ pair in front of the moves that led to it gives the same numbers to the bit, and stays where it would not."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
import pytest
from onnx_text import check, ops, parse, run

from vitdeploy.graph.quantize_before_moves import QuantizeBeforeMoves

SIZE = (2, 8, 6)
PAIR = "q = QuantizeLinear (t, scale, zero) d = DequantizeLinear (q, scale, zero) logits = Neg (d)"
BY_CHANNEL = PAIR.replace("Linear (", "Linear <axis = 2> (")
HEADS = "r = Reshape (x, in_heads) s = Transpose <perm = [0, 2, 1, 3]> (r) t = Reshape (s, merged)"
ROLL = "a = Slice (x, from3, end, axis) b = Slice (x, start, to3, axis) t = Concat <axis = 1> (a, b)"
WINDOWS = "w = Reshape (x, cut) v = Transpose <perm = [0, 2, 1, 3, 4]> (w) t = Reshape (v, windows)"
PARTS = "a, b, c = Split <axis = 2, num_outputs = 3> (x) t = Concat <axis = 2> (c, a, b)"
NUMBERS: dict[str, Any] = {
    "in_heads": [2, 8, 2, 3],
    "merged": [2, 2, 24],
    "from3": [3],
    "to3": [3],
    "start": [0],
    "end": [8],
    "axis": [1],
    "cut": [2, 2, 4, 2, 3],
    "windows": [8, 4, 3],
    "order": [7, 6, 5, 4, 3, 2, 1, 0],
    "few": [0, 3],
    "pads": [0, 1, 0, 0, 2, 0],
}


def graph(body: str, scale: Any = 0.02, zero: Any = 100, **more: Any) -> ir.Model:
    text = f"g (float[2, 8, 6] input) => (float[A, B, C] logits) {{ x = Relu (input) {body} }}"
    named = [name for name in NUMBERS if f" {name})" in text or f" {name}," in text]
    constants: dict[str, Any] = {name: np.array(NUMBERS[name], np.int64) for name in named}
    constants |= {"scale": np.array(scale, np.float32), "zero": np.array(zero, np.uint8)}
    model = parse(text, **constants, **more)
    for index, node in enumerate(model.graph):
        node.name = f"{node.op_type}{index}"
    common.ShapeInferencePass()(model)
    return model


def found(model: ir.Model) -> np.ndarray:
    feed = np.random.default_rng(0).standard_normal(SIZE, np.float32) * 3
    feed.reshape(-1)[:6] = [0.01, 0.03, 0.05, -0.01, 9.0, -9.0]  # ties and what is clipped
    logits: np.ndarray = run(model, input=feed)[0]
    return logits


@pytest.mark.parametrize(
    "moves",
    [
        HEADS,
        ROLL,
        WINDOWS,
        PARTS,
        f"{ROLL.replace('t =', 'y =')} {WINDOWS.replace('(x,', '(y,')}",
        "t = Gather <axis = 1> (x, order)",
        "t = Pad (x, pads)",
        'r = Pad <mode = "edge"> (x, pads) t = Identity (r)',
    ],
    ids=["heads", "roll", "windows", "parts", "roll and windows", "gather", "zeros around", "edges repeated"],
)
def test_the_pair_goes_to_the_front_and_no_bit_changes(moves: str) -> None:
    model = graph(f"{moves} {PAIR}")
    before = found(model)
    assert QuantizeBeforeMoves()(model).modified
    assert ops(model)[:3] == ["Relu", "QuantizeLinear", "DequantizeLinear"]
    check(model)
    np.testing.assert_array_equal(found(model), before)
    assert not QuantizeBeforeMoves()(model).modified


def test_as_far_as_nothing_else_reads_it_it_goes() -> None:
    model = graph(f"{ROLL.replace('t =', 'y =')} {WINDOWS.replace('(x,', '(y,')} z = Relu (y) {PAIR}")
    before = found(model)
    assert QuantizeBeforeMoves()(model).modified
    assert ops(model)[3:6] == ["Concat", "QuantizeLinear", "DequantizeLinear"], "as far as y, which Relu reads"
    np.testing.assert_array_equal(found(model), before)


def test_two_roundings_of_one_tensor_stay_two() -> None:
    other = "p = QuantizeLinear (u, scale2, zero2) d = DequantizeLinear (p, scale2, zero2) logits = Sub (e, d)"
    model = graph(
        "t = Gather <axis = 1> (x, order) u = Identity (x) q = QuantizeLinear (t, scale, zero)"
        f" e = DequantizeLinear (q, scale, zero) {other}",
        scale2=np.float32(0.5),
        zero2=np.uint8(3),
    )
    before = found(model)
    assert QuantizeBeforeMoves()(model).modified
    check(model)
    assert ops(model).count("QuantizeLinear") == 2
    np.testing.assert_array_equal(found(model), before)


@pytest.mark.parametrize(
    ("body", "more"),
    [
        (f"{HEADS} {BY_CHANNEL}", {"scale": [0.02] * 24, "zero": [100] * 24}),
        (f"a, b = Split <axis = 1, num_outputs = 2> (x) t = Concat <axis = 1> (b, a) z = Relu (a) {PAIR}", {}),
        (f"y = Neg (x) t = Concat <axis = 1> (x, y) {PAIR}", {}),
        (f"t = Gather <axis = 1> (x, few) {PAIR}", {}),
        (f"t = Transpose <perm = [0, 2, 1]> (x) z = Relu (t) {PAIR}", {}),
        (f"t = Pad (x, pads, one) {PAIR}", {"one": np.float32(1.0)}),
        (f"t = Relu (x) {PAIR}", {}),
    ],
    ids=[
        "by channel",
        "part read in floats",
        "two origins",
        "fewer to round",
        "read in floats",
        "pads ones",
        "no move",
    ],
)
def test_everything_else_stays(body: str, more: dict[str, Any]) -> None:
    model = graph(body, **more)
    before = ops(model)
    assert not QuantizeBeforeMoves()(model).modified
    assert ops(model) == before


def test_what_starts_from_a_value_that_is_left_out_stays() -> None:
    model = graph(f"{HEADS} {PAIR}")
    (start,) = model.graph[0].outputs
    assert not QuantizeBeforeMoves(frozenset([start]))(model).modified
    assert QuantizeBeforeMoves(frozenset(model.graph.inputs))(model).modified
