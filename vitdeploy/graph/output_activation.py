"""Which activation a graph applies to its logits before it hands them out."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy.graph.values import DATA_MOVEMENT
from vitdeploy.records import Activation

_PASSED = DATA_MOVEMENT | {"Cast", "Dropout", "Clip"}
_PROBABILITY_TOLERANCE = 1e-3


def output_activation(graph: ir.Graph, outputs: NDArray[np.float32]) -> Activation:
    """Return ``softmax`` or ``sigmoid`` where the graph ends with one, else ``none``.

    Casts, reshapes and clips behind it are looked through. A softmax that is written in pieces shows in the numbers:
    every row of several lies in 0…1 and sums to 1.

    Args:
        graph: With one output.
        outputs: What it gave for some images, [n, outputs].
    """
    node = graph.outputs[0].producer()
    while node is not None and node.op_type in _PASSED and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    if node is not None and node.op_type == "Softmax":
        return "softmax"
    if node is not None and node.op_type in ("Sigmoid", "HardSigmoid"):
        return "sigmoid"
    if outputs.shape[1] < 2 or outputs.min() < 0.0 or outputs.max() > 1.0:
        return "none"
    return "softmax" if np.allclose(outputs.sum(axis=1), 1.0, atol=_PROBABILITY_TOLERANCE) else "none"
