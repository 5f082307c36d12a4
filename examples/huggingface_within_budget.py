"""Quantize a Hugging Face folder so that top-1 drops by no more than so many points, as fast as that allows.

    python examples/huggingface_within_budget.py ./my-vit ./photos fast.onnx --max-drop 1

The folder is what `save_pretrained` writes: `config.json`, weights, and the image processor, from which size, resizing
and normalisation follow. Latency is measured with ONNX Runtime on this machine's CPU. Ends with 3 where nothing is
certain to be within the budget.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import vitdeploy as vd


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", help="what save_pretrained wrote")
    parser.add_argument("photos", help="a folder of class folders, with train and validation folders or without")
    parser.add_argument("output", type=Path)
    parser.add_argument("--max-drop", type=float, default=1.0, help="percentage points of top-1")
    parser.add_argument("--time-on", default="onnxruntime")
    options = parser.parse_args()

    model = vd.export(f"hf:{options.folder}", options.output.with_suffix(".fp32.onnx"))
    try:
        fast = vd.quantize(
            model,
            options.output,
            precision="int8",
            calibration=f"{options.photos}:train",
            options=vd.QuantizeOptions(
                max_drop=options.max_drop, time_on=options.time_on, validation=f"{options.photos}:validation"
            ),
        )
    except vd.BudgetError as error:
        print(f"{error}\nwhat was tried: {error.front}", file=sys.stderr)
        return error.exit_code
    print(f"{fast.path}: {fast.manifest.precision}")
    for check in fast.manifest.checks:
        print(f"{check.name}: {check.status} {check.detail}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
