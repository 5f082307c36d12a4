"""Make attention masks finite in FP16."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy.graph.values import array_of

FLOAT16_MAX = 65504.0
MASKED = -32768.0
"""Half of the FP16 range: exp(MASKED) is 0, and a score added to it cannot overflow to minus infinity."""


class ClampMasks(ir.passes.InPlacePass):
    """Raise constants below the FP16 range to ``MASKED`` where they mask scores.

    A mask is a constant operand of Add, Where, Max or a Pad's fill, all of whose values beyond ±65504 are negative:
    minus infinity or -3.4e38, written to make a softmax zero. A row that is masked completely then gives a uniform
    softmax instead of NaN.

    Refused: a constant that also has values above 65504; its readers stay in FP32 (see ``fp16_islands``).
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        clamped = 0
        for value in list(model.graph.initializers.values()):
            if value.dtype != ir.DataType.FLOAT or value.is_graph_input() or not _masks(value):
                continue
            array = array_of(value)
            if array is None or not is_mask(array):
                continue
            tensor = ir.tensor(np.where(array < -FLOAT16_MAX, np.float32(MASKED), array), name=value.name)
            value.const_value = tensor
            clamped += 1
        return ir.passes.PassResult(model, modified=bool(clamped))


def is_mask(array: NDArray[Any]) -> bool:
    """Return whether values leave the FP16 range, and all of them below it."""
    return bool(np.any(array < -FLOAT16_MAX) and not np.any(array > FLOAT16_MAX))


def _masks(value: ir.Value) -> bool:
    uses = value.uses()
    return bool(uses) and all(
        node.op_type in ("Add", "Where", "Max") or (node.op_type == "Pad" and index == 2) for node, index in uses
    )
