"""The census tells which 8-bit products a runtime multiplies in integers, and why it does not."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
import pytest
from foreign_onnx import write_foreign
from onnx_text import parse
from small_vit import write_small_vit

from vitdeploy.backends.onnxruntime import OnnxRuntimeSession
from vitdeploy.cli.inspect import describe
from vitdeploy.errors import UsageError
from vitdeploy.measure.census import take_census
from vitdeploy.records import FloatProduct, OperatorCensus
from vitdeploy.sessions import SessionOptions
from vitdeploy.stages.inspect import Runtime, inspect

RNG = np.random.default_rng(0)


def census(path: Path, body: str, zero: np.integer, batch: int | str = "N") -> OperatorCensus:
    """Take the census of x → QuantizeLinear → DequantizeLinear (d) → ``body``, whose weights are ``w1`` and ``w2``."""
    weights = " ".join(
        f"{name} = DequantizeLinear <axis = 1> ({name}q, ws, wz)" for name in ("w1", "w2") if name in body
    )
    text = f"""g (float[{batch}, 6, 8] x) => (float[{batch}, 6, 16] y) {{
        q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z) {weights} {body} }}"""
    constants = {
        "s": np.float32(0.02), "z": zero, "b": RNG.standard_normal(16).astype(np.float32),
        "ws": np.full(16, 0.01, np.float32), "wz": np.zeros(16, np.int8),
        "w1q": RNG.integers(-127, 128, (8, 16)).astype(np.int8),
        "w2q": RNG.integers(-127, 128, (8, 16)).astype(np.int8),
    }  # fmt: skip
    used = set(re.findall(r"\w+", text))
    model = parse(text, **{name: array for name, array in constants.items() if name in used})
    for node in model.graph:
        node.name = f"{node.outputs[0].name}/{node.op_type}"
    common.ShapeInferencePass()(model)
    ir.save(model, path / "graph.onnx")
    with OnnxRuntimeSession(str(path / "graph.onnx"), SessionOptions(provider="cpu")) as session:
        kernels = session.kernels()
    assert kernels is not None
    return take_census(model, kernels, "onnxruntime", "1")


def test_a_product_with_a_bias_of_a_fixed_batch_becomes_a_gemm_in_fp32(tmp_path: Path) -> None:
    found = census(tmp_path, "p = MatMul (d, w1) y = Add (p, b)", np.uint8(128), batch=4)
    assert (found.planned, found.integer) == (1, 0)
    assert found.floating[0].node == "p/MatMul"
    assert found.floating[0].kernel == "Gemm fp32"
    assert "int32 biases only" in found.floating[0].reason


@pytest.mark.parametrize(("zero", "integer"), [(np.int8(0), 0), (np.uint8(128), 2)])
def test_linears_that_share_a_signed_activation_run_in_fp32(tmp_path: Path, zero: np.integer, integer: int) -> None:
    found = census(tmp_path, "p = MatMul (d, w1) k = MatMul (d, w2) y = Add (p, k)", zero)
    assert (found.planned, found.integer) == (2, integer)
    assert [one.reason for one in found.floating] == ["its activation is signed and several nodes read it"] * (
        2 - integer
    )
    assert found.kernels == {"MatMulIntegerToFloat int8": 2} if integer else {"MatMul fp32": 2}


def test_what_is_not_quantized_is_not_planned(tmp_path: Path) -> None:
    found = census(
        tmp_path,
        "p = MatMul (d, w1) t = Transpose <perm = [0, 2, 1]> (p) m = MatMul (p, t) y = MatMul (m, p)",
        np.uint8(128),
    )
    assert (found.planned, found.integer, found.conversions) == (1, 1, 1)
    assert found.kernels["MatMulIntegerToFloat int8"] == 1
    assert sum(found.kernels.values()) == 3


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_inspect_says_it_of_a_quantized_file(tmp_path: Path, runtime: Runtime) -> None:
    if runtime == "openvino":
        pytest.importorskip("openvino", reason="openvino is an extra: pip install 'vitdeploy[openvino]'")
    model = write_small_vit(tmp_path / "int8.onnx", "int8")
    found = inspect(model, runtime=runtime)
    assert found.census is not None
    assert (found.census.runtime, found.census.planned) == (runtime, 8)
    title = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}[runtime]
    text = dict(describe(found))["runs in"]
    assert text.startswith(f"{title} {found.census.version}: {found.census.integer} of 8 8-bit products in integers")
    assert inspect(model).census is None


def test_a_graph_without_integers_has_nothing_to_count(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no 8-bit products, so there is nothing to count"):
        inspect(write_small_vit(tmp_path / "fp32.onnx"), runtime="onnxruntime")
    with pytest.raises(UsageError, match="has no 8-bit products"):
        inspect(write_foreign(tmp_path / "foreign.onnx"), runtime="onnxruntime")


def test_what_runs_in_floats_is_a_line_each(tmp_path: Path) -> None:
    model = write_small_vit(tmp_path / "int8.onnx", "int8")
    one = FloatProduct(node="blocks.0/MatMul", kernel="", reason="no kernel names it")
    census = OperatorCensus(runtime="openvino", version="1", planned=2, integer=1, floating=(one,))
    lines = describe(inspect(model).model_copy(update={"census": census}))
    assert ("in floats", "blocks.0/MatMul as unknown: no kernel names it") in lines
