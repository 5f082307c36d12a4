"""A linear in front of an 8-bit convolution becomes one of 1×1, which hands on bytes; near misses stay."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
import onnxruntime as ort
import pytest
from onnx_text import check, ops, parse, run

from vitdeploy.graph.convolve_linears import ConvolveLinears

RNG = np.random.default_rng(0)
LINEAR = """q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z)
    wd = DequantizeLinear <axis = 1> (w, ws, wz) p = MatMul (d, wd) """
SUM = "a = Add (p, b) "
PAIR = "aq = QuantizeLinear (a, s2, z2) ad = DequantizeLinear (aq, s2, z2) "
MAP = "r = Reshape (ad, size) t = Transpose <perm = [0, 3, 1, 2]> (r) "
KERNEL = "kd = DequantizeLinear <axis = 0> (k, ks, kz) "
CONVOLUTION = """c = Conv <group = 16, kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (t, kd, kb)
    cq = QuantizeLinear (c, s2, z2) y = DequantizeLinear (cq, s2, z2)"""
WHOLE = LINEAR + SUM + PAIR + MAP + KERNEL + CONVOLUTION
CONSTANTS = {
    "s": np.float32(0.02), "z": np.uint8(120), "w": RNG.integers(-60, 61, (8, 16)).astype(np.int8),
    "ws": RNG.uniform(0.01, 0.02, 16).astype(np.float32), "wz": np.zeros(16, np.int8),
    "b": RNG.standard_normal(16).astype(np.float32), "s2": np.float32(0.05), "z2": np.uint8(128),
    "size": np.array([-1, 3, 2, 16]), "k": RNG.integers(-127, 128, (16, 1, 3, 3)).astype(np.int8),
    "ks": RNG.uniform(0.001, 0.002, 16).astype(np.float32), "kz": np.zeros(16, np.int8),
    "kb": RNG.standard_normal(16).astype(np.float32),
    "kf": np.zeros((16, 1, 3, 3), np.float32),
}  # fmt: skip
SHAPES = {"y": "[B, 16, 3, 2]", "u": "[B, 6, 16]"}
FITTING = {
    "a bias": WHOLE,
    "a bias first": WHOLE.replace("Add (p, b)", "Add (b, p)"),
    "no bias": WHOLE.replace(SUM, "").replace("(a, s2", "(p, s2"),
}
NEAR_MISSES = {
    "the sum has another reader": WHOLE.replace(PAIR, f"{PAIR} u = Relu (a) "),
    "the rounded sum has another reader": WHOLE.replace(PAIR, f"{PAIR} u = Relu (ad) "),
    "a convolution in FP32": WHOLE.replace(KERNEL, "").replace("(t, kd, kb)", "(t, kf, kb)"),
    "a linear in FP32": WHOLE.replace("MatMul (d, wd)", "MatMul (x, wd)"),
    "another order of axes": WHOLE.replace("[0, 3, 1, 2]", "[0, 3, 2, 1]"),
    "a GELU between": WHOLE.replace(PAIR, PAIR.replace("(a, s2", "(g, s2").replace("aq =", "g = Relu (a) aq =")),
}


def graph(text: str) -> ir.Model:
    outputs = [name for name in SHAPES if f"{name} = " in text]
    results = ", ".join(f"float{SHAPES[name]} {name}" for name in outputs)
    results = results.replace("16, 3, 2", "16, 2, 3") if "[0, 3, 2, 1]" in text else results
    read = {name: array for name, array in CONSTANTS.items() if re.search(rf"[ (]{name}[,)]", text)}
    model = parse(f"g (float[B, 6, 8] x) => ({results}) {{ {text} }}", **read)
    common.ShapeInferencePass()(model)
    return model


@pytest.mark.parametrize("name", FITTING)
def test_it_computes_the_same_in_one_kernel(name: str, tmp_path: Path) -> None:
    before, after = graph(FITTING[name]), graph(FITTING[name])
    assert ConvolveLinears()(after).modified
    check(after)
    counts = Counter(ops(after))
    assert (counts["MatMul"], counts["Add"], counts["Conv"]) == (0, 0, 2)
    assert counts["DequantizeLinear"] == ops(before).count("DequantizeLinear"), "nothing that is not read stays"
    feed = RNG.standard_normal((5, 6, 8)).astype(np.float32)
    np.testing.assert_allclose(run(after, x=feed)[0], run(before, x=feed)[0], atol=0.051)  # a step, at a tie
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(ir.to_proto(after).SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert ops(ir.load(tmp_path / "optimized.onnx")).count("QLinearConv") == 2
    assert not ConvolveLinears()(after).modified


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_a_near_miss_stays(name: str) -> None:
    model = graph(NEAR_MISSES[name])
    before = ops(model)
    assert not ConvolveLinears()(model).modified
    assert ops(model) == before
