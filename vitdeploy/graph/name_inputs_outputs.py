"""Give input, output and batch dimension the names that every later stage relies on."""

from __future__ import annotations

import re

import onnx_ir as ir

from vitdeploy.errors import GraphError

INPUT, OUTPUT, BATCH = "input", "logits", "batch"


class NameInputsOutputs(ir.passes.InPlacePass):
    """Rename the one input to ``input``, the one output to ``logits`` and the first dimension's symbol to ``batch``.

    Another value that has one of these names is renamed first. A fixed batch stays a number.

    Raises:
        GraphError: The graph has more than one input or output.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        inputs = [value for value in graph.inputs if not value.is_initializer()]
        if len(inputs) != 1 or len(graph.outputs) != 1:
            raise GraphError(
                f"the graph has inputs {[v.name for v in inputs]} and outputs {[v.name for v in graph.outputs]}, "
                "expected one image input and one logits output"
            )
        before = (inputs[0].name, graph.outputs[0].name, str(inputs[0].shape), str(graph.outputs[0].shape))
        _rename(graph, inputs[0], INPUT)
        _rename(graph, graph.outputs[0], OUTPUT)
        if inputs[0].shape is not None and len(inputs[0].shape) and isinstance(inputs[0].shape[0], ir.SymbolicDim):
            _rename_batch(graph, inputs[0].shape[0].value)
        after = (inputs[0].name, graph.outputs[0].name, str(inputs[0].shape), str(graph.outputs[0].shape))
        return ir.passes.PassResult(model, modified=before != after)


def _rename(graph: ir.Graph, value: ir.Value, name: str) -> None:
    for other in _values(graph):
        if other is not value and other.name == name:
            other.name = f"{name}_inner"
    value.name = name


def _rename_batch(graph: ir.Graph, symbol: str | None) -> None:
    for value in (graph.inputs[0], graph.outputs[0]):
        if value.shape is not None and len(value.shape) and isinstance(value.shape[0], ir.SymbolicDim):
            value.shape = ir.Shape([BATCH, *list(value.shape)[1:]])
    if symbol is None or symbol == BATCH:
        return
    word = re.compile(rf"(?<!\w){re.escape(symbol)}(?!\w)")
    for value in _values(graph):
        if value.shape is not None and any(isinstance(size, ir.SymbolicDim) for size in value.shape):
            value.shape = ir.Shape([_renamed(size, word) for size in value.shape])


def _renamed(size: int | ir.SymbolicDim, word: re.Pattern[str]) -> int | str | None:
    if isinstance(size, int):
        return size
    return None if size.value is None else word.sub(BATCH, size.value)


def _values(graph: ir.Graph) -> list[ir.Value]:
    return [*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)]
