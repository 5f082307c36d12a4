"""Questions about values that several passes ask."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

DATA_MOVEMENT = frozenset(
    (
        "Reshape",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
        "Flatten",
        "Expand",
        "Split",
        "Slice",
        "Gather",
        "Concat",
        "Identity",
    )
)
"""Operators that move elements and compute nothing."""


def array_of(value: ir.Value | None) -> NDArray[Any] | None:
    """Return the array of an initializer or a Constant node, None for everything that is computed or fed."""
    if value is None or (value.is_graph_input() and not value.is_initializer()):
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def is_constant(value: ir.Value | None) -> bool:
    """Return whether the value is an initializer or comes from a Constant node; reads no data."""
    if value is None:
        return False
    producer = value.producer()
    return value.is_initializer() or (producer is not None and producer.op_type == "Constant")


def scalar_of(value: ir.Value | None) -> float | None:
    """Return the number that a constant with a single element holds, else None."""
    if value is None or not is_constant(value) or (value.shape is not None and not _single(value.shape)):
        return None
    array = array_of(value)
    if array is None or array.size != 1 or not np.issubdtype(array.dtype, np.number):
        return None
    return float(array.reshape(()))


def _single(shape: ir.Shape) -> bool:
    return all(isinstance(size, int) and size == 1 for size in shape)
