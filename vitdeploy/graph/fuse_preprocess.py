"""Put the normalisation of pixels into a graph: bytes go in, four times less to copy than float32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy.errors import GraphError
from vitdeploy.records import Preprocess
from vitdeploy.records.preprocess import InputForm

_TO_FIRST = (0, 3, 1, 2)
_BGR = (2, 1, 0)
PREFIX = "preprocess"


def fuse_preprocess(model: ir.Model, spec: Preprocess, form: InputForm) -> Preprocess:
    """Make a graph take pixels as uint8, in place: Cast, Transpose where channels come last, ·a + b per channel.

    a = scale / std and b = (offset − mean) / std in float32, so that the inputs of the rest differ from the look-up
    table of ``normalize`` by rounding alone. The Cast is the first node, because the parser of TensorRT-RTX takes a
    UInt8 input and no UInt8 Transpose.

    Args:
        model: A graph with one floating-point input, [N, C, H, W].
        spec: Its preprocessing.
        form: ``uint8-nhwc`` or ``uint8-nchw``.
    Returns:
        The preprocessing of the graph as it is now.
    Raises:
        GraphError: The input is not of that kind, or the graph takes bytes already.
    """
    graph = model.graph
    fed = [value for value in graph.inputs if not value.is_initializer()]
    old = fed[0]
    floating = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
    if len(fed) != 1 or old.dtype not in floating or old.shape is None or len(old.shape) != 4 or spec.is_fused:
        raise GraphError("the graph takes no normalised images, so there is no normalisation to put into it")
    batch, channels, *sides = old.shape
    last = form == "uint8-nhwc"
    name, dtype = str(old.name), old.dtype
    shape = [batch, *sides, channels] if last else [batch, channels, *sides]
    pixels = ir.Value(name=name, type=ir.TensorType(ir.DataType.UINT8), shape=ir.Shape(shape))
    old.name = f"{name}_normalised"
    std = np.array(spec.std, np.float64)
    factors = spec.network_order(tuple(spec.scale / std))
    offsets = spec.network_order(tuple((spec.offset - np.array(spec.mean, np.float64)) / std))

    planes = [batch, channels, *sides]
    chain = _Chain(graph, pixels)
    chain.append("Cast", shape, {"to": int(ir.DataType.FLOAT)})
    if last:
        chain.append("Transpose", planes, {"perm": _TO_FIRST})
    if spec.channel_order == "bgr":
        chain.append("Gather", planes, {"axis": 1}, np.array(_BGR, np.int64))
    column = (1, len(factors), 1, 1)
    chain.append("Mul", planes, {}, np.array(factors, np.float32).reshape(column))
    chain.append("Add", planes, {}, np.array(offsets, np.float32).reshape(column))
    if dtype != ir.DataType.FLOAT:
        chain.append("Cast", planes, {"to": int(dtype)}, dtype=dtype)
    old.replace_all_uses_with(chain.value)
    graph.inputs[list(graph.inputs).index(old)] = pixels
    graph.insert_before(graph[0], chain.nodes)
    return spec.model_copy(update={"input": form})


class _Chain:
    """Nodes one after the other, each with at most one constant; ``value`` is what the last one gives."""

    def __init__(self, graph: ir.Graph, value: ir.Value) -> None:
        self.value = value
        self.nodes: list[ir.Node] = []
        self._graph = graph

    def append(
        self,
        operator: str,
        shape: Sequence[Any],
        attributes: Mapping[str, Any],
        constant: NDArray[Any] | None = None,
        dtype: ir.DataType = ir.DataType.FLOAT,
    ) -> None:
        name = f"{PREFIX}/{operator}.{len(self.nodes)}"
        inputs = [self.value]
        if constant is not None:
            value = ir.Value(
                name=f"{name}.constant",
                type=ir.TensorType(ir.DataType.from_numpy(constant.dtype)),
                shape=ir.Shape(constant.shape),
                const_value=ir.tensor(constant, name=f"{name}.constant"),
            )
            self._graph.register_initializer(value)
            inputs.append(value)
        node = ir.node(operator, inputs, attributes=attributes, name=name)
        (self.value,) = node.outputs
        self.value.name, self.value.type, self.value.shape = name, ir.TensorType(dtype), ir.Shape(shape)
        self.nodes.append(node)
