"""Put constant tokens in front of the patches without copying them once per image."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy.graph.values import array_of, is_constant

_OLDEST = 13  # Pad takes its pads as an input from 11, Add broadcasts from 7; the passes start at 13


class PadTokens(ir.passes.InPlacePass):
    """Replace ``Concat(Expand(token), x)`` by ``Pad(x) + constant``.

    A class token is copied to every image by Expand, whose target is computed from the input's shape at run time. The
    padding is zero where the tokens go and the constant is zero where ``x`` is, so each sum has a zero operand and the
    result is the same to the bit. A constant that is added next (position embeddings) takes the tokens into itself.

    Refused: tokens that differ from image to image, and an ``x`` whose sizes beyond the batch are unknown.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        replaced = 0
        if model.opset_imports.get("", 0) >= _OLDEST:
            for node in list(model.graph):
                if node.op_type == "Concat" and node.domain == "" and not node.outputs[0].is_graph_output():
                    replaced += _replace(model.graph, node)
        return ir.passes.PassResult(model, modified=bool(replaced))


def _replace(graph: ir.Graph, concat: ir.Node) -> bool:
    tokens = [_token(value) for value in concat.inputs]
    computed = [index for index, token in enumerate(tokens) if token is None]
    x = concat.inputs[computed[0]] if len(computed) == 1 else None
    if x is None or x.shape is None or x.dtype is None or len(tokens) < 2:
        return False
    rank = len(x.shape)
    axis = concat.attributes["axis"].as_int() % rank
    sizes = list(x.shape)[1:]
    if axis == 0 or not all(isinstance(size, int) for size in sizes):
        return False
    inner: list[int] = [size for size in sizes if isinstance(size, int)]
    parts = []
    for token in tokens:
        shape = (1, *inner)
        if token is None:
            parts.append(np.zeros(shape, x.dtype.numpy()))
        elif token.ndim == rank and token.shape[0] == 1 and _fits(token.shape, shape, axis):
            parts.append(token)
        else:
            return False
    constant = np.concatenate(parts, axis=axis)
    before, after = (sum(p.shape[axis] for p in side) for side in (parts[: computed[0]], parts[computed[0] + 1 :]))
    pads = np.zeros(2 * rank, np.int64)
    pads[axis], pads[rank + axis] = before, after
    output = concat.outputs[0]
    padded = ir.node(
        "Pad", [x, _constant(graph, f"{output.name}.pads", pads)], {"mode": "constant"}, name=f"{concat.name}/Pad"
    )
    padded.metadata_props.update(concat.metadata_props)
    padded.outputs[0].name = f"{output.name}_padded"
    padded.outputs[0].type, padded.outputs[0].shape = output.type, output.shape
    graph.insert_before(concat, padded)
    _add(graph, concat, padded.outputs[0], constant)
    return True


def _add(graph: ir.Graph, concat: ir.Node, padded: ir.Value, constant: NDArray[Any]) -> None:
    """Add the tokens: into the constant that is added next where there is one, else by an Add of their own."""
    output = concat.outputs[0]
    reader = output.consumers()[0] if len(output.uses()) == 1 else None
    if reader is not None and reader.op_type == "Add" and reader.domain == "":
        index = next(index for index, value in enumerate(reader.inputs) if value is output)
        other = reader.inputs[1 - index]
        added = array_of(other) if is_constant(other) else None
        if added is not None and added.ndim <= constant.ndim and (added.ndim < constant.ndim or added.shape[0] == 1):
            reader.replace_input_with(index, padded)
            total = (constant + added).astype(constant.dtype)
            reader.replace_input_with(1 - index, _constant(graph, f"{other.name}.with_tokens", total))  # type: ignore[union-attr]
            graph.remove(concat, safe=True)
            return
    node = ir.node("Add", [padded, _constant(graph, f"{output.name}.tokens", constant)], name=f"{concat.name}/Add")
    node.metadata_props.update(concat.metadata_props)
    ir.convenience.replace_nodes_and_values(graph, concat, [concat], [node], [output], [node.outputs[0]])


def _token(value: ir.Value | None) -> NDArray[Any] | None:
    """Return a constant that is the same for each image: itself, or what Expand copies along the batch."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "Expand" or node.domain != "" or not is_constant(node.inputs[0]):
        return None
    token, shape = array_of(node.inputs[0]), value.shape if value is not None else None
    if token is None or shape is None or len(shape) != token.ndim:
        return None
    inner = list(shape)[1:]
    if any(not isinstance(size, int) for size in inner):
        return None
    return np.broadcast_to(token, (token.shape[0], *[size for size in inner if isinstance(size, int)]))


def _fits(token: tuple[int, ...], x: tuple[int, ...], axis: int) -> bool:
    return all(a == b for index, (a, b) in enumerate(zip(token, x, strict=True)) if index != axis)


def _constant(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    while name in graph.initializers:
        name += "_"
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
    graph.register_initializer(value)
    return value
