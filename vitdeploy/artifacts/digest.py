"""Payload digests: over content, so that the same tensors and the same graph give the same digest in any file."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.records import canonical_json

if TYPE_CHECKING:
    import onnx_ir as ir


def tensors_digest(tensors: Mapping[str, NDArray[Any]]) -> str:
    """Return the SHA-256 over tensors in the order of their names: name, dtype, shape, little-endian bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        digest.update(canonical_json([name, array.dtype.str, list(array.shape)]).encode())
        digest.update(array.view(np.uint8).data if array.size and array.ndim else array.tobytes())
    return digest.hexdigest()


def onnx_digest(model: ir.Model) -> str:
    """Return the SHA-256 over a graph's meaning.

    Covered: ``ir_version``, opsets, functions, inputs and outputs with type and shape, nodes in order with attributes,
    initializers by name, dtype, shape and bytes (external data included). Not covered: ``value_info``,
    ``metadata_props``, doc strings, producer.
    """
    digest = hashlib.sha256()

    def put(value: Any) -> None:
        digest.update(canonical_json(value).encode())

    put([model.ir_version, sorted(model.opset_imports.items())])
    _put_graph(model.graph, put, digest)
    for identifier in sorted(model.functions):
        function = model.functions[identifier]
        put(["function", *identifier, sorted(function.opset_imports.items())])
        put([_value(value) for value in function.inputs] + [_value(value) for value in function.outputs])
        for node in function:
            _put_node(node, put, digest)
    return digest.hexdigest()


def _put_graph(graph: ir.Graph, put: Any, digest: Any) -> None:
    put(["inputs", [_value(value) for value in graph.inputs], "outputs", [_value(v) for v in graph.outputs]])
    for name in sorted(graph.initializers):
        tensor = graph.initializers[name].const_value
        put([name])
        if tensor is not None:
            _put_tensor(tensor, put, digest)
    for node in graph:
        _put_node(node, put, digest)


def _put_node(node: ir.Node, put: Any, digest: Any) -> None:
    import onnx_ir as ir

    put([node.domain, node.op_type, node.overload, node.name])
    put([value.name if value is not None else None for value in node.inputs])
    put([value.name for value in node.outputs])
    for name in sorted(node.attributes):
        attribute = node.attributes[name]
        put([name, str(attribute.type), attribute.ref_attr_name])
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.TENSOR:
            _put_tensor(attribute.as_tensor(), put, digest)
        elif attribute.type == ir.AttributeType.TENSORS:
            for tensor in attribute.as_tensors():
                _put_tensor(tensor, put, digest)
        elif attribute.type == ir.AttributeType.GRAPH:
            _put_graph(attribute.as_graph(), put, digest)
        elif attribute.type == ir.AttributeType.GRAPHS:
            for graph in attribute.as_graphs():
                _put_graph(graph, put, digest)
        else:
            put(_attribute_value(attribute))


def _attribute_value(attribute: ir.Attr) -> Any:
    """Return a plain attribute as it stands in a file: the format's floats are float32, its lists have no kind."""
    import onnx_ir as ir

    value: Any = attribute.value
    if attribute.type == ir.AttributeType.FLOAT:
        return repr(np.float32(value).item())
    if attribute.type == ir.AttributeType.FLOATS:
        return [repr(np.float32(number).item()) for number in value]
    if attribute.type == ir.AttributeType.INTS:
        return [int(number) for number in value]
    if attribute.type == ir.AttributeType.INT:
        return int(value)
    return repr(value)


def _put_tensor(tensor: ir.TensorProtocol, put: Any, digest: Any) -> None:
    put([str(tensor.dtype), [str(size) for size in tensor.shape]])
    digest.update(tensor.tobytes())
    release(tensor)


def release(tensor: ir.TensorProtocol) -> None:
    """Unmap the file behind an external tensor, so that reading all of a large model holds one tensor at a time."""
    import onnx_ir as ir

    if isinstance(tensor, ir.ExternalTensor):
        with contextlib.suppress(BufferError):  # someone holds an array on it
            tensor.release()


def _value(value: ir.Value) -> list[Any]:
    shape = None if value.shape is None else [str(size) for size in value.shape]
    return [value.name, str(value.dtype), shape]
