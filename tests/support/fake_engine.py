"""An engine of ``fake_tensorrt``: a graph that ONNX Runtime runs, and its layers as the inspector reports them."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import onnx

PRODUCTS = ("MatMul", "Gemm", "Conv", "Einsum")
NUMPY_TYPES: dict[str, Any] = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "INT8": np.int8,
    "UINT8": np.uint8,
    "INT32": np.int32,
    "INT64": np.int64,
    "BOOL": np.bool_,
}


def run_graph(engine: Any, shapes: dict[str, Any], addresses: dict[str, int], record: Any) -> None:
    feed = {}
    for name in engine._inputs:
        kind = NUMPY_TYPES[engine.get_tensor_dtype(name).name]
        size = int(np.prod(shapes[name])) * np.dtype(kind).itemsize
        feed[name] = np.frombuffer(record.cuda.read(addresses[name], size), kind).reshape(shapes[name])
    for name, result in zip(engine._outputs, engine._session.run(None, feed), strict=True):
        result = np.zeros_like(result) if record.fault == "zeros" else np.ascontiguousarray(result)
        record.cuda.write(addresses[name], ctypes.string_at(result.ctypes.data, result.nbytes))


def layers_of(model: Any, forced: str, eleven: bool) -> list[dict[str, Any]]:
    """Return the layers of an engine of a graph as the inspector tells them: a product each, and what is between them.

    A product whose operands come from DequantizeLinear runs in 8 bits. ``forced`` "dequantized" is what TensorRT #3784
    shows: kernels that read 8 bits and write FP16, and products in FP16 behind them.
    """
    graph = model.graph
    makers = {output: node for node in graph.node for output in node.output}
    weights = {tensor.name: tensor.data_type for tensor in graph.initializer}
    half = any(kind == onnx.TensorProto.FLOAT16 for kind in weights.values())

    def tensor(kind: str) -> dict[str, Any]:
        if eleven:
            return {"Name": "t", "Dimensions": [1, 16, 32], "Format": "Row major linear", "DataType": kind.upper()}
        spelled = {"fp32": "Float", "fp16": "Half", "int8": "Int8", "fp8": "FP8"}[kind]
        return {"Name": "t", "Dimensions": [1, 16, 32], "Format/Datatype": spelled}

    def layer(name: str, kind: str, source: str, ends: tuple[str, str], tactic: str) -> dict[str, Any]:
        return {
            "Name": name,
            "LayerType": kind,
            "Inputs": [tensor(ends[0])],
            "Outputs": [tensor(ends[1])],
            "TacticName": tactic,
            "StreamId": 0,
            "Metadata": f"[ONNX Layer: {source}]",
        }

    high = "fp16" if half else "fp32"
    found: list[dict[str, Any]] = [layer("reformat", "Reformat", "", ("fp32", high), "")]
    for index, node in enumerate(node for node in graph.node if node.op_type in PRODUCTS):
        kind = high
        behind = [makers[name] for name in node.input if name in makers]
        if len([one for one in behind if one.op_type == "DequantizeLinear"]) >= 2:
            stored = {weights.get(one.input[2]) for one in behind if len(one.input) > 2}
            kind = "fp8" if onnx.TensorProto.FLOAT8E4M3FN in stored else "int8"
        if forced == "dequantized" and kind in ("int8", "fp8"):
            found.append(layer(f"__myl_CastMul_myl0_{index}", "kgen", node.name, (kind, high), "__myl_CastMul_0x12"))
            kind = high
        elif forced and forced != "dequantized":
            kind = forced
        spelled = {"fp32": "f32f32_f32f32_f32", "fp16": "f16f16_f16f16_f16", "int8": "i8i8_i8i32_f32"}
        title = "fprop_implicit_gemm" if node.op_type == "Conv" else "gemm"
        tactic = f"sm80_xmma_{title}_{spelled.get(kind, 'e4m3e4m3_e4m3f32_f32')}_tn_n_tilesize64x64x64"
        layer_type = "CaskConvolution" if node.op_type == "Conv" else "gemm"
        found.append(layer(f"{node.name}_myl0_{index}", layer_type, node.name, (kind, high), tactic))
        found.append(layer(f"__myl_Norm_myl0_{index}", "kgen", node.name, (high, kind), "__myl_Norm_0x34"))
    return found
