"""Small models that were trained on the digits and are kept in the repository, and their INT8 for ONNX Runtime."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

from vitdeploy.artifacts import OnnxModel, read_onnx
from vitdeploy.stages.quantize import QuantizeOptions, quantize

TRAINED = Path(__file__).parents[1] / "quantization" / "trained"
FAMILIES = ("vit", "deit", "t2t")


def trained_model(name: str, folder: Path) -> OnnxModel:
    """Unpack a model into a folder: of a family, or one whose scales are pinned (``vit.pinned``)."""
    path = folder / f"{name}.onnx"
    path.write_bytes(gzip.decompress((TRAINED / f"{name}.onnx.gz").read_bytes()))
    return read_onnx(path)


def quantized(model: OnnxModel, path: Path, **options: Any) -> OnnxModel:
    chosen = QuantizeOptions(threads=1, samples=200, **options)
    return quantize(
        model, path, precision="int8", target="onnxruntime", calibration="digits:train", options=chosen, progress=None
    )
