"""Bounds on what a graph of others may take before anything runs it: turns of loops, and sizes that are stated."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy.errors import GraphError

MAX_TURNS = 100_000
MAX_VALUES = 1 << 31
SIZES = {"ConstantOfShape": 0, "Expand": 1, "Tile": 1, "Reshape": 1, "Resize": 3}
"""Operator → its input with sizes, or with repeats."""


def refuse_unbounded(model: ir.Model, where: str) -> None:
    """Refuse loops that may not end in any useful time, and tensors stated larger than any image model's.

    Subgraphs and functions count too. Nothing is run, no tensor is made.

    Args:
        model: A graph that another tool wrote.
        where: What the message calls it.
    Raises:
        GraphError: A Loop has no constant number of turns, or more than 100,000; or a node whose sizes are a constant
            input makes more than 2³¹ values. Computed sizes are not followed.
    """
    graphs = [model.graph, *(function.graph for function in model.functions.values())]
    for node in (node for graph in graphs for node in ir.traversal.RecursiveGraphIterator(graph)):
        if node.domain != "":
            continue
        reason = _loop(node) if node.op_type == "Loop" else _size(node)
        if reason is not None:
            raise GraphError(f"{where} is not adopted: node {node.name or node.op_type!r} ({node.op_type}) {reason}")


def _loop(node: ir.Node) -> str | None:
    turns = None if not node.inputs or node.inputs[0] is None else _constant(node.inputs[0])
    if turns is None or turns.size != 1:
        return "loops a number of times that the graph does not state, so it may never end: export without loops"
    if int(turns.reshape(-1)[0]) > MAX_TURNS:
        return f"loops {int(turns.reshape(-1)[0])} times, expected at most {MAX_TURNS}: export without loops"
    return None


def _size(node: ir.Node) -> str | None:
    if node.op_type == "Range":
        limits = [None if value is None else _constant(value) for value in node.inputs]
        if len(limits) != 3 or any(limit is None or limit.size != 1 for limit in limits):
            return None
        start, end, step = (float(limit.reshape(-1)[0]) for limit in limits if limit is not None)
        count = math.inf if step == 0 else max(0.0, (end - start) / step)
        return None if count <= MAX_VALUES else f"makes {count:.3g} values, expected at most 2³¹"
    index = SIZES.get(node.op_type)
    if index is None or len(node.inputs) <= index or (value := node.inputs[index]) is None:
        return None
    sizes = _constant(value)
    if sizes is None or not np.issubdtype(sizes.dtype, np.integer):
        return None
    count = math.prod(max(1, int(size)) for size in sizes.reshape(-1))
    return None if count <= MAX_VALUES else f"makes at least {count:.3g} values, expected at most 2³¹"


def _constant(value: ir.Value) -> NDArray[np.generic] | None:
    """Return a small constant: an initializer, or the output of a Constant node; None for what is computed."""
    tensor = value.const_value
    producer = value.producer()
    if tensor is None and producer is not None and producer.op_type == "Constant":
        attribute = next(iter(producer.attributes.values()), None)
        if attribute is None:
            return None
        if attribute.type in (ir.AttributeType.INT, ir.AttributeType.INTS):
            return np.atleast_1d(np.asarray(attribute.value, np.int64))
        tensor = attribute.value if attribute.type == ir.AttributeType.TENSOR else None
    return tensor.numpy() if tensor is not None and tensor.size <= 64 else None
