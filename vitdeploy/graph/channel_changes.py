"""Carry a factor or a shift per channel out: into the constants that take it, the rows of linears, or a Mul."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy.graph.channel_places import Kind, Place, Places
from vitdeploy.graph.insert_qdq import new_initializer
from vitdeploy.graph.linear_groups import LinearGroup
from vitdeploy.graph.values import along


def absorb(graph: ir.Graph, places: Places, values: NDArray[np.floating]) -> None:
    """Multiply the constants of ``places`` by ``values[channel]``, or add it to them, in place.

    A constant that other nodes read as well is copied for these.
    """
    changes = {(place.node, place.index): place for place in places.places}
    written: set[ir.Value] = set()
    for (node, index), place in changes.items():
        old = node.inputs[index] if index < len(node.inputs) else None
        if old is not None and old in written:
            continue
        array = _absorbed(old, place, values, places.kind)
        if old is not None and all(_same_change(changes.get(use), place) for use in old.uses()):
            old.const_value = ir.tensor(array, name=old.name)
            old.shape = ir.Shape(array.shape)
            written.add(old)
            continue
        stem = str(old.name) if old is not None else f"{node.name}.shift"
        _set_input(node, index, new_initializer(graph, _free(graph, f"{stem}.absorbed"), array))


def scale_rows(group: LinearGroup, factor: NDArray[np.floating]) -> None:
    """Multiply row j of every weight of a group by ``factor[j]``, in place; [in_features]."""
    for weight in dict.fromkeys(linear.weight for linear in group.linears):
        linear = next(found for found in group.linears if found.weight is weight)
        assert weight.const_value is not None
        array = weight.const_value.numpy()
        shaped = along(factor, 1 - linear.channel_axis, array.ndim)
        weight.const_value = ir.tensor((array * shaped).astype(np.float32), name=weight.name)


def insert_scaling(graph: ir.Graph, group: LinearGroup, factor: NDArray[np.floating], axis: int) -> LinearGroup:
    """Put one Mul by ``factor`` along ``axis`` behind the group's activation, and return the group that reads it.

    What else reads the activation goes on reading it unscaled.
    """
    value = group.activation
    rank = len(value.shape) if value.shape is not None else axis + 1
    shaped = along(factor.astype(np.float32), 0 if axis == rank - 1 else axis, 1 if axis == rank - 1 else rank)
    constant = new_initializer(graph, _free(graph, f"{value.name}.scaling"), shaped)
    node = ir.node("Mul", [value, constant], name=_free(graph, f"{value.name}/Scaling"))
    node.outputs[0].name = f"{node.name}_out"
    node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], node)
    else:
        node.metadata_props.update(producer.metadata_props)
        graph.insert_after(producer, node)
    for reader, index in group.uses:
        reader.replace_input_with(index, node.outputs[0])
    return replace(group, activation=node.outputs[0])


def _absorbed(old: ir.Value | None, place: Place, values: NDArray[np.floating], kind: Kind) -> NDArray[np.float32]:
    neutral = 1.0 if kind == "scale" else 0.0
    change = np.append(np.asarray(values, np.float64), neutral)[np.maximum(place.channels, -1)]
    if old is None:
        return change.astype(np.float32)
    assert old.const_value is not None
    array = old.const_value.numpy()
    while change.ndim > max(array.ndim, 1) and change.shape[0] == 1:
        change = change[0]
    if kind == "scale":
        changed = array / change if place.inverse else array * change
    else:
        changed = array - change if place.negative else array + change
    return changed.astype(np.float32)


def _same_change(place: Place | None, other: Place) -> bool:
    return (
        place is not None
        and (place.inverse, place.negative) == (other.inverse, other.negative)
        and (np.array_equal(place.channels, other.channels))
    )


def _set_input(node: ir.Node, index: int, value: ir.Value) -> None:
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, value)


def _free(graph: ir.Graph, name: str) -> str:
    taken = {str(value.name) for node in graph for value in node.outputs} | set(graph.initializers)
    while name in taken:
        name += "_"
    return name
