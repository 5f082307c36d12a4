"""Q/DQ graphs node by node in NumPy: quantization by arithmetic of our own, all else by ONNX's reference operators.

ONNX's definition, without a runtime's fusions, integer kernels or casts (operator specification, QuantizeLinear 21:
saturate(round(x / scale) + zero point), rounding half to even). FP16 nodes compute in FP32 and round once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

Array = NDArray[Any]
FP8_MAX = 448.0
LIMITS = {"int8": (-128, 127), "uint8": (0, 255)}


def along(vector: Array, axis: int, rank: int) -> Array:
    """Shape a scale or zero point so that it broadcasts along ``axis``."""
    shape = [1] * rank
    if vector.size > 1:
        shape[axis] = vector.size
    return vector.reshape(shape).astype(np.float64)


def quantized(x: Array, scale: Array, zero: Array | None = None, axis: int = 1) -> Array:
    """Return x in 8 bits of the zero point's type (uint8 where there is none)."""
    dtype = np.dtype(np.uint8) if zero is None else zero.dtype
    steps = x.astype(np.float64) / along(scale, axis, x.ndim)
    if dtype == ml_dtypes.float8_e4m3fn:
        return np.clip(steps, -FP8_MAX, FP8_MAX).astype(np.float32).astype(dtype)
    offset = 0 if zero is None else along(zero, axis, x.ndim)
    return np.clip(np.rint(steps) + offset, *LIMITS[dtype.name]).astype(dtype)


def dequantized(q: Array, scale: Array, zero: Array | None = None, axis: int = 1) -> Array:
    """Return the values that integers stand for, in the type of the scale."""
    offset = 0 if zero is None else along(zero, axis, q.ndim)
    values = (q.astype(np.float64) - offset) * along(scale, axis, q.ndim)
    return values.astype(scale.dtype)


def execute(model: ir.Model, images: Array, known: Mapping[str, Array] | None = None) -> dict[str, Array]:
    """Return the value of every tensor of a graph with one input, by name.

    With ``known``, values of tensors as a runtime computed them, each node reads these in place of its own inputs, so
    that the result of every node is that of exactly what the runtime's node read.
    """
    known = known or {}
    (entry,) = (value for value in model.graph.inputs if not value.is_initializer())
    half = entry.dtype == ir.DataType.FLOAT16
    found: dict[str, Array] = {str(entry.name): images.astype(np.float16 if half else np.float32)}
    for name, value in model.graph.initializers.items():
        assert value.const_value is not None
        found[name] = value.const_value.numpy()
    for node in model.graph:
        names = [None if value is None else str(value.name) for value in node.inputs]
        inputs = [None if name is None else known.get(name, found[name]) for name in names]
        for value, array in zip(node.outputs, _outputs(node, inputs, model.opset_imports), strict=True):
            found[str(value.name)] = array
    return found


def _outputs(node: ir.Node, inputs: list[Array | None], opsets: dict[str, int]) -> list[Array]:
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        x, scale, zero = [*inputs, None][:3]
        assert x is not None
        assert scale is not None
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
        return [(quantized if node.op_type == "QuantizeLinear" else dequantized)(x, scale, zero, axis)]
    in_half = any(array is not None and array.dtype == np.float16 for array in inputs)
    proto = ir.serde.serialize_node(node)
    feeds = {
        str(value.name): array.astype(np.float32) if array.dtype == np.float16 else array
        for value, array in zip(node.inputs, inputs, strict=True)
        if value is not None and array is not None
    }
    declared = [
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), None)
        for name, array in feeds.items()
    ]
    results = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UNDEFINED, None) for name in proto.output]
    imports = [onnx.helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    graph = onnx.helper.make_graph([proto], "node", declared, results)
    found = ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=imports)).run(None, feeds)
    assert isinstance(found, list)
    arrays = [np.asarray(array) for array in found]
    if not in_half or node.op_type == "Cast":
        return arrays
    return [array.astype(np.float16) if array.dtype == np.float32 else array for array in arrays]
