"""Find attentions whose values can turn within each head: between the columns of v and the rows of proj.

What an attention does to v, p·v, takes place along the tokens, so p·(v·R) = (p·v)·R for each head: v's columns and bias
are multiplied by R, the rows that read p·v by Rᵀ (Ashkboos et al. 2024, arXiv:2404.00456, section 4, stage 1c).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy.graph.attentions import Attention
from vitdeploy.graph.channel_places import Place, Places, Shapes, find_places
from vitdeploy.graph.linear_groups import LinearGroup
from vitdeploy.graph.rotation import Turn

_COMMUTES = frozenset(
    ("MatMul", "Gemm", "Conv", "Add", "Sum", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Transpose")
) | {"Split", "Slice", "Gather", "Concat", "Expand"}  # fmt: skip


@dataclass(frozen=True)
class AttentionValues:
    """The values of one attention: who reads them, the constants that can be scaled, and those that turn.

    Row h of ``heads`` [heads, width] says which channels of the tensor that ``group`` reads belong to head h.
    """

    group: LinearGroup
    places: Places
    turns: tuple[Turn, ...]
    heads: NDArray[np.intp]


def find_attention_values(
    linears: tuple[LinearGroup, ...], attentions: tuple[Attention, ...], shapes: Shapes
) -> tuple[AttentionValues, ...]:
    """Return the attentions whose values can turn, in the order of the linears that read them.

    ``shapes`` are those of a batch of two images. Between the linears there may be sums with constants, moves of
    elements and p·v, nothing that changes with the basis, and each head has its channels for itself.
    """
    contexts = {str(attention.context.outputs[0].name): attention for attention in attentions}
    found = []
    for group in linears:
        places = find_places(group, shapes)
        if places is None:
            continue
        between = [name for name in places.tensors if name in contexts]
        if len(between) != 1:
            continue
        producers = _producers(group, places.tensors)
        heads = _heads(places.tensors[between[0]], group)
        if heads is None or any(node is None or node.op_type not in _COMMUTES for node in producers):
            continue
        turns = [_column_turn(place, heads) for place in places.places]
        rows = [Turn(one.node, 1, 1 - one.channel_axis, heads) for one in group.linears]
        written = [turn for turn in turns if turn is not None]
        if len(written) == len(turns):
            found.append(AttentionValues(group, places, (*written, *rows), heads))
    return tuple(found)


def _producers(group: LinearGroup, names: Mapping[str, object]) -> list[ir.Node | None]:
    graph = group.linears[0].node.graph
    assert graph is not None
    values = {str(value.name): value.producer() for node in graph for value in node.outputs}
    return [values.get(name) for name in names]


def _heads(channels: NDArray[np.int32], group: LinearGroup) -> NDArray[np.intp] | None:
    """Return the channels of each head, from those of p·v [.., heads, tokens, width]; None where they are not heads."""
    width = channels.shape[-1]
    heads = channels.reshape(-1, width).astype(np.intp)
    complete = np.array_equal(np.sort(heads.reshape(-1)), np.arange(group.linears[0].in_features))
    return heads if width > 1 and complete else None


def _column_turn(place: Place, heads: NDArray[np.intp]) -> Turn | None:
    """Return the turn of the columns of a linear, or of a bias, that hold v; None for a constant of another kind."""
    node, index = place.node, place.index
    is_weight = node.op_type in ("MatMul", "Gemm", "Conv") and index == 1
    is_bias = (node.op_type in ("Add", "Sum")) or (node.op_type in ("Gemm", "Conv") and index == 2)
    old = node.inputs[index] if index < len(node.inputs) else None
    varying = [axis for axis, size in enumerate(place.channels.shape) if size > 1]
    if not (is_weight or is_bias) or place.inverse or old is None or old.const_value is None or len(varying) != 1:
        return None
    sizes = old.const_value.shape.numpy()
    axis = varying[0] - place.channels.ndim + len(sizes)
    owners = place.channels.reshape(-1)
    if axis < 0 or sizes[axis] != owners.size:
        return None
    order = np.full(heads.size, -1, np.intp)
    order[owners[owners >= 0]] = np.flatnonzero(owners >= 0)
    if (order < 0).any() or np.sum(owners >= 0) != heads.size:
        return None
    return Turn(node, index, axis, order[heads])
