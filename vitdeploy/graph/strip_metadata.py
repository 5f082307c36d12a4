"""Remove what an exporter leaves behind about the machine and the source code."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from vitdeploy.artifacts.onnx_model import METADATA_KEY


class StripMetadata(ir.passes.InPlacePass):
    """Clear metadata and doc strings of model, graphs, functions, nodes, values and tensors.

    The dynamo exporter writes stack traces with file paths, FX nodes and the whole graph signature into
    ``metadata_props``; onnx_ir's own pass clears those of nodes and graphs but not of values. The project's manifest
    is kept, and so are module paths: ``NameNodes`` has put them into the names before.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        before = _weight(model)
        for key in [key for key in model.metadata_props if not key.startswith(METADATA_KEY)]:
            del model.metadata_props[key]
        model.doc_string = None
        for graph in _graphs(model):
            _strip_graph(graph)
            for node in ir.traversal.RecursiveGraphIterator(graph):
                node.metadata_props.clear()
                node.doc_string = None
                _strip_values(node.outputs)
                for attribute in node.attributes.values():
                    attribute.doc_string = None
                    if attribute.type == ir.AttributeType.GRAPH:
                        _strip_graph(attribute.as_graph())
        return ir.passes.PassResult(model, modified=before != _weight(model))


def _graphs(model: ir.Model) -> list[ir.Graph | ir.Function]:
    return [model.graph, *model.functions.values()]


def _strip_graph(graph: ir.Graph | ir.Function) -> None:
    graph.metadata_props.clear()
    graph.doc_string = None
    _strip_values(graph.inputs)
    _strip_values(graph.outputs)
    if isinstance(graph, ir.Graph):
        _strip_values(graph.initializers.values())


def _strip_values(values: Iterable[ir.Value]) -> None:
    for value in values:
        value.metadata_props.clear()
        value.doc_string = None
        tensor = value.const_value
        if tensor is not None:
            tensor.metadata_props.clear()
            if tensor.doc_string:  # of a tensor that was read from a file it cannot be set
                value.const_value = ir.Tensor(tensor.numpy(), tensor.dtype, name=tensor.name)


def _weight(model: ir.Model) -> int:
    """Count the entries that this pass may remove."""
    total = len(model.metadata_props) + bool(model.doc_string)
    for graph in _graphs(model):
        total += len(graph.metadata_props) + bool(graph.doc_string)
        initializers = graph.initializers.values() if isinstance(graph, ir.Graph) else ()
        for value in (*graph.inputs, *initializers):
            total += len(value.metadata_props) + bool(value.doc_string)
        for node in ir.traversal.RecursiveGraphIterator(graph):
            total += len(node.metadata_props) + bool(node.doc_string)
            total += sum(len(value.metadata_props) + bool(value.doc_string) for value in node.outputs)
    return total
