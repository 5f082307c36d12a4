"""The same integers from FP32 as QuantizeLinear defines them for FP16."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from vitdeploy.backends.onnxruntime import open_graph
from vitdeploy.graph.quantize_in_float32 import QuantizeInFloat32


def pair_in_fp16(scale: float) -> ir.Model:
    """A Q/DQ pair with an FP16 scale that both nodes read, twice, on one input [N]."""
    nodes = []
    for index in range(2):
        nodes.append(helper.make_node("QuantizeLinear", ["x", "scale", "zero"], [f"q{index}"], f"quantize{index}"))
        nodes.append(helper.make_node("DequantizeLinear", [f"q{index}", "scale", "zero"], [f"y{index}"]))
    graph = helper.make_graph(
        nodes,
        "pairs",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["N"])],
        [helper.make_tensor_value_info(f"y{index}", TensorProto.FLOAT16, ["N"]) for index in range(2)],
        [
            helper.make_tensor("scale", TensorProto.FLOAT16, [], np.array([scale], np.float16)),
            helper.make_tensor("zero", TensorProto.INT8, [], [0]),
        ],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


def test_integers_are_rounded_half_to_even_whatever_the_runtime_does_in_fp16() -> None:
    scale = np.float16(0.0213)
    x = np.random.default_rng(0).normal(0, 1, 4096).astype(np.float16)
    expected = np.clip(np.rint(x.astype(np.float32) / np.float32(scale)), -128, 127)
    model = pair_in_fp16(float(scale))
    with open_graph(model) as session:  # widened by itself where the installed ONNX Runtime truncates
        opened = session.run({"x": x})["y0"]
    QuantizeInFloat32()(model)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    widened = ReferenceEvaluator(proto).run(["y1"], {"x": x})[0]
    for found in (opened, widened):
        assert np.array_equal(np.rint(found.astype(np.float32) / np.float32(scale)), expected)


def test_one_wide_scale_serves_all_and_dequantize_keeps_its_own() -> None:
    model = pair_in_fp16(0.5)
    QuantizeInFloat32()(model)
    assert [name for name in model.graph.initializers if "float32" in name] == ["scale.float32"]
    for node in model.graph:
        wanted = {"QuantizeLinear": ir.DataType.FLOAT, "DequantizeLinear": ir.DataType.FLOAT16}.get(node.op_type)
        assert wanted is None or node.inputs[1].dtype == wanted


def test_a_graph_with_float32_scales_is_left_alone() -> None:
    model = pair_in_fp16(0.5)
    QuantizeInFloat32()(model)
    nodes = [node.name for node in model.graph]
    assert not QuantizeInFloat32()(model).modified
    assert [node.name for node in model.graph] == nodes
