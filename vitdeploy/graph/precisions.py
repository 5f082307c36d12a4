"""In which precision each node of a graph computes, as its types and Q/DQ pairs say."""

from __future__ import annotations

from collections import Counter
from typing import Literal

import onnx_ir as ir
import onnx_ir.passes.common as common

from vitdeploy.graph.quiet import quiet
from vitdeploy.graph.values import DATA_MOVEMENT, array_of, is_constant
from vitdeploy.records import Precision

NodeKind = Literal["fp32", "fp16", "bf16", "int8", "int8-weight-only", "fp8", "other"]

_NOT_COUNTED = DATA_MOVEMENT | {"Cast", "Constant", "QuantizeLinear", "DequantizeLinear", "Shape", "ConstantOfShape"}
INTEGER_PRODUCTS = frozenset(
    ("MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv", "QGemm", "DynamicQuantizeMatMul",
     "MatMulIntegerToFloat", "QAttention", "QLinearAdd", "QLinearMul")
)  # fmt: skip
_WEIGHT_ONLY_PRODUCTS = frozenset(("MatMulNBits", "MatMulBnb4"))
PRODUCTS = (
    frozenset(("MatMul", "Gemm", "Conv", "FusedMatMul", "FusedGemm", "FusedConv", "Attention", "MultiHeadAttention"))
    | INTEGER_PRODUCTS
    | _WEIGHT_ONLY_PRODUCTS
)
_FLOATS: dict[ir.DataType, NodeKind] = {
    ir.DataType.FLOAT: "fp32",
    ir.DataType.FLOAT16: "fp16",
    ir.DataType.BFLOAT16: "bf16",
}
_QUANTIZED: dict[ir.DataType, NodeKind] = {
    ir.DataType.INT8: "int8",
    ir.DataType.UINT8: "int8",
    ir.DataType.FLOAT8E4M3FN: "fp8",
    ir.DataType.FLOAT8E5M2: "fp8",
}


def count_precisions(model: ir.Model, *, products_only: bool = False) -> dict[str, int]:
    """Return how many computing nodes run in each precision; data movement, casts and Q/DQ themselves do not count.

    A node whose float operands all come from DequantizeLinear is int8 or fp8, one of whose operands only the weight
    does is weight-only: that is how TensorRT and ONNX Runtime read a graph. Types are inferred where the file leaves
    them out.
    """
    _infer_types(model)
    counts = Counter(
        node_precision(node)
        for node in model.graph
        if node.op_type not in _NOT_COUNTED
        and (_computes_floats(node) or node.op_type in INTEGER_PRODUCTS)
        and (not products_only or node.op_type in PRODUCTS)
    )
    return dict(sorted(counts.items()))


def quantized_products(model: ir.Model) -> list[ir.Node]:
    """Return the MatMul, Gemm and Conv nodes whose operands are dequantized 8-bit integers, in graph order.

    Products that a lowered graph already has as an integer operator count too, and so do those of integers that were
    multiplied by one number in between, as the scale of an attention is: OpenVINO multiplies afterwards.
    """
    _infer_types(model)
    names = ("MatMul", "Gemm", "Conv")
    return [
        node
        for node in model.graph
        if (node.op_type in names and not node.domain and node_precision(node, scaled=True) == "int8")
        or node.op_type == "MatMulIntegerToFloat"
    ]


def has_unsigned_activations(model: ir.Model) -> bool:
    """Return whether a QuantizeLinear gives uint8, explicitly or because it has no zero point."""
    zeros = [
        node.inputs[2] if len(node.inputs) > 2 else None for node in model.graph if node.op_type == "QuantizeLinear"
    ]
    return any(zero is None or zero.dtype == ir.DataType.UINT8 for zero in zeros)


def graph_precision(model: ir.Model) -> Precision:
    """Return what a graph as a whole is, as a manifest records it.

    A graph with integer or FP8 products is of that kind, whatever the rest is; one with FP16 products is FP16, however
    many islands of FP32 it has. FP32 and BF16 products together, or others, are ``mixed``.
    """
    counts = count_precisions(model, products_only=True) or count_precisions(model)
    kinds: tuple[Precision, ...] = ("int8", "fp8", "int8-weight-only", "fp16")
    for kind in kinds:
        if counts.get(kind):
            return kind
    return "mixed" if counts.get("bf16") or counts.get("other") else "fp32"


def _infer_types(model: ir.Model) -> None:
    if any(value.dtype is None for node in model.graph for value in node.outputs):
        with quiet():
            common.ShapeInferencePass(check_type=False, strict_mode=False)(model)


def node_precision(node: ir.Node, *, scaled: bool = False) -> str:
    """Return the precision of one node; ``scaled`` operands are integers too where one number multiplies them."""
    if node.op_type in INTEGER_PRODUCTS:
        return "int8"
    if node.op_type in _WEIGHT_ONLY_PRODUCTS:
        return "int8-weight-only"
    operands = [value for value in node.inputs[:2] if value is not None]
    stored = [_stored_type(value, scaled) for value in operands]
    integer = [kind for kind in stored if kind is not None]
    if integer and len(integer) == len(operands):
        return _QUANTIZED.get(integer[0], "other")
    if integer and any(kind is not None and _weight(value) for kind, value in zip(stored, operands, strict=True)):
        return "int8-weight-only" if _QUANTIZED.get(integer[0]) == "int8" else "other"
    kinds = [value.dtype for value in (*node.outputs, *operands) if value.dtype in _FLOATS]
    return _FLOATS[kinds[0]] if kinds and kinds[0] is not None else "other"


def _computes_floats(node: ir.Node) -> bool:
    values = [value for value in (*node.inputs, *node.outputs) if value is not None]
    return any(value.dtype in _FLOATS for value in values)


def _stored_type(value: ir.Value, scaled: bool) -> ir.DataType | None:
    """Return the type that a value has before its DequantizeLinear, None where it has none."""
    node = value.producer()
    while node is not None and (node.op_type in DATA_MOVEMENT | {"Cast"} or (scaled and _scales(node))):
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    if node is None or node.op_type != "DequantizeLinear" or node.inputs[0] is None:
        return None
    return node.inputs[0].dtype


def _scales(node: ir.Node) -> bool:
    """Return whether a node multiplies its first input by one number."""
    factor = array_of(node.inputs[1]) if node.op_type in ("Mul", "Div") else None
    return factor is not None and factor.size == 1


def _weight(value: ir.Value) -> bool:
    node = value.producer()
    while node is not None and node.op_type != "DequantizeLinear":
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    return node is not None and is_constant(node.inputs[0])
