"""How tests quantize the transformer that reads digits, and what they ask of the result."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir

from vitdeploy.artifacts import OnnxModel
from vitdeploy.quantization.request import QuantizeOptions
from vitdeploy.records.manifest import Check

DEPTH = 2
ONE_THREAD = QuantizeOptions(threads=1, samples=200)
FAST = QuantizeOptions(threads=1, samples=60, method="minmax", equalization="off", effort="fast")


def ops(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def check(artifact: OnnxModel, name: str) -> Check:
    return next(found for found in artifact.manifest.checks if found.name == name)
