"""Faults of ONNX Runtime releases that change results silently, found by probing the installed one."""

from __future__ import annotations

import functools

import numpy as np


@functools.cache
def truncates_fp16_quantize() -> bool:
    """Return whether the CPU's QuantizeLinear truncates FP16 inputs where it must round half to even.

    ONNX Runtime 1.23.2 does: every second integer is one too small in magnitude, which costs INT8 graphs with an FP16
    remainder several dB of logits SQNR; 1.32.0 rounds.
    """
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper

    x = np.array([0.9, 1.9, -0.9, 2.5], np.float16)
    node = helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"])
    graph = helper.make_graph(
        [node],
        "probe",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, [len(x)])],
        [helper.make_tensor_value_info("q", TensorProto.INT8, [len(x)])],
        [
            helper.make_tensor("scale", TensorProto.FLOAT16, [], np.ones(1, np.float16)),
            helper.make_tensor("zero", TensorProto.INT8, [], [0]),
        ],
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": x})
    return found.tolist() != [1, 2, -1, 2]
