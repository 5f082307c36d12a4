"""Nodes that are put in front of a graph, one after the other, with their constants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


class Chain:
    """Nodes in the order in which they run; ``value`` is what the last one of the chain gives, of ``shape``."""

    def __init__(self, graph: ir.Graph, value: ir.Value, prefix: str) -> None:
        self.value = value
        self.nodes: list[ir.Node] = []
        self._graph, self._prefix, self._constants = graph, prefix, 0

    @property
    def shape(self) -> list[Any]:
        """The sizes of ``value``; those that are not known are names."""
        assert self.value.shape is not None
        return list(self.value.shape)

    def append(
        self, operator: str, shape: Sequence[Any], *operands: ir.Value, constant_first: bool = False, **attributes: Any
    ) -> None:
        """Continue the chain with a node that takes ``value`` and these operands, in the other order where asked."""
        inputs = (*operands, self.value) if constant_first else (self.value, *operands)
        self.value = self.make(operator, *inputs, **attributes)
        self.value.shape = ir.Shape(shape)

    def make(self, operator: str, *inputs: ir.Value, dtype: ir.DataType | None = None, **attributes: Any) -> ir.Value:
        """Return what a node beside the chain gives, of the type of ``dtype``, ``to``, or its last input."""
        name = f"{self._prefix}/{operator}.{len(self.nodes)}"
        kind = dtype or attributes.get("to") or inputs[-1].dtype or ir.DataType.FLOAT
        if operator == "Less":
            kind = ir.DataType.BOOL
        numbers = {key: int(value) if isinstance(value, ir.DataType) else value for key, value in attributes.items()}
        node = ir.node(operator, list(inputs), attributes=numbers, name=name)
        (value,) = node.outputs
        value.name, value.type = name, ir.TensorType(ir.DataType(kind))
        self.nodes.append(node)
        return value

    def constant(self, array: NDArray[Any] | np.generic) -> ir.Value:
        """Return an array as an initializer of the graph."""
        array = np.asarray(array)
        name = f"{self._prefix}/constant.{self._constants}"
        self._constants += 1
        value = ir.Value(
            name=name,
            type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
            shape=ir.Shape(array.shape),
            const_value=ir.tensor(np.ascontiguousarray(array).reshape(array.shape), name=name),
        )
        self._graph.register_initializer(value)
        return value
