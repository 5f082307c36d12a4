"""Integer MatMuls stay integer in ONNX Runtime, whatever the batch and whatever is added to them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
import onnxruntime as ort
import pytest
from onnx_text import check, ops, parse, run

from vitdeploy.graph.keep_integer_matmuls import KeepIntegerMatMuls
from vitdeploy.graph.plain_gemms import PlainGemms

RNG = np.random.default_rng(0)
QUANTIZED = """q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z)
    wd = DequantizeLinear <axis = 1> (w, ws, wz) p = MatMul (d, wd) """
GRAPHS = {
    "three dimensions": ("[B, 6, 8]", "a = Add (p, b) y = Relu (a)", "[B, 6, 16]"),
    "three dimensions, bias first": ("[B, 6, 8]", "a = Add (b, p) y = Relu (a)", "[B, 6, 16]"),
    "two dimensions, then Relu": ("[B, 8]", "a = Add (p, b) y = Relu (a)", "[B, 16]"),
    "two dimensions, an output": ("[B, 8]", "y = Add (p, b)", "[B, 16]"),
    "two dimensions, then Reshape": ("[B, 8]", "a = Add (p, b) y = Reshape (a, back)", "[c, 2, 16]"),
    "two dimensions, then both": ("[B, 8]", "a = Add (p, b) r = Reshape (a, back) t = Relu (a) u = Reshape (t, back) "
                                  "y = Add (r, u)", "[c, 2, 16]"),
    "two dimensions, a residual": ("[B, 8]", "r = MatMul (x, f) a = Add (r, p) y = Relu (a)", "[B, 16]"),
    "a bias of two dimensions": ("[B, 6, 8]", "a = Add (p, b2) y = Relu (a)", "[B, 6, 16]"),
    "four dimensions": ("[B, 3, 2, 8]", "a = Add (p, b) y = Relu (a)", "[B, 3, 2, 16]"),
}  # fmt: skip
CONSTANTS = {
    "s": np.float32(0.02), "z": np.int8(0), "w": RNG.integers(-127, 128, (8, 16)).astype(np.int8),
    "ws": RNG.uniform(0.01, 0.02, 16).astype(np.float32), "wz": np.zeros(16, np.int8),
    "b": RNG.standard_normal(16).astype(np.float32), "b2": RNG.standard_normal((1, 16)).astype(np.float32),
    "back": np.array([-1, 2, 16]), "f": RNG.standard_normal((8, 16)).astype(np.float32),
}  # fmt: skip


def graph(name, batch):
    shape, body, out = GRAPHS[name]
    shape, out = (text.replace("B", str(batch)) for text in (shape, out))
    text = f"g (float{shape} x) => (float{out} y) {{ {QUANTIZED} {body} }}"
    model = parse(text, **{key: value for key, value in CONSTANTS.items() if _reads(text, key)})
    common.ShapeInferencePass()(model)
    return model


def _reads(text, name):
    return any(f"{before}{name}{after}" in text for before in "( " for after in ",)")


def kernels(model: ir.Model, tmp_path: Path):
    """Return the operators of the graph that ONNX Runtime makes of it."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    return ops(ir.load(tmp_path / "optimized.onnx"))


@pytest.mark.parametrize("batch", ["B", 4])
@pytest.mark.parametrize("name", GRAPHS)
def test_the_product_is_computed_in_integers_and_no_value_changes(tmp_path: Path, name: str, batch: int | str) -> None:
    model, before = graph(name, batch), graph(name, batch)
    assert KeepIntegerMatMuls()(model).modified
    check(model)
    assert "MatMulIntegerToFloat" in kernels(model, tmp_path)
    x = RNG.standard_normal([4 if size == "B" else int(size) for size in GRAPHS[name][0][1:-1].split(", ")])
    feed = x.astype(np.float32)
    np.testing.assert_array_equal(run(model, x=feed)[0], run(before, x=feed)[0])
    assert not KeepIntegerMatMuls()(model).modified


def test_without_the_pass_a_fixed_batch_is_computed_in_fp32(tmp_path: Path) -> None:
    assert "Gemm" in kernels(graph("three dimensions", 4), tmp_path), "ONNX Runtime no longer needs KeepIntegerMatMuls"
    assert "FusedGemm" in kernels(graph("two dimensions, then Relu", "B"), tmp_path)


def test_a_float_matmul_keeps_its_bias() -> None:
    model = parse(
        "g (float[B, 6, 8] x) => (float[B, 6, 16] y) { p = MatMul (x, f) y = Add (p, b) }",
        f=CONSTANTS["f"],
        b=CONSTANTS["b"],
    )
    assert not KeepIntegerMatMuls()(model).modified


def test_a_bias_that_others_read_is_copied_once() -> None:
    text = f"""g (float[B, 6, 8] x) => (float[B, 6, 16] y) {{ {QUANTIZED} a = Add (p, b)
        wd2 = DequantizeLinear <axis = 1> (w, ws, wz) p2 = MatMul (d, wd2) a2 = Add (p2, b) t = Add (a, b)
        y = Add (t, a2) }}"""
    model = parse(text, **{key: CONSTANTS[key] for key in ("s", "z", "w", "ws", "wz", "b")})
    common.ShapeInferencePass()(model)
    KeepIntegerMatMuls()(model)
    check(model)
    assert sorted(name for name in model.graph.initializers if name.startswith("b")) == ["b", "b.wide"]


@pytest.mark.parametrize(
    ("attributes", "factors"),
    [("transB = 1, alpha = 0.5", (0.5, 1)), ("transB = 1, beta = 2.0", (1, 2)), ("transB = 1", (1, 1))],
)
def test_factors_of_a_gemm_go_into_its_constants(attributes: str, factors: tuple[float, ...]) -> None:
    def make():
        return parse(
            f"g (float[B, 8] x) => (float[B, 16] y) {{ y = Gemm <{attributes}> (x, w, b) }}",
            w=np.ascontiguousarray(CONSTANTS["f"].T), b=CONSTANTS["b"],
        )  # fmt: skip

    model, before = make(), make()
    assert PlainGemms()(model).modified is (factors != (1, 1))
    check(model)
    x = RNG.standard_normal((3, 8)).astype(np.float32)
    np.testing.assert_allclose(run(model, x=x)[0], run(before, x=x)[0], rtol=1e-5, atol=1e-6)
    scales = model.graph[0].attributes
    assert [scales[name].as_float() for name in ("alpha", "beta") if name in scales] in ([], [1.0])
    assert not PlainGemms()(model).modified
