"""Find residual streams whose channels can turn: everything that writes to one or reads it is a linear or a norm.

With an orthogonal R that keeps means (R·1 = 1), LayerNorm(x·R) = LayerNorm(x)·R where the norm has no γ and β. So
the columns and biases of all writers, class token and position table are multiplied by R, γ and β go into the linears
behind norms, and their rows are multiplied by Rᵀ (QuaRot, Ashkboos et al. 2024, arXiv:2404.00456, section 4; SpinQuant,
Liu et al. 2024, arXiv:2405.16406, section 3; both for norms that do not subtract the mean).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy.graph.channel_changes import absorb
from vitdeploy.graph.channel_places import Places, Shapes, bias_places
from vitdeploy.graph.linear_groups import Linear, LinearGroup, linear_of
from vitdeploy.graph.rotation import Matrix, Turn, consecutive, replace_constant, turn
from vitdeploy.graph.values import array_of

_MOVES = frozenset(("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Transpose", "Expand", "Slice", "Gather"))
_MEANS = frozenset(("ReduceMean", "ReduceSum"))
_SINGLE = _MOVES | _MEANS | {"Split", "Pad"}
_LEAST_GAMMA = 1e-5
_MOST_BETA = 100.0


@dataclass(frozen=True)
class Change:
    """What became of a tensor [..., C]: x before, ((x − offset) / divisor)·R per block of channels now."""

    offset: NDArray[np.float64]
    divisor: NDArray[np.float64]
    positions: NDArray[np.intp]


@dataclass(frozen=True)
class ResidualStream:
    """One stream: its width, its constants, the norms that read it, and the tensors behind these by name."""

    width: int
    turns: tuple[Turn, ...]
    norms: tuple[StreamNorm, ...]

    def apply(self, graph: ir.Graph, matrix: Matrix) -> Mapping[str, Change]:
        """Turn the stream by a matrix that keeps means, in place; return what became of the tensors behind norms.

        No node changes, and neither does the function beyond rounding.
        """
        changes: dict[str, Change] = {}
        for norm in self.norms:
            for reader in norm.readers if norm.folds else ():
                assert reader.bias is not None
                absorb(graph, reader.bias, reader.outputs_of(norm.tiled(norm.beta, reader.size)))
        for turn_ in self.turns:
            turn_.apply(graph, matrix)
        for norm in self.norms:
            for name, size in norm.tensors.items():
                gamma, beta = norm.tiled(norm.gamma, size), norm.tiled(norm.beta, size)
                changes[name] = Change(beta if norm.folds else 0 * beta, gamma, consecutive(size, self.width))
            norm.clear(graph, self.width, matrix)
        return changes


@dataclass(frozen=True)
class _Reader:
    """A linear behind a norm, the number of its input channels and the place of its bias."""

    linear: Linear
    size: int
    bias: Places | None

    def outputs_of(self, row: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return what the linear makes of a row of channels that is the same everywhere."""
        assert self.linear.weight.const_value is not None
        weight = self.linear.weight.const_value.numpy()
        weight = np.moveaxis(weight, 1 - self.linear.channel_axis, 0)
        found: NDArray[np.float64] = row @ weight.reshape(*weight.shape[:2], -1).sum(axis=2, dtype=np.float64)
        return found


@dataclass
class StreamNorm:
    """A LayerNormalization of the stream; ``tensors`` are its output and what moves make of it, with their sizes."""

    node: ir.Node
    gamma: NDArray[np.float64]
    beta: NDArray[np.float64]
    readers: list[_Reader] = field(default_factory=list)
    tensors: dict[str, int] = field(default_factory=dict)
    is_padded: bool = False

    @property
    def folds(self) -> bool:
        """Return whether β can go into the biases of all readers; else it is turned with the stream."""
        return not self.is_padded and all(reader.bias is not None for reader in self.readers)

    def tiled(self, vector: NDArray[np.float64], size: int) -> NDArray[np.float64]:
        """Return γ or β for a tensor that has the channels several times."""
        return np.tile(vector, size // vector.size)

    def clear(self, graph: ir.Graph, width: int, matrix: Matrix) -> None:
        """Leave 1 for γ, and 0 for β or what the stream's turn makes of it."""
        beta = 0 * self.beta if self.folds else self.beta / self.gamma
        replace_constant(graph, self.node, 1, np.ones(self.gamma.size, np.float32))
        if len(self.node.inputs) > 2 and self.node.inputs[2] is not None:
            turned = turn(beta, consecutive(beta.size, width), matrix).astype(np.float32)
            replace_constant(graph, self.node, 2, turned)


class _CannotTurnError(Exception):
    """Something reads or writes the stream that does not commute with a rotation."""


def find_residual_streams(model: ir.Model, shapes: Shapes) -> tuple[ResidualStream, ...]:
    """Return the streams in front of LayerNorms whose channels can turn, in graph order.

    ``shapes`` are those of a batch of two images. A stream is followed through sums, moves of elements, concatenations
    (also of channels, as patch merging has them) and factors that all channels share. Whatever else writes to it or
    reads it leaves it out: a norm whose output is summed, as after a patch embedding of PVT, or a convolution with
    groups. Streams have no linear in common but one that reads the first and writes the second.
    """
    found: list[ResidualStream] = []
    seen: set[ir.Node] = set()
    for node in model.graph:
        if not _is_layer_norm(node) or node in seen:
            continue
        source = node.inputs[0]
        assert source is not None
        width = shapes.get(str(source.name), (None,))[-1]
        if width is None or width < 2:
            continue
        search = _Search(shapes, width)
        with contextlib.suppress(_CannotTurnError):
            found.append(search.run(source))
        seen.update(search.norms, (node,))
    return tuple(found)


@dataclass
class _Search:
    """Everything that is connected to one tensor by operators that commute with a rotation of its channels.

    ``turned``: tensors of the stream with the axis of their channels; ``norms``: those that read it.
    """

    shapes: Shapes
    width: int
    turned: dict[ir.Value, int] = field(default_factory=dict)
    turns: dict[tuple[ir.Node, int, int], Turn] = field(default_factory=dict)
    norms: dict[ir.Node, StreamNorm] = field(default_factory=dict)
    pending: list[ir.Value] = field(default_factory=list)

    def run(self, start: ir.Value) -> ResidualStream:
        """Follow the stream in both directions.

        Raises:
            _CannotTurnError: It cannot turn.
        """
        self._turn(start, len(self._shape(start)) - 1)
        while self.pending:
            value = self.pending.pop()
            axis = self.turned[value]
            producer = value.producer()
            if producer is None or producer.domain:
                raise _CannotTurnError
            self._written(producer, value, axis)
            for use in value.uses():
                self._read(use.node, use.idx, axis)
        for norm in self.norms.values():
            if not norm.folds and np.abs(norm.beta / norm.gamma).max() > _MOST_BETA:
                raise _CannotTurnError
        return ResidualStream(self.width, tuple(self.turns.values()), tuple(self.norms.values()))

    def _turn(self, value: ir.Value, axis: int) -> None:
        if self.turned.get(value, axis) != axis or value.is_graph_output() or value.is_graph_input():
            raise _CannotTurnError
        size = self._shape(value)[axis]
        if size % self.width or not size:
            raise _CannotTurnError
        if value not in self.turned:
            self.turned[value] = axis
            self.pending.append(value)

    def _shape(self, value: ir.Value) -> tuple[int, ...]:
        if value.is_initializer() and value.const_value is not None:
            return tuple(value.const_value.shape.numpy())
        shape = self.shapes.get(str(value.name))
        if shape is None or any(size is None for size in shape):
            raise _CannotTurnError
        return tuple(int(size) for size in shape if size is not None)

    def _constant(self, node: ir.Node, index: int, axis: int, factor: NDArray[np.float64] | None = None) -> None:
        """Note a constant with channels along ``axis``."""
        array = array_of(node.inputs[index])
        if array is None or array.dtype != np.float32 or not node.inputs[index].is_initializer():  # type: ignore[union-attr]
            raise _CannotTurnError
        axis %= array.ndim
        if array.shape[axis] % self.width:
            raise _CannotTurnError
        positions = consecutive(array.shape[axis], self.width)
        self.turns[node, index, axis] = Turn(node, index, axis, positions, factor)

    def _written(self, node: ir.Node, value: ir.Value, axis: int) -> None:
        """Follow the stream to what makes ``value``."""
        rank = len(self._shape(value))
        linear = linear_of(node)
        if linear is not None:
            self._columns(linear, axis, rank)
        elif node.op_type in _SINGLE:
            self._operand(node, 0, self._moved(node, axis, value, forward=False))
        else:
            self._operands(node, axis, rank)

    def _read(self, node: ir.Node, index: int, axis: int) -> None:
        """Follow the stream to what reads it."""
        value = node.inputs[index]
        assert value is not None
        linear = linear_of(node)
        if node.domain:
            raise _CannotTurnError
        if node.op_type in ("Shape", "Size"):
            return
        if linear is not None and index == 0:
            self._rows(linear, axis, len(self._shape(value)), None)
        elif _is_layer_norm(node) and index == 0:
            self._norm(node, axis, len(self._shape(value)))
        elif node.op_type in _SINGLE and index == 0:
            for output in node.outputs:
                self._turn(output, self._moved(node, axis, output, forward=True))
        elif node.op_type in ("Add", "Sub", "Sum", "Concat", "Mul", "Div"):
            output = node.outputs[0]
            self._turn(output, axis + len(self._shape(output)) - len(self._shape(value)))
        else:
            raise _CannotTurnError

    def _columns(self, linear: Linear, axis: int, rank: int) -> None:
        """The outputs of a linear turn."""
        node = linear.node
        if axis != _channel_axis(linear, rank) or len(linear.weight.uses()) != 1 or _is_grouped(linear):
            raise _CannotTurnError
        self._constant(node, 1, linear.channel_axis)
        if node.op_type in ("Gemm", "Conv") and len(node.inputs) > 2 and node.inputs[2] is not None:
            self._constant(node, 2, -1)

    def _rows(self, linear: Linear, axis: int, rank: int, factor: NDArray[np.float64] | None) -> None:
        """The inputs of a linear turn, with a factor for each of them."""
        if axis != _channel_axis(linear, rank) or len(linear.weight.uses()) != 1 or _is_grouped(linear):
            raise _CannotTurnError
        self._constant(linear.node, 1, 1 - linear.channel_axis, factor)

    def _operands(self, node: ir.Node, axis: int, rank: int) -> None:
        """All operands of a sum or a concatenation turn; a factor or a term that all channels share stays."""
        if node.op_type == "Concat":
            for index in range(len(node.inputs)):
                self._operand(node, index, axis)
            return
        if node.op_type not in ("Add", "Sub", "Sum", "Mul", "Div"):
            raise _CannotTurnError
        for index, value in enumerate(node.inputs):
            assert value is not None
            shape = self._shape(value)
            own = axis - rank + len(shape)
            shared = array_of(value) is not None and (own < 0 or shape[own] == 1)
            if node.op_type in ("Mul", "Div") and array_of(value) is not None:
                if not shared or (node.op_type == "Div" and index == 0):
                    raise _CannotTurnError
            elif node.op_type in ("Mul", "Div") and array_of(node.inputs[1 - index]) is None:
                raise _CannotTurnError
            elif not shared:
                self._operand(node, index, own)

    def _operand(self, node: ir.Node, index: int, axis: int) -> None:
        value = node.inputs[index]
        assert value is not None
        if axis < 0:
            raise _CannotTurnError
        if array_of(value) is not None:
            self._constant(node, index, axis)
        else:
            self._turn(value, axis)

    def _norm(self, node: ir.Node, axis: int, rank: int) -> None:
        gamma = array_of(node.inputs[1])
        has_beta = len(node.inputs) > 2 and node.inputs[2] is not None
        beta = array_of(node.inputs[2]) if has_beta else None
        over = node.attributes["axis"].as_int() if "axis" in node.attributes else -1
        if axis != rank - 1 or over not in (-1, rank - 1) or gamma is None or (has_beta and beta is None):
            raise _CannotTurnError
        if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
            raise _CannotTurnError
        exact = gamma.astype(np.float64).reshape(-1)
        if np.abs(exact).min() < _LEAST_GAMMA * np.abs(exact).max():
            raise _CannotTurnError  # what such a channel holds is lost in what was observed
        norm = StreamNorm(node, exact, np.zeros_like(exact) if beta is None else beta.astype(np.float64).reshape(-1))
        self.norms[node] = norm
        self._behind(norm, node.outputs[0], axis)

    def _behind(self, norm: StreamNorm, value: ir.Value, axis: int) -> None:
        """Follow what a norm gives to the linears that read it."""
        shape = self._shape(value)
        if value.is_graph_output() or shape[axis] % norm.gamma.size or not shape[axis]:
            raise _CannotTurnError
        norm.tensors[str(value.name)] = shape[axis]
        for use in value.uses():
            node = use.node
            linear = linear_of(node)
            if node.domain or (use.idx and node.op_type not in ("Shape", "Size")):
                raise _CannotTurnError
            if linear is not None:
                self._rows(linear, axis, len(shape), norm.tiled(norm.gamma, shape[axis]))
                norm.readers.append(_Reader(linear, shape[axis], _bias_of(linear)))
            elif node.op_type in _SINGLE:
                norm.is_padded |= node.op_type in ("Pad", "ReduceSum")
                for output in node.outputs:
                    self._behind(norm, output, self._moved(node, axis, output, forward=True))
            elif node.op_type not in ("Shape", "Size"):
                raise _CannotTurnError

    def _moved(self, node: ir.Node, axis: int, output: ir.Value, *, forward: bool) -> int:
        """Return the axis of the channels on the other side of a node that moves elements or sums over others."""
        source = node.inputs[0]
        assert source is not None
        before, after = self._shape(source), self._shape(output)
        known, other = (before, after) if forward else (after, before)
        if node.op_type == "Transpose":
            order = _order(node, len(before))
            return order.index(axis) if forward else order[axis]
        if node.op_type in ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"):
            return self._same_tail(known, other, axis)
        if node.op_type == "Expand":
            return axis - len(known) + len(other)
        axes = _touched_axes(node, len(before))
        removed = sorted(axes) if len(before) > len(after) else []
        if forward:
            if axis in axes:
                raise _CannotTurnError
            return axis - sum(one < axis for one in removed)
        for one in removed:
            axis += one <= axis
        if axis in axes:
            raise _CannotTurnError
        return axis

    def _same_tail(self, known: tuple[int, ...], other: tuple[int, ...], axis: int) -> int:
        """Return the axis with as many elements behind it that holds whole blocks of channels."""
        tail = int(np.prod(known[axis + 1 :]))
        for found in reversed(range(len(other))):
            if int(np.prod(other[found + 1 :])) == tail and other[found] % self.width == 0 and other[found]:
                return found
        raise _CannotTurnError


def _is_layer_norm(node: ir.Node) -> bool:
    return node.op_type == "LayerNormalization" and not node.domain


def _channel_axis(linear: Linear, rank: int) -> int:
    return 1 if linear.node.op_type == "Conv" else rank - 1


def _is_grouped(linear: Linear) -> bool:
    node = linear.node
    return node.op_type == "Conv" and "group" in node.attributes and node.attributes["group"].as_int() != 1


def _bias_of(linear: Linear) -> Places | None:
    """Return where a constant row of inputs goes; None where a convolution pads them, or there is no bias."""
    node = linear.node
    padded = node.op_type == "Conv" and (
        any(node.attributes["pads"].as_ints()) if "pads" in node.attributes else "auto_pad" in node.attributes
    )
    value = node.inputs[0]
    assert value is not None
    found = bias_places(LinearGroup("", (linear,), value, ((node, 0),)))
    return None if padded or found is None else found[0]


def _order(node: ir.Node, rank: int) -> list[int]:
    return list(node.attributes["perm"].as_ints()) if "perm" in node.attributes else list(range(rank))[::-1]


def _touched_axes(node: ir.Node, rank: int) -> set[int]:
    """Return the axes along which a node selects, sums or pads."""
    if node.op_type == "Gather":
        indices = array_of(node.inputs[1])
        if indices is None or indices.ndim > 1:
            raise _CannotTurnError
        return {(node.attributes["axis"].as_int() if "axis" in node.attributes else 0) % rank}
    if node.op_type == "Split":
        return {(node.attributes["axis"].as_int() if "axis" in node.attributes else 0) % rank}
    return {axis % rank for axis in _listed_axes(node, rank)}


def _listed_axes(node: ir.Node, rank: int) -> Iterator[int]:
    if node.op_type == "Pad":
        pads = array_of(node.inputs[1])
        fill = array_of(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else np.zeros(1)
        mode = node.attributes["mode"].as_string() if "mode" in node.attributes else "constant"
        if pads is None or pads.size != 2 * rank or fill is None or np.any(fill) or mode != "constant":
            raise _CannotTurnError
        yield from np.flatnonzero(pads.reshape(2, rank).any(axis=0)).tolist()
        return
    position = 3 if node.op_type == "Slice" else 1
    if len(node.inputs) > position and node.inputs[position] is not None:
        axes = array_of(node.inputs[position])
        if axes is None:
            raise _CannotTurnError
        yield from axes.reshape(-1).tolist()
    elif "axes" in node.attributes:
        yield from node.attributes["axes"].as_ints()
    else:
        raise _CannotTurnError
