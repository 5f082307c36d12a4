"""Scale and shift the channels in front of linears without changing what a graph computes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy.graph.channel_changes import absorb, insert_scaling, scale_rows
from vitdeploy.graph.channel_places import Places, bias_places
from vitdeploy.graph.linear_groups import Linear, LinearGroup

_LARGEST_FACTOR = 1e4


def smoothing_factor(
    activation_amax: NDArray[np.float32], weight_amax: NDArray[np.float32], alpha: float
) -> NDArray[np.float32]:
    """Return s = max|X_j|^alpha / max|W_j|^(1 - alpha) per channel j (Xiao et al. 2023, arXiv:2211.10438, eq. 4).

    X / s and s · W then share the difficulty; alpha 0 leaves all of it to the activations, 1 to the weights. Factors
    are divided by their geometric mean, so that the typical channel stays as it is, and kept within 1e±4. A channel
    that is zero on either side gets 1.
    """
    used = (activation_amax > 0) & (weight_amax > 0)
    factor = np.ones(activation_amax.shape, np.float64)
    if used.any():
        logarithm = alpha * np.log(activation_amax[used], dtype=np.float64)
        logarithm -= (1 - alpha) * np.log(weight_amax[used], dtype=np.float64)
        limit = np.log(_LARGEST_FACTOR)
        factor[used] = np.exp(np.clip(logarithm - logarithm.mean(), -limit, limit))
    return factor.astype(np.float32)


def scale_by_constants(graph: ir.Graph, group: LinearGroup, factor: NDArray[np.float32], places: Places) -> None:
    """Divide the activation by ``factor`` in constants before it and multiply the weights' rows, in place.

    No node changes, and neither does the function beyond rounding.
    """
    absorb(graph, places, 1 / factor.astype(np.float64))
    scale_rows(group, factor)


def scale_by_mul(graph: ir.Graph, group: LinearGroup, factor: NDArray[np.float32], axis: int) -> LinearGroup:
    """Divide the activation by ``factor`` along ``axis`` in a Mul of its own and multiply the weights' rows, in place.

    Returns the group that reads the Mul.
    """
    scale_rows(group, factor)
    return insert_scaling(graph, group, 1 / factor.astype(np.float64), axis)


def shift_by_constants(graph: ir.Graph, group: LinearGroup, shift: NDArray[np.float32], places: Places) -> None:
    """Take ``shift`` off the activation in constants before it and add shiftᵀ·W to the biases behind it, in place.

    The group must have ``bias_places``.
    """
    biases = bias_places(group)
    assert biases is not None
    absorb(graph, places, -shift.astype(np.float64))
    for linear, bias in zip(group.linears, biases, strict=True):
        absorb(graph, bias, shift.astype(np.float64) @ matrix(linear))


def matrix(linear: Linear) -> NDArray[np.float32]:
    """Return the weight of a linear as [in_features, out_features]."""
    assert linear.weight.const_value is not None
    array: NDArray[np.float32] = linear.weight.const_value.numpy()
    array = array.reshape(array.shape[:2]) if array.ndim > 2 and array[0, 0].size == 1 else array
    return array if linear.channel_axis == 1 else array.T


def is_matrix(linear: Linear) -> bool:
    """Return whether the weight is a matrix, or a convolution of 1×1 without groups, which is one."""
    assert linear.weight.const_value is not None
    sizes = linear.weight.const_value.shape.numpy()
    return all(size == 1 for size in sizes[2:]) and linear.in_features in sizes[:2]


def weight_amax(group: LinearGroup) -> NDArray[np.float32]:
    """Return the largest magnitude in each row of all weights of a group, [in_features]."""
    return np.max([np.abs(matrix(linear)).max(axis=1) for linear in group.linears], axis=0)
