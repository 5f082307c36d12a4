"""What a graph computes of sizes: small constant tensors, followed through the operators that are used for them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Array = NDArray[Any]
LARGEST = 64
"""Elements: more are no sizes."""


class SmallValues:
    """Constants of at most ``LARGEST`` elements, given and computed; ``visit`` is called for each node in order."""

    def __init__(self) -> None:
        self._known: dict[ir.Value, Array] = {}

    def of(self, value: ir.Value | None) -> Array | None:
        """Return the elements of a value, None for data, and for what is fed."""
        if value is None:
            return None
        if value not in self._known and (array := _stated(value)) is not None:
            self._known[value] = array
        return self._known.get(value)

    def visit(self, node: ir.Node) -> None:
        """Compute the node's output where its inputs are known."""
        rule = _RULES.get(node.op_type)
        if rule is None or node.domain or len(node.outputs) != 1:
            return
        read = self._shape_of if node.op_type in ("Shape", "Size") else self.of
        inputs = [array for value in node.inputs if value is not None and (array := read(value)) is not None]
        if len(inputs) < sum(value is not None for value in node.inputs):
            return
        try:
            with np.errstate(all="ignore"):
                found = rule(node, inputs)
        except (ValueError, IndexError, TypeError, OverflowError, ZeroDivisionError, np.exceptions.AxisError):
            return  # not what the operator allows: the runtime will say so
        if found is not None and np.asarray(found).size <= LARGEST:
            self._known[node.outputs[0]] = np.asarray(found)

    def _shape_of(self, value: ir.Value) -> Array | None:
        known = self.of(value)
        sizes = list(known.shape) if known is not None else static_shape(value, None)
        return None if sizes is None else np.asarray(sizes, np.int64)


def static_shape(value: ir.Value, unknown: int | None = 1) -> list[int] | None:
    """Return the sizes of a value with ``unknown`` for each that is not static; None where the rank is not known.

    With ``unknown=None`` a single size that is not static makes all of them unknown.
    """
    if value.shape is None:
        return None
    sizes = [size if isinstance(size, int) else unknown for size in value.shape]
    return None if any(size is None for size in sizes) else [int(size) for size in sizes if size is not None]


def _stated(value: ir.Value) -> Array | None:
    tensor = value.const_value
    producer = value.producer()
    if tensor is None and producer is not None and producer.op_type == "Constant" and not producer.domain:
        attribute = next(iter(producer.attributes.values()), None)
        if attribute is None:
            return None
        if attribute.type in (ir.AttributeType.INT, ir.AttributeType.FLOAT):
            return np.asarray(attribute.value)
        if attribute.type in (ir.AttributeType.INTS, ir.AttributeType.FLOATS):
            return np.asarray(attribute.value) if len(attribute.value) <= LARGEST else None
        tensor = attribute.value if attribute.type == ir.AttributeType.TENSOR else None
    if tensor is None or tensor.size > LARGEST or tensor.dtype == ir.DataType.STRING:
        return None
    return tensor.numpy()


def _axis(node: ir.Node, default: int) -> int:
    attribute = node.attributes.get("axis")
    return default if attribute is None else attribute.as_int()


def _axes(node: ir.Node, inputs: list[Array]) -> tuple[int, ...] | None:
    attribute = node.attributes.get("axes")
    if attribute is not None:
        return tuple(attribute.as_ints())
    return tuple(int(axis) for axis in inputs[1].reshape(-1)) if len(inputs) > 1 else None


def _kept(node: ir.Node) -> bool:
    attribute = node.attributes.get("keepdims")
    return attribute is None or bool(attribute.as_int())


def _cast(node: ir.Node, inputs: list[Array]) -> Array:
    return inputs[0].astype(ir.DataType(node.attributes["to"].as_int()).numpy())


def _divided(_node: ir.Node, inputs: list[Array]) -> Array:
    left, right = inputs
    if np.issubdtype(left.dtype, np.integer):
        return np.trunc(left / right).astype(left.dtype) if np.all(right) else np.zeros_like(left)
    return np.asarray(left / right)


def _unsqueezed(node: ir.Node, inputs: list[Array]) -> Array:
    return np.expand_dims(inputs[0], _axes(node, inputs) or ())


def _squeezed(node: ir.Node, inputs: list[Array]) -> Array:
    return np.squeeze(inputs[0], axis=_axes(node, inputs))


def _sliced(node: ir.Node, inputs: list[Array]) -> Array | None:
    if inputs[0].ndim != 1 or len(inputs) < 3:
        return None
    start, end = (int(bound.reshape(-1)[0]) for bound in inputs[1:3])
    step = int(inputs[4].reshape(-1)[0]) if len(inputs) > 4 else 1
    return inputs[0][slice(start, None if step < 0 and end < -len(inputs[0]) else end, step)]


def _filled(node: ir.Node, inputs: list[Array]) -> Array | None:
    sizes = [int(size) for size in inputs[0].reshape(-1)]
    if math.prod(sizes) > LARGEST:
        return None
    attribute = node.attributes.get("value")
    value = np.float32(0) if attribute is None else attribute.as_tensor().numpy().reshape(-1)[0]
    return np.full(sizes, value)


def _expanded(_node: ir.Node, inputs: list[Array]) -> Array | None:
    sizes = [int(size) for size in inputs[1].reshape(-1)]
    if math.prod(max(1, size) for size in sizes) * inputs[0].size > LARGEST:
        return None
    return np.asarray(inputs[0] * np.ones(sizes, inputs[0].dtype))


def _ranged(_node: ir.Node, inputs: list[Array]) -> Array | None:
    start, end, step = (array.reshape(()).item() for array in inputs)
    return np.arange(start, end, step) if step and abs((end - start) / step) <= LARGEST else None


def _reduced(compute: Callable[..., Any]) -> Callable[[ir.Node, list[Array]], Array]:
    def rule(node: ir.Node, inputs: list[Array]) -> Array:
        return np.asarray(compute(inputs[0], axis=_axes(node, inputs), keepdims=_kept(node)))

    return rule


def _elementwise(compute: Callable[..., Any]) -> Callable[[ir.Node, list[Array]], Array]:
    def rule(_node: ir.Node, inputs: list[Array]) -> Array:
        found = inputs[0] if len(inputs) > 1 else compute(inputs[0])
        for other in inputs[1:]:
            found = compute(found, other)
        return np.asarray(found)

    return rule


_RULES: dict[str, Callable[[ir.Node, list[Array]], Array | None]] = {
    "Identity": lambda _node, inputs: inputs[0],
    "Cast": _cast,
    "Concat": lambda node, inputs: np.concatenate(inputs, axis=_axis(node, 0)),
    "Gather": lambda node, inputs: np.take(inputs[0], inputs[1].astype(np.int64), axis=_axis(node, 0)),
    "Squeeze": _squeezed,
    "Unsqueeze": _unsqueezed,
    "Reshape": lambda _node, inputs: inputs[0].reshape([int(size) for size in inputs[1].reshape(-1)]),
    "Flatten": lambda _node, inputs: inputs[0].reshape(1, -1),
    "Slice": _sliced,
    "Shape": lambda _node, inputs: inputs[0].astype(np.int64),
    "Size": lambda _node, inputs: np.asarray(math.prod(int(size) for size in inputs[0])),
    "ConstantOfShape": _filled,
    "Expand": _expanded,
    "Range": _ranged,
    "Where": lambda _node, inputs: np.where(*inputs),
    "Add": _elementwise(np.add),
    "Sub": _elementwise(np.subtract),
    "Mul": _elementwise(np.multiply),
    "Div": _divided,
    "Mod": _elementwise(np.mod),
    "Pow": _elementwise(np.power),
    "Min": lambda _node, inputs: np.asarray(np.minimum.reduce(np.broadcast_arrays(*inputs))),
    "Max": lambda _node, inputs: np.asarray(np.maximum.reduce(np.broadcast_arrays(*inputs))),
    "Neg": lambda _node, inputs: -inputs[0],
    "Abs": lambda _node, inputs: np.abs(inputs[0]),
    "Floor": lambda _node, inputs: np.floor(inputs[0]),
    "Ceil": lambda _node, inputs: np.ceil(inputs[0]),
    "Round": lambda _node, inputs: np.round(inputs[0]),
    "Sqrt": lambda _node, inputs: np.sqrt(inputs[0]),
    "BitShift": lambda node, inputs: (
        np.left_shift(*inputs) if node.attributes["direction"].as_string() == "LEFT" else np.right_shift(*inputs)
    ),
    "ReduceProd": _reduced(np.prod),
    "ReduceSum": _reduced(np.sum),
    "ReduceMax": _reduced(np.max),
    "ReduceMin": _reduced(np.min),
}
