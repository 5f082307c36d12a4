"""Find what the classifier's head reads: the features of an image, one vector each."""

from __future__ import annotations

import onnx_ir as ir

from vitdeploy.errors import GraphError
from vitdeploy.graph.values import is_constant

_AFTER_HEAD = frozenset(("Identity", "Cast", "Softmax", "Sigmoid"))
_OF_WEIGHT = frozenset(("Identity", "Cast", "Transpose", "QuantizeLinear", "DequantizeLinear"))
_BEFORE_HEAD = frozenset(("Identity", "Cast", "QuantizeLinear", "DequantizeLinear"))


def find_head_input(model: ir.Model) -> ir.Value:
    """Return the tensor, [B, D], that the last linear layer of a classifier reads, before any Q/DQ or cast.

    The way leads back from the one output over an activation and a bias to a MatMul or Gemm with a constant weight.
    Anything else on it (two heads whose logits are averaged, a pooling after the head, a convolution) has no such
    tensor, and is refused rather than guessed.

    Raises:
        GraphError: The logits are not those of one linear layer; the line names the operator that stands in the way.
    """
    outputs = model.graph.outputs
    if len(outputs) != 1:
        raise GraphError(f"the graph has {len(outputs)} outputs, expected one, whose head reads the features")
    value = _back(outputs[0], _AFTER_HEAD)
    node = value.producer()
    if node is not None and node.op_type == "Add":
        value = _back(_other_than_constant(node), _AFTER_HEAD)
        node = value.producer()
    if node is None or node.domain or node.op_type not in ("MatMul", "Gemm") or not _is_weight(node.inputs[1]):
        what = "an input" if node is None else f"{node.op_type} node {node.name!r}"
        raise GraphError(
            f"the logits come from {what}, not from one linear layer, so there is no tensor that is the features: "
            "export the model with task 'features', or without its head"
        )
    transposed = node.attributes.get("transA")
    data = node.inputs[0]
    if data is None or is_constant(data) or (transposed is not None and transposed.as_int()):
        raise GraphError(f"the head {node.name!r} does not read one row per image, so its input is not the features")
    return _back(data, _BEFORE_HEAD)


def _back(value: ir.Value, over: frozenset[str]) -> ir.Value:
    while (node := value.producer()) is not None and node.op_type in over and not node.domain:
        source = node.inputs[0]
        if source is None:
            break
        value = source
    return value


def _other_than_constant(add: ir.Node) -> ir.Value:
    computed = [value for value in add.inputs if value is not None and not is_constant(value)]
    if len(computed) != 1:
        raise GraphError(
            f"the logits are a sum of several tensors ({add.name!r}), as of a model with two heads: there is no tensor "
            "that is the features"
        )
    return computed[0]


def _is_weight(value: ir.Value | None) -> bool:
    return value is not None and is_constant(_back(value, _OF_WEIGHT))
