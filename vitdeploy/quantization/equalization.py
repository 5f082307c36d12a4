"""Scale channels in front of a linear: by constants that take the factor for free, else by one Mul."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy.graph.channel_places import Channels, Places, absorb, insert_scaling, scale_rows
from vitdeploy.graph.linear_groups import LinearGroup

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
        logarithm = alpha * np.log(activation_amax[used]) - (1 - alpha) * np.log(weight_amax[used])
        limit = np.log(_LARGEST_FACTOR)
        factor[used] = np.exp(np.clip(logarithm - logarithm.mean(), -limit, limit))
    return factor.astype(np.float32)


@dataclass(frozen=True)
class Scaled:
    """A group after scaling: the group to quantize, the factor [in_features] its activation was divided by.

    ``tensors`` maps every tensor that shrank on the way to its channels (``Places.tensors``), the group's own
    activation among them.
    """

    group: LinearGroup
    factor: NDArray[np.float32]
    tensors: dict[str, Channels]


def weight_amax(group: LinearGroup) -> NDArray[np.float32]:
    """Return the largest magnitude in each row of all weights of a group, [in_features]."""
    return np.max([np.abs(rows).max(axis=1) for rows in _rows(group)], axis=0)


def row_norms(group: LinearGroup) -> NDArray[np.float64]:
    """Return ‖w_j‖² of each row of all weights of a group together, [in_features]."""
    return np.sum([np.square(rows, dtype=np.float64).sum(axis=1) for rows in _rows(group)], axis=0)


def gain_db(
    group: LinearGroup, activation_amax: NDArray[np.float32], factor: NDArray[np.float32], clip: float
) -> float:
    """Return by how much scaling shrinks the rounding error of the activation in the group's outputs, in dB.

    A step of Δ in every channel gives Δ²/12 · Σ_j ‖w_j‖²; after scaling Δ is that of x / s and row j is s_j · w_j.
    ``clip`` is the largest magnitude represented without it.
    """
    norms = row_norms(group)
    before = clip**2 * norms.sum()
    after = float(np.max(activation_amax / factor)) ** 2 * float(np.square(factor, dtype=np.float64) @ norms)
    return 10 * float(np.log10(before / after)) if before > 0 and after > 0 else 0.0


def scale_freely(graph: ir.Graph, group: LinearGroup, factor: NDArray[np.float32], places: Places) -> Scaled:
    """Divide the activation by ``factor`` in constants before it and multiply the weights' rows, in place.

    No node changes, and neither does the function beyond rounding.
    """
    absorb(graph, places, 1 / factor.astype(np.float64))
    scale_rows(group, factor)
    return Scaled(group, factor, dict(places.tensors))


def scale_by_mul(graph: ir.Graph, group: LinearGroup, factor: NDArray[np.float32], axis: int) -> Scaled:
    """Divide the activation by ``factor`` in a Mul of its own and multiply the weights' rows, in place."""
    scale_rows(group, factor)
    return Scaled(insert_scaling(graph, group, 1 / factor.astype(np.float64), axis), factor, {})


def _rows(group: LinearGroup) -> list[NDArray[np.float32]]:
    """Return the weights of a group, each as [in_features, out_features]."""
    arrays = []
    for linear in group.linears:
        assert linear.weight.const_value is not None
        array: NDArray[np.float32] = linear.weight.const_value.numpy()
        array = array.reshape(*array.shape[:2], -1)[..., 0] if array.ndim > 2 else array
        arrays.append(array if linear.channel_axis == 1 else array.T)
    return arrays
