"""Graphs as ONNX text, and the ways in which a rewritten one is held against the original."""

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort


def parse(text: str, opset: int = 20, **constants: Any) -> ir.Model:
    """Parse ``g (float[N, 4] x) => (float[N, 4] y) { … }``; keyword arguments become initializers.

    Text without a signature is the body of a graph from ``input`` to ``logits``, both [batch, 4].
    """
    if "=>" not in text:
        text = f"g (float[batch, 4] input) => (float[batch, 4] logits) {{ {text} }}"
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : {opset}]>\n{text}')
    for name, array in constants.items():
        add_constant(model, name, array)
    return model


def add_constant(model: ir.Model, name: str, array: Any) -> None:
    tensor = ir.tensor(np.asarray(array), name=name)
    value = next((v for node in model.graph for v in node.inputs if v is not None and v.name == name), None)
    assert value is not None, name
    value.const_value, value.shape, value.dtype = tensor, ir.Shape(np.shape(array)), tensor.dtype
    model.graph.register_initializer(value)


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def check(model: ir.Model) -> None:
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def run(model: ir.Model, **feed: Any) -> list[Any]:
    """Return the outputs under ONNX Runtime with its own optimizations off, so that the graph as written is judged."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = ir.to_proto(model).SerializeToString()
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"]).run(None, feed)
