"""Questions about values that several passes ask."""

from __future__ import annotations

import ctypes
import functools
import gc
from collections.abc import Callable
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


WORTH_COLLECTING = 4 << 20
"""Bytes of weights from which finding graphs that are no longer used is worth the time that it takes."""
WORTH_TRIMMING = 64 << 20
"""Bytes of weights from which memory that was freed is given back to the system at once."""


def weight_bytes(model: ir.Model) -> int:
    """Return the size of all initializers in bytes; reads no data."""
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)


def collect_graphs_like(model: ir.Model) -> None:
    """Free graphs of this size that are no longer used: each refers to itself, so its weights wait for Python's search.

    The search passes over all that lives, a tenth of a second beside PyTorch; small graphs are left to Python. Where
    the C library is glibc, what it keeps of freed sessions and weights between live ones goes back to the system.
    """
    if weight_bytes(model) < WORTH_COLLECTING:
        return
    gc.collect()
    if weight_bytes(model) >= WORTH_TRIMMING and (trim := _malloc_trim()) is not None:
        trim(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    """Return glibc's ``malloc_trim``; None where there is none."""
    try:
        found: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # musl has no such function, Windows no library of that name
        return None
    return found


def hold_as_arrays(model: ir.Model) -> None:
    """Hold weights that a protobuf message holds as arrays, in place: a message hands out a copy at every look."""
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if isinstance(tensor, ir.serde.TensorProtoTensor) and tensor.dtype.bitwidth >= 8:
            held = ir.Tensor(tensor.numpy(), tensor.dtype, shape=tensor.shape, name=name, doc_string=tensor.doc_string)
            value.const_value = held


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


def along(vector: NDArray[Any], axis: int, rank: int) -> NDArray[Any]:
    """Shape a vector so that it runs along ``axis`` of an array of ``rank`` dimensions."""
    shape = [1] * rank
    shape[axis] = -1
    return vector.reshape(shape)
