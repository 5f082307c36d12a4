"""Find the constants of a graph that can take a factor or a shift per channel of a tensor, exactly and for free.

Channel scaling replaces x by x / s in front of linears and their rows w by s · w (Nagel et al. 2019, arXiv:1906.04721,
section 4.1; Xiao et al. 2023, arXiv:2211.10438, equation 3), shifting x by x - z and adds zᵀW to their bias (Wei et al.
2022, arXiv:2209.13325, section 4.1). Upstream of x the factor needs a place: this module follows it against the flow of
the data, through operators that commute with it, until constants take it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy.graph.linear_groups import Linear, LinearGroup
from vitdeploy.graph.values import along, array_of

Kind = Literal["scale", "shift"]
Shapes = Mapping[str, Sequence[int | None]]
Channels = NDArray[np.int32]
"""Which channel each element of a tensor belongs to, ``KEPT`` or ``UNREAD``; along an axis of size 1 it is the same."""
KEPT, UNREAD = -1, -2

_NORMS = {"LayerNormalization": -1, "RMSNormalization": -1, "BatchNormalization": 1, "InstanceNormalization": 1}
_UNARY_MOVES = frozenset(("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout"))
_HOMOGENEOUS = frozenset(("Relu", "LeakyRelu", "PRelu", "Abs"))
_POOLS = frozenset(("AveragePool", "MaxPool", "GlobalAveragePool", "GlobalMaxPool"))
_REDUCTIONS = frozenset(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"))
_LINEAR_REDUCTIONS = frozenset(("ReduceMean", "AveragePool", "GlobalAveragePool", "ReduceMax", "ReduceMin", "MaxPool"))


@dataclass(frozen=True)
class Place:
    """A constant operand, ``node.inputs[index]``, and the channel whose factor or shift each of its elements takes.

    ``inverse``: the operand divides, so it takes the reciprocal; ``negative``: it is subtracted.
    """

    node: ir.Node
    index: int
    channels: Channels
    inverse: bool = False
    negative: bool = False


@dataclass(frozen=True)
class Places:
    """All constants that together take a factor (or shift) per channel, and the tensors that it changes on its way.

    ``tensors`` maps names to channels, the group's own activation among them.
    """

    kind: Kind
    places: tuple[Place, ...]
    tensors: Mapping[str, Channels]


class _NoPlaceError(Exception):
    """The factor has no exact place."""


def find_places(group: LinearGroup, shapes: Shapes, kind: Kind = "scale") -> Places | None:
    """Return the constants upstream of a group that take a factor (or shift) per input channel, or None.

    A factor passes through moves of elements, sums, products, pooling, ReLU and the value side of an attention, and
    ends in LayerNormalization, BatchNormalization, a Mul or Div by a constant, or the weights of a linear or
    convolution. A shift ends in a norm's β or a constant that is added, and passes through an attention because the
    rows of a softmax add up to 1. Everything else that reads one of the tensors on the way must not notice.

    ``shapes`` are those of a batch of two images or more (``shapes_at_batch``), so that no place depends on the batch.
    """
    if not rows_are_private(group):
        return None
    try:
        return _started(group, shapes, kind).run()
    except _NoPlaceError:
        return None


def channel_axis(group: LinearGroup, shapes: Shapes) -> int | None:
    """Return the axis of a group's activation that runs over the linears' input channels, counted from the front.

    It is not the last one where a Transpose lies between; None where the channels are spread over several axes, or
    there are none.
    """
    if not group.linears[0].in_features:
        return None
    try:
        search = _started(group, shapes, "scale")
        channels = search.channels_at(group.activation, group.uses)
    except _NoPlaceError:
        return None
    varying = [axis for axis, size in enumerate(channels.shape) if size > 1]
    if len(varying) != 1 or not np.array_equal(channels.reshape(-1), np.arange(group.linears[0].in_features)):
        return None
    return varying[0]


def bias_places(group: LinearGroup) -> tuple[Places, ...] | None:
    """Return, per linear, the constant that is added to its output; None where one has no such place.

    A Gemm or Conv without a bias gets one, a MatMul needs an Add behind it that alone reads the product.
    """
    found = []
    for linear in group.linears:
        node, channels = linear.node, np.arange(linear.out_features, dtype=np.int32)
        if node.op_type in ("Gemm", "Conv"):
            bias = node.inputs[2] if len(node.inputs) > 2 else None
            if (bias is not None and not _is_constant(bias)) or _floating(node, "beta", 1.0) != 1.0:
                return None
            found.append(Places("shift", (Place(node, 2, channels),), {}))
            continue
        readers = tuple(node.outputs[0].uses())
        if len(readers) != 1 or readers[0].node.op_type != "Add" or node.outputs[0].is_graph_output():
            return None
        size = _shape_of_constant(readers[0].node.inputs[1 - readers[0].idx])
        if size is None or (size and size[-1] not in (1, linear.out_features)):
            return None
        found.append(Places("shift", (Place(readers[0].node, 1 - readers[0].idx, channels),), {}))
    return tuple(found)


def rows_are_private(group: LinearGroup) -> bool:
    """Return whether only the group's linears read their weights, which all have as many input channels."""
    linears = {linear.node for linear in group.linears}
    width = group.linears[0].in_features
    return all(linear.in_features == width and _ungrouped(linear) for linear in group.linears) and all(
        consumer in linears for linear in group.linears for consumer in linear.weight.consumers()
    )


def _started(group: LinearGroup, shapes: Shapes, kind: Kind) -> _Search:
    graph = group.linears[0].node.graph
    assert graph is not None
    search = _Search(shapes, kind, {node: index for index, node in enumerate(graph)})
    for linear in group.linears:
        search.start(linear)
    return search


@dataclass
class _Search:
    """One walk from the linears of a group up to constants.

    ``demands`` holds, per tensor that has to change, what each of its readers wants of it.
    """

    shapes: Shapes
    kind: Kind
    order: Mapping[ir.Node, int]
    demands: dict[ir.Value, dict[tuple[ir.Node, int], Channels]] = field(default_factory=dict)
    places: list[Place] = field(default_factory=list)
    tensors: dict[str, Channels] = field(default_factory=dict)

    def start(self, linear: Linear) -> None:
        """Start from the input of a linear."""
        value = linear.node.inputs[0]
        assert value is not None
        rank = len(self._shape(value))
        axis = 1 if linear.node.op_type == "Conv" else -1
        self._demand(linear.node, 0, along(np.arange(linear.in_features, dtype=np.int32), axis, rank))

    def run(self) -> Places:
        """Follow all demands, the latest tensor of the graph first, so that all its readers have spoken.

        Raises:
            _NoPlaceError: One of them finds no place.
        """
        while self.demands:
            node = self._latest()
            wanted = [self._taken(value) for value in node.outputs]
            if all(channels is None for channels in wanted):
                continue
            rule = _RULES.get(node.op_type) if not node.domain else None
            if rule is None:
                raise _NoPlaceError
            if rule is _Search._product and not any(map(_is_constant, node.inputs)):
                return self._either_factor(node, wanted)
            rule(self, node, wanted)
        if not self.places:
            raise _NoPlaceError
        return Places(self.kind, tuple(self.places), self.tensors)

    def channels_at(self, value: ir.Value, uses: Sequence[tuple[ir.Node, int]]) -> Channels:
        """Return the channels of a tensor that ``uses`` read, reached by moves of elements alone."""
        while any(demanded is not value for demanded in self.demands):
            node = self._latest()
            rule = _RULES.get(node.op_type) if not node.domain else None
            if node is value.producer() or rule not in (_Search._move, _Search._transpose):
                raise _NoPlaceError
            rule(self, node, [self._taken(output) for output in node.outputs])
        merged: Channels = np.full([1] * len(self._shape(value)), UNREAD, np.int32)
        for use in uses:
            merged = _merged(merged, self.demands[value][use])
        return _compressed(merged)

    def _latest(self) -> ir.Node:
        """Return the last node of the graph that makes a tensor which has to change."""
        producers = [value.producer() for value in self.demands]
        found = [node for node in producers if node is not None]
        if len(found) < len(producers):
            raise _NoPlaceError  # the input of the graph
        return max(found, key=self.order.__getitem__)

    def _either_factor(self, node: ir.Node, wanted: list[Channels | None]) -> Places:
        """Let one of two computed factors take all of it: the first for which that ends well."""
        if self.kind == "shift":
            raise _NoPlaceError
        for index in (0, 1) if node.op_type == "Mul" else (0,):
            demands = {value: dict(found) for value, found in self.demands.items()}
            branch = replace(self, demands=demands, places=list(self.places), tensors=dict(self.tensors))
            try:
                branch._demand(node, index, branch._broadcast_back(node, index, branch._only(wanted)))
                return branch.run()
            except _NoPlaceError:
                continue
        raise _NoPlaceError

    def _taken(self, value: ir.Value) -> Channels | None:
        """Return what all readers of a value want together; None where nobody wants a change."""
        demands = self.demands.pop(value, None)
        if demands is None:
            return None
        if value.is_graph_output():
            raise _NoPlaceError
        merged: Channels = np.full([1] * len(self._shape(value)), UNREAD, np.int32)
        for node, index in value.uses():
            wanted = demands.get((node, index))
            merged = _merged(merged, self._unchanged(node, index, value) if wanted is None else wanted)
        merged = _compressed(merged)
        self.tensors[str(value.name)] = merged
        return merged

    def _unchanged(self, node: ir.Node, index: int, value: ir.Value) -> Channels:
        """Return what a reader that knows nothing of the factor wants: what it reads stays as it is."""
        shape = self._shape(value)
        everything = np.full([1] * len(shape), KEPT, np.int32)
        if node.op_type in ("Shape", "Size"):
            return np.full([1] * len(shape), UNREAD, np.int32)
        if index == 0 and node.op_type in ("Slice", "Gather"):
            picked = self._picked(node)
            if picked is not None:
                return self._spread(picked, everything, shape)
        return everything

    def _demand(self, node: ir.Node, index: int, channels: Channels) -> None:
        """Let an operand change, or take its place where it is a constant."""
        value = node.inputs[index]
        if value is None or not (channels >= 0).any():
            return
        if _is_constant(value):
            self._place(node, index, channels)
        elif any(size not in (1, full) for size, full in zip(channels.shape, self._shape(value), strict=True)):
            raise _NoPlaceError
        else:
            self.demands.setdefault(value, {})[node, index] = channels

    def _place(
        self, node: ir.Node, index: int, channels: Channels, *, inverse: bool = False, negative: bool = False
    ) -> None:
        """Note a constant, or a missing operand that a shift creates."""
        value = node.inputs[index] if index < len(node.inputs) else None
        size = None if value is None else _shape_of_constant(value)
        if value is not None and size is None:
            raise _NoPlaceError
        if channels.ndim > 1 and channels.shape[0] > 1 and (size is None or len(size) < channels.ndim or size[0] == 1):
            raise _NoPlaceError  # the constant would grow along the batch
        self.places.append(Place(node, index, channels, inverse, negative))

    def _shape(self, value: ir.Value) -> tuple[int, ...]:
        shape = self.shapes.get(str(value.name))
        if shape is None or any(size is None for size in shape):
            raise _NoPlaceError
        return tuple(int(size) for size in shape if size is not None)

    def _picked(self, node: ir.Node) -> list[tuple[int, NDArray[np.int64]]] | None:
        """Return the indices that a Slice or Gather reads, per axis; None where they are computed."""
        value = node.inputs[0]
        assert value is not None
        shape = self._shape(value)
        if node.op_type == "Gather":
            indices = array_of(node.inputs[1])
            axis = _integer(node, "axis", 0) % len(shape)
            return None if indices is None else [(axis, np.asarray(indices).astype(np.int64) % shape[axis])]
        operands = [array_of(value) if value is not None else None for value in node.inputs[1:]]
        if any(array is None for array, value in zip(operands, node.inputs[1:], strict=True) if value is not None):
            return None
        if len(operands) < 2 or operands[0] is None or operands[1] is None:
            return None
        starts, ends = operands[0].tolist(), operands[1].tolist()
        axes = operands[2].tolist() if len(operands) > 2 and operands[2] is not None else list(range(len(starts)))
        steps = operands[3].tolist() if len(operands) > 3 and operands[3] is not None else [1] * len(starts)
        picked = []
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            size = shape[axis % len(shape)]
            stop = None if step < 0 and end < -size else end
            picked.append((axis % len(shape), np.arange(size)[slice(start, stop, step)]))
        return picked

    def _spread(
        self, picked: list[tuple[int, NDArray[np.int64]]], channels: Channels, shape: tuple[int, ...]
    ) -> Channels:
        """Return channels over the tensor that was read, from those over what was picked from it."""
        for axis, indices in picked:
            if channels.shape[axis] != 1 and len(np.unique(indices)) != indices.size:
                raise _NoPlaceError  # one element is read as several channels
            size = list(channels.shape)
            size[axis] = shape[axis]
            whole = np.full(size, UNREAD, np.int32)
            whole[(slice(None),) * axis + (indices.reshape(-1),)] = channels
            channels = whole
        return channels

    # rules: what a node does with the change that is wanted of its outputs

    def _norm(self, node: ir.Node, wanted: list[Channels | None]) -> None:
        channels = self._only(wanted)
        axis = _NORMS[node.op_type]
        rank = len(channels.shape)
        if axis == -1 and _integer(node, "axis", -1) not in (-1, rank - 1):
            raise _NoPlaceError
        vector = self._vector(channels, axis)
        for index in (1, 2) if self.kind == "scale" else (2,):
            value = node.inputs[index] if index < len(node.inputs) else None
            if value is None and self.kind == "scale" and index == 2:
                continue
            if value is None and node.op_type != "LayerNormalization":
                raise _NoPlaceError
            if value is not None and (not _is_constant(value) or _shape_of_constant(value) not in (vector.shape, ())):
                raise _NoPlaceError
            self._place(node, index, vector)

    def _product(self, node: ir.Node, wanted: list[Channels | None]) -> None:
        """Put the factor into the constant operand (``_either_factor`` sees to products of computed ones)."""
        if self.kind == "shift":
            raise _NoPlaceError
        index = 0 if _is_constant(node.inputs[0]) else 1
        self._place(node, index, self._only(wanted), inverse=node.op_type == "Div" and index == 1)

    def _sum(self, node: ir.Node, wanted: list[Channels | None]) -> None:
        channels = self._only(wanted)
        constants = [index for index in range(len(node.inputs)) if _is_constant(node.inputs[index])]
        if self.kind == "shift":
            if not constants:
                raise _NoPlaceError
            self._place(node, constants[0], channels, negative=node.op_type == "Sub" and constants[0] == 1)
            return
        for index in range(len(node.inputs)):
            if index in constants:
                self._place(node, index, channels)
            else:
                self._demand(node, index, self._broadcast_back(node, index, channels))

    def _matmul(self, node: ir.Node, wanted: list[Channels | None]) -> None:
        channels = self._only(wanted)
        weight = node.inputs[1]
        if _is_constant(weight):
            size = _shape_of_constant(weight)
            if self.kind == "shift" or size is None or len(size) != 2 or _is_shared(weight):
                raise _NoPlaceError
            self._place(node, 1, self._vector(channels, -1)[None, :])
            return
        if _is_constant(node.inputs[0]) or channels.ndim < 2 or channels.shape[-2] != 1:
            raise _NoPlaceError
        if self.kind == "shift":
            softmax = node.inputs[0].producer() if node.inputs[0] is not None else None
            if softmax is None or softmax.op_type != "Softmax" or _integer(softmax, "axis", -1) not in (
                -1, channels.ndim - 1,
            ):  # fmt: skip
                raise _NoPlaceError
        self._demand(node, 1, channels)

    def _gemm(self, node: ir.Node, wanted: list[Channels | None]) -> None:
        channels = self._vector(self._only(wanted), -1)
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if not _is_constant(node.inputs[1]) or _is_shared(node.inputs[1]):
            raise _NoPlaceError
        if bias is not None and not _is_constant(bias):
            raise _NoPlaceError
        if self.kind == "shift":
            if _floating(node, "beta", 1.0) != 1.0:
                raise _NoPlaceError
            self._place(node, 2, channels)
            return
        self._place(node, 1, channels[:, None] if _integer(node, "transB", 0) else channels[None, :])
        if bias is not None:
            self._place(node, 2, channels)

    def _conv(self, node: ir.Node, wanted: list[Channels | None]) -> None:
        channels = self._vector(self._only(wanted), 1)
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        weight = _shape_of_constant(node.inputs[1])
        if weight is None or _is_shared(node.inputs[1]) or (bias is not None and not _is_constant(bias)):
            raise _NoPlaceError
        if self.kind == "scale":
            self._place(node, 1, along(channels, 0, len(weight)))
        if self.kind == "shift" or bias is not None:
            self._place(node, 2, channels)

    def _move(self, node: ir.Node, wanted: list[Channels | None]) -> None:
        channels = self._only(wanted)
        source = node.inputs[0]
        assert source is not None
        whole = np.broadcast_to(channels, self._shape(node.outputs[0]))
        self._demand(node, 0, whole.reshape(self._shape(source)))

    def _transpose(self, node: ir.Node, wanted: list[Channels | None]) -> None:
        channels = self._only(wanted)
        order = node.attributes.get("perm")
        axes = list(order.as_ints()) if order is not None else list(range(channels.ndim))[::-1]
        self._demand(node, 0, channels.transpose(np.argsort(axes)))

    def _concat(self, node: ir.Node, wanted: list[Channels | None]) -> None:
        channels = self._only(wanted)
        axis = _integer(node, "axis", 0) % channels.ndim
        start = 0
        for index, value in enumerate(node.inputs):
            assert value is not None
            constant = _shape_of_constant(value)
            size = (self._shape(value) if constant is None else constant)[axis]
            part = channels if channels.shape[axis] == 1 else _cut(channels, axis, start, start + size)
            self._demand(node, index, part)
            start += size

    def _split(self, node: ir.Node, wanted: list[Channels | None]) -> None:
        value = node.inputs[0]
        assert value is not None
        axis = _integer(node, "axis", 0) % len(self._shape(value))
        parts = []
        for output, channels in zip(node.outputs, wanted, strict=True):
            shape = self._shape(output)
            untouched = UNREAD if not output.uses() and not output.is_graph_output() else KEPT
            parts.append(np.full([1] * len(shape), untouched, np.int32) if channels is None else channels)
        size = [max(part.shape[index] for part in parts) for index in range(parts[0].ndim)]
        spread = []
        for output, part in zip(node.outputs, parts, strict=True):
            full = list(size)
            full[axis] = self._shape(output)[axis]
            spread.append(np.broadcast_to(part, full))
        self._demand(node, 0, np.concatenate(spread, axis=axis))

    def _selection(self, node: ir.Node, wanted: list[Channels | None]) -> None:
        channels = self._only(wanted)
        picked, value = self._picked(node), node.inputs[0]
        if picked is None or value is None:
            raise _NoPlaceError
        if node.op_type == "Gather":
            axis, rank = picked[0][0], picked[0][1].ndim
            if rank > 1:
                raise _NoPlaceError
            channels = np.expand_dims(channels, axis) if rank == 0 else channels
        self._demand(node, 0, self._spread(picked, channels, self._shape(value)))

    def _expand(self, node: ir.Node, wanted: list[Channels | None]) -> None:
        self._demand(node, 0, self._broadcast_back(node, 0, self._only(wanted)))

    def _homogeneous(self, node: ir.Node, wanted: list[Channels | None]) -> None:
        if self.kind == "shift":
            raise _NoPlaceError
        self._demand(node, 0, self._only(wanted))

    def _cast(self, node: ir.Node, wanted: list[Channels | None]) -> None:
        self._demand(node, 0, self._only(wanted))

    def _pad(self, node: ir.Node, wanted: list[Channels | None]) -> None:
        channels, value = self._only(wanted), node.inputs[0]
        assert value is not None
        fill = array_of(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else np.zeros(1)
        mode = node.attributes.get("mode")
        zeros = fill is not None and not np.any(fill)
        if self.kind == "shift" or not zeros or (mode is not None and mode.as_string() != "constant"):
            raise _NoPlaceError
        sizes = zip(channels.shape, self._shape(value), self._shape(node.outputs[0]), strict=True)
        if any(varies != 1 and before != after for varies, before, after in sizes):
            raise _NoPlaceError
        self._demand(node, 0, channels)

    def _pool(self, node: ir.Node, wanted: list[Channels | None]) -> None:
        channels = self._only(wanted)
        padded = any(node.attributes["pads"].as_ints()) if "pads" in node.attributes else False
        if any(size != 1 for size in channels.shape[2:]) or (self.kind == "shift" and padded):
            raise _NoPlaceError
        self._demand(node, 0, channels)

    def _reduction(self, node: ir.Node, wanted: list[Channels | None]) -> None:
        channels, value = self._only(wanted), node.inputs[0]
        assert value is not None
        if self.kind == "shift" and node.op_type not in _LINEAR_REDUCTIONS:
            raise _NoPlaceError
        axes = _axes(node)
        rank = len(self._shape(value))
        if axes is None:
            raise _NoPlaceError
        if not _integer(node, "keepdims", 1):
            channels = np.expand_dims(channels, tuple(sorted(axis % rank for axis in axes)))
        self._demand(node, 0, channels)

    def _only(self, wanted: list[Channels | None]) -> Channels:
        channels = wanted[0]
        if channels is None or any(other is not None for other in wanted[1:]):
            raise _NoPlaceError
        return channels

    def _vector(self, channels: Channels, axis: int) -> Channels:
        """Return channels that vary along one axis only, as a vector."""
        axis %= channels.ndim
        if any(size != 1 for index, size in enumerate(channels.shape) if index != axis):
            raise _NoPlaceError
        return channels.reshape(-1)

    def _broadcast_back(self, node: ir.Node, index: int, channels: Channels) -> Channels:
        """Return what is wanted of an operand that was broadcast, which works where the channels do not tell it."""
        value = node.inputs[index]
        assert value is not None
        shape = self._shape(value)
        missing = channels.ndim - len(shape)
        if any(size != 1 for size in channels.shape[:missing]):
            raise _NoPlaceError
        kept: Channels = channels.reshape(channels.shape[missing:])
        if any(varies not in (1, size) for varies, size in zip(kept.shape, shape, strict=True)):
            raise _NoPlaceError
        return kept


_Rule = Callable[[_Search, ir.Node, list[Channels | None]], None]


_RULES: dict[str, _Rule] = {
    **dict.fromkeys(_NORMS, _Search._norm),
    **dict.fromkeys(("Mul", "Div"), _Search._product),
    **dict.fromkeys(("Add", "Sub", "Sum"), _Search._sum),
    **dict.fromkeys(_UNARY_MOVES, _Search._move),
    **dict.fromkeys(_HOMOGENEOUS, _Search._homogeneous),
    **dict.fromkeys(_POOLS, _Search._pool),
    **dict.fromkeys(_REDUCTIONS, _Search._reduction),
    **dict.fromkeys(("Slice", "Gather"), _Search._selection),
    "MatMul": _Search._matmul,
    "Gemm": _Search._gemm,
    "Conv": _Search._conv,
    "Transpose": _Search._transpose,
    "Concat": _Search._concat,
    "Split": _Search._split,
    "Expand": _Search._expand,
    "Pad": _Search._pad,
    "Cast": _Search._cast,
}


def _merged(first: Channels, second: Channels) -> Channels:
    """Return what both want.

    Raises:
        _NoPlaceError: They want different changes of one element.
    """
    first, second = np.broadcast_arrays(first, second)
    if np.any((first != second) & (first != UNREAD) & (second != UNREAD)):
        raise _NoPlaceError
    return np.where(first == UNREAD, second, first)


def _compressed(channels: Channels) -> Channels:
    """Return channels with size 1 along every axis along which all that is read is equal."""
    for axis in range(channels.ndim):
        largest = channels.max(axis=axis, keepdims=True)
        if np.all((channels == largest) | (channels == UNREAD)):
            channels = largest
    return channels


def _cut(channels: Channels, axis: int, start: int, end: int) -> Channels:
    return channels[(slice(None),) * axis + (slice(start, end),)]


def _is_constant(value: ir.Value | None) -> bool:
    return value is not None and value.is_initializer() and not value.is_graph_input() and value.const_value is not None


def _shape_of_constant(value: ir.Value | None) -> tuple[int, ...] | None:
    if value is None or not _is_constant(value) or value.const_value is None:
        return None
    if value.const_value.dtype != ir.DataType.FLOAT:
        return None
    return tuple(value.const_value.shape.numpy())


def _is_shared(value: ir.Value | None) -> bool:
    return value is not None and len(value.uses()) != 1


def _ungrouped(linear: Linear) -> bool:
    return linear.node.op_type != "Conv" or _integer(linear.node, "group", 1) == 1


def _axes(node: ir.Node) -> list[int] | None:
    if len(node.inputs) > 1:
        axes = array_of(node.inputs[1])
        return None if axes is None else [int(axis) for axis in axes.reshape(-1)]
    return list(node.attributes["axes"].as_ints()) if "axes" in node.attributes else None


def _integer(node: ir.Node, name: str, default: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default


def _floating(node: ir.Node, name: str, default: float) -> float:
    return node.attributes[name].as_float() if name in node.attributes else default
