"""Quantize an ONNX file with one other tool, as its documentation says; ``benchmarks/quantization.py`` runs it.

    python benchmarks/peers.py nncf model.onnx images.npy out.onnx

It needs the tool and NumPy, and none of this package: each tool may have an environment of its own. ``images.npy`` is
[N, C, H, W] float32, normalised. The last line is JSON: the versions of what it used.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

BATCH = 8


class Reader:
    """Batches of images as onnxruntime's calibrators read them."""

    def __init__(self, name: str, images: Any) -> None:
        self.name, self.images = name, images
        self.rewind()

    def rewind(self) -> None:
        self.left: Iterator[Any] = iter(np.split(self.images, range(BATCH, len(self.images), BATCH)))

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self.left, None)
        return None if batch is None else {self.name: batch}


def main() -> None:
    peer, source, images, output = sys.argv[1:]
    pixels = np.load(images)
    with contextlib.redirect_stdout(sys.stderr):
        PEERS[peer](source, pixels, output)
    assert Path(output).exists(), f"{peer} wrote nothing"
    print(json.dumps({name: metadata.version(name) for name in DISTRIBUTIONS[peer]}))


def onnxruntime_static(method: str, per_channel: bool) -> Callable[[str, Any, str], None]:
    """Quantize by the defaults of ``quantize_static`` after the preprocessing that its documentation asks for."""

    def make(source: str, pixels: Any, output: str) -> None:
        from onnxruntime.quantization import CalibrationMethod, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        prepared = output + ".prepared.onnx"
        try:
            quant_pre_process(source, prepared)
        except Exception as error:  # its symbolic shapes do not know every operator; then it says to skip them
            print(f"{type(error).__name__}: {error}")
            quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            output,
            Reader(input_name(source), pixels),
            per_channel=per_channel,
            calibrate_method=getattr(CalibrationMethod, method),
        )

    return make


def onnxruntime_dynamic(source: str, _pixels: Any, output: str) -> None:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(source, output)


def optimum_dynamic(source: str, _pixels: Any, output: str) -> None:
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig

    config = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=True)
    path = Path(source)
    folder = Path(output + ".folder")
    ORTQuantizer.from_pretrained(path.parent, file_name=path.name).quantize(config, save_dir=folder)
    (written,) = folder.glob("*.onnx")
    written.rename(output)


def nncf(source: str, pixels: Any, output: str) -> None:
    """Quantize with NNCF's mode for transformers, its default preset."""
    import nncf
    import onnx

    name = input_name(source)
    data = nncf.Dataset([{name: image[None]} for image in pixels])
    model = nncf.quantize(onnx.load(source), data, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(pixels))
    onnx.save(model, output)


def modelopt(source: str, pixels: Any, output: str) -> None:
    from modelopt.onnx.quantization import quantize

    quantize(
        source,
        quantize_mode="int8",
        calibration_data={input_name(source): pixels},
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        output_path=output,
    )


def quark(source: str, pixels: Any, output: str) -> None:
    from quark.onnx import ModelQuantizer, QConfig

    quantizer = ModelQuantizer(QConfig.get_default_config("A8W8"))
    quantizer.quantize_model(source, output, Reader(input_name(source), pixels))


def input_name(source: str) -> str:
    import onnx

    return str(onnx.load(source, load_external_data=False).graph.input[0].name)


PEERS: dict[str, Callable[[str, Any, str], None]] = {
    "onnxruntime": onnxruntime_static("MinMax", False),
    "onnxruntime-minmax": onnxruntime_static("MinMax", True),
    "onnxruntime-entropy": onnxruntime_static("Entropy", True),
    "onnxruntime-percentile": onnxruntime_static("Percentile", True),
    "onnxruntime-dynamic": onnxruntime_dynamic,
    "optimum-dynamic": optimum_dynamic,
    "nncf": nncf,
    "modelopt": modelopt,
    "quark": quark,
}

DISTRIBUTIONS = {
    **dict.fromkeys(PEERS, ("onnxruntime",)),
    "optimum-dynamic": ("optimum", "onnxruntime"),
    "nncf": ("nncf",),
    "modelopt": ("nvidia-modelopt",),
    "quark": ("amd-quark",),
}

if __name__ == "__main__":
    main()
