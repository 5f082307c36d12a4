"""How many calibration images are enough? INT8 logits SQNR on images that were never seen, by size and seed of the set.

    python benchmarks/calibration_size.py vit.onnx --data digits:train --validation digits:validation -o results.json

Per size and seed: a stratified choice of the training split, INT8 for ONNX Runtime with min-max ranges and no
equalisation, so that only the set differs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from vitdeploy import environment
from vitdeploy.artifacts import read_onnx
from vitdeploy.quantization.request import QuantizeOptions
from vitdeploy.stages.quantize import quantize

SIZES = (8, 16, 32, 64, 128, 256, 512, 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", default="digits:train")
    parser.add_argument("--validation", default="digits:validation")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    model = read_onnx(arguments.model)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size in SIZES:
            values = [
                sqnr_db(model, Path(folder) / "int8.onnx", arguments, size, seed) for seed in range(arguments.seeds)
            ]
            rows.append({"images": size, "sqnr_db": values})
            print(
                f"{size:5d} images: median {statistics.median(values):.1f} dB, worst {min(values):.1f} dB", flush=True
            )
    report = {
        "model": model.manifest.model.name,
        "payload_sha256": model.manifest.payload_sha256,
        "data": arguments.data,
        "validation": arguments.validation,
        "method": "minmax, equalization off, target onnxruntime",
        "versions": environment.versions(),
        "rows": rows,
    }
    arguments.output.write_text(json.dumps(report, indent=1) + "\n", "utf8")


def sqnr_db(model: object, output: Path, arguments: argparse.Namespace, size: int, seed: int) -> float:
    options = QuantizeOptions(
        method="minmax", equalization="off", samples=size, seed=seed, validation=arguments.validation, threads=1
    )
    made = quantize(
        model,  # type: ignore[arg-type]
        output,
        precision="int8",
        target="onnxruntime",
        calibration=arguments.data,
        options=options,
    )
    return next(check.value for check in made.manifest.checks if "SQNR" in check.name and check.value is not None)


if __name__ == "__main__":
    main()
