"""Equalise channels before a linear by folding a factor into the LayerNorm that feeds it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy.graph.insert_qdq import new_initializer
from vitdeploy.graph.linear_groups import LinearGroup
from vitdeploy.graph.values import array_of

_MOVES = frozenset(("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Transpose", "Slice", "Concat"))
_LARGEST_FACTOR = 1e3


@dataclass(frozen=True)
class Norm:
    """The affine end of a normalisation, y = x̂ · gamma + beta: where its two constants are read.

    The node of ``gamma`` and that of ``beta`` are one LayerNormalization, or a Mul and an Add of a decomposed one.
    """

    gamma: tuple[ir.Node, int]
    beta: tuple[ir.Node, int] | None


def foldable_norm(group: LinearGroup) -> Norm | None:
    """Return the normalisation into which a factor per input channel of ``group`` can be folded, or None.

    All that reads its output must be linears of the group, directly or through operators that leave the channels
    where they are (reshapes, transposes, windows and rolls on other axes), and nothing else may read their weights:
    then y / s and s · W give the same products.
    """
    linears = {linear.node for linear in group.linears}
    width = group.linears[0].in_features
    if any(linear.node.op_type == "Conv" or linear.in_features != width for linear in group.linears):
        return None
    if any(consumer not in linears for linear in group.linears for consumer in linear.weight.consumers()):
        return None
    value = _origin(group.activation)
    norm = _norm(value)
    if norm is None or not _leads_only_to(value, linears, width):
        return None
    constants = [use for use in (norm.gamma, norm.beta) if use is not None]
    return norm if all(_size(node.inputs[index]) == width for node, index in constants) else None


def smoothing_factor(
    activation_amax: NDArray[np.float32], weight_amax: NDArray[np.float32], alpha: float
) -> NDArray[np.float32]:
    """Return s = max|X_j|^alpha / max|W_j|^(1 - alpha) per channel j (Xiao et al. 2023, arXiv:2211.10438, eq. 4).

    X / s and s · W then share the difficulty; alpha 0 leaves all of it to the activations, 1 to the weights. Factors
    are divided by their geometric mean, so that the typical channel stays as it is, and kept within 1e±3. A channel
    that is zero on either side gets 1.
    """
    used = (activation_amax > 0) & (weight_amax > 0)
    factor = np.ones(activation_amax.shape, np.float64)
    if used.any():
        logarithm = alpha * np.log(activation_amax[used]) - (1 - alpha) * np.log(weight_amax[used])
        limit = np.log(_LARGEST_FACTOR)
        factor[used] = np.exp(np.clip(logarithm - logarithm.mean(), -limit, limit))
    return factor.astype(np.float32)


def equalize(
    graph: ir.Graph, group: LinearGroup, activation_amax: NDArray[np.float32], alpha: float
) -> NDArray[np.float32] | None:
    """Fold ``smoothing_factor`` into the norm and the weights of ``group``, in place; return it, or None if impossible.

    gamma / s, beta / s and row j of every weight times s_j: no node changes, and neither does the function beyond
    rounding.
    """
    norm = foldable_norm(group)
    if norm is None:
        return None
    weights = [_input_rows(linear.weight, linear.channel_axis) for linear in group.linears]
    weight_amax = np.max([np.abs(rows).max(axis=1) for rows in weights], axis=0)
    factor = smoothing_factor(activation_amax, weight_amax, alpha)
    for use in (norm.gamma, norm.beta):
        if use is not None:
            node, index = use
            value = node.inputs[index]
            assert value is not None
            assert value.const_value is not None
            node.replace_input_with(
                index, _replacement(graph, value, (value.const_value.numpy() / factor).astype("f4"))
            )
    done: set[ir.Value] = set()
    for linear in group.linears:
        if linear.weight in done:
            continue
        done.add(linear.weight)
        assert linear.weight.const_value is not None
        shaped = factor[:, None] if linear.channel_axis == 1 else factor[None, :]
        scaled = (linear.weight.const_value.numpy() * shaped).astype(np.float32)
        linear.weight.const_value = ir.tensor(scaled, name=linear.weight.name)
    return factor


def _norm(value: ir.Value) -> Norm | None:
    node = value.producer()
    if node is None:
        return None
    if node.op_type == "LayerNormalization" and value.index() == 0 and _is_initializer(node.inputs[1]):
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        return Norm((node, 1), (node, 2) if _is_initializer(bias) else None) if _constant_or_none(bias) else None
    if node.op_type != "Add":
        return None
    for index in (0, 1):
        computed = node.inputs[1 - index]
        product = computed.producer() if computed is not None else None
        if not _is_initializer(node.inputs[index]) or product is None or product.op_type != "Mul":
            continue
        if len(product.outputs[0].uses()) != 1:
            continue
        for side in (0, 1):
            if _is_initializer(product.inputs[side]):
                return Norm((product, side), (node, index))
    return None


def _replacement(graph: ir.Graph, old: ir.Value, array: NDArray[np.float32]) -> ir.Value:
    """Return a new initializer; the old one goes when nothing else reads it, and leaves its name."""
    alone = len(old.uses()) == 1
    name = str(old.name) if alone else _free_name(graph, f"{old.name}.equalised")
    if alone:
        del graph.initializers[name]
    return new_initializer(graph, name, array)


def _free_name(graph: ir.Graph, name: str) -> str:
    while name in graph.initializers:
        name += "_"
    return name


def _origin(value: ir.Value) -> ir.Value:
    """Return where a tensor was computed, before it was moved about."""
    while (node := value.producer()) is not None and node.op_type in _MOVES and node.inputs[0] is not None:
        value = node.inputs[0]
    return value


def _leads_only_to(source: ir.Value, linears: set[ir.Node], width: int) -> bool:
    """Return whether every way from ``source`` ends at the linears, which all are reached, with channels in place."""
    reached: set[ir.Node] = set()
    seen, pending = {source}, [source]
    joins: list[ir.Node] = []
    while pending:
        value = pending.pop()
        if value.is_graph_output() or value.shape is None or value.shape[-1] != width:
            return False
        for node, index in value.uses():
            if node in linears and index == 0:
                reached.add(node)
            elif _keeps_channels(node, index):
                joins += [node] if node.op_type == "Concat" else []
                pending += [output for output in node.outputs if output not in seen]
                seen.update(node.outputs)
            else:
                return False
    return reached == linears and all(value in seen for node in joins for value in node.inputs)


def _keeps_channels(node: ir.Node, index: int) -> bool:
    """Return whether a node leaves the last axis alone, given that it is as long after it as before.

    A Reshape is row-major, so with the last axis as long as before every channel stays where it was.
    """
    if node.domain or node.op_type not in _MOVES:
        return False
    if node.op_type == "Transpose":
        order = node.attributes.get("perm")
        return order is not None and order.as_ints()[-1] == len(order.as_ints()) - 1
    if node.op_type == "Slice":
        axes = array_of(node.inputs[3]) if len(node.inputs) > 3 else None
        rank = None if node.inputs[0] is None or node.inputs[0].shape is None else len(node.inputs[0].shape)
        return index == 0 and axes is not None and rank is not None and not {-1, rank - 1} & set(axes.tolist())
    return index == 0 or node.op_type == "Concat"


def _input_rows(weight: ir.Value, channel_axis: int) -> NDArray[np.float32]:
    """Return the weight as [K, N]."""
    assert weight.const_value is not None
    array: NDArray[np.float32] = weight.const_value.numpy()
    return array if channel_axis == 1 else array.T


def _is_initializer(value: ir.Value | None) -> bool:
    return value is not None and value.is_initializer() and not value.is_graph_input() and value.const_value is not None


def _constant_or_none(value: ir.Value | None) -> bool:
    return value is None or _is_initializer(value)


def _size(value: ir.Value | None) -> int:
    return 0 if value is None or value.const_value is None else int(value.const_value.size)
