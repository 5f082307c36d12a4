"""Take the mean error that rounding leaves in a linear's outputs off its bias."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.channel_changes import absorb
from vitdeploy.graph.channel_places import bias_places
from vitdeploy.graph.insert_qdq import QuantizedTensor
from vitdeploy.graph.linear_groups import Linear, LinearGroup
from vitdeploy.quantization.activation import Activation
from vitdeploy.quantization.affine import Grid, dequantize_affine
from vitdeploy.quantization.scaling import matrix


def correct_biases(
    graph: ir.Graph,
    group: LinearGroup,
    activation: Activation,
    grid: Grid,
    weights: Mapping[str, QuantizedTensor],
) -> bool:
    """Add E[x]ᵀW - E[q(x)]ᵀq(W) to the bias of every linear of a group in place; return whether that was possible.

    Nagel et al. 2019, section 4.2. Expectations are means over the sampled rows, weights are by name, and ``grid`` is
    what the activation is rounded to. No node changes, and nothing at all where a linear has no bias or
    nothing was sampled.
    """
    places = bias_places(group)
    if places is None or not activation.count:
        return False
    rounded = grid.rounded(activation.rows)
    exact, mean = activation.rows.mean(axis=0, dtype=np.float64), rounded.mean(axis=0, dtype=np.float64)
    for linear, bias in zip(group.linears, places, strict=True):
        quantized = weights[str(linear.weight.name)]
        absorb(graph, bias, exact @ matrix(linear) - mean @ dequantized_matrix(linear, quantized))
    return True


def dequantized_matrix(linear: Linear, weight: QuantizedTensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Return the rounded weight of a linear as [in_features, out_features]."""
    array = dequantize_affine(weight.values, weight.scale, axis=weight.axis)
    array = array.reshape(array.shape[:2])
    return array if linear.channel_axis == 1 else array.T
