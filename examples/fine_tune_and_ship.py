"""Fine-tune a model of timm on a folder of class folders, quantize it, measure it, and ship a bundle.

    python examples/fine_tune_and_ship.py ./photos shipped --model timm:vit_small_patch16_224 --epochs 10

`shipped/` then holds the checkpoint, the graphs, the report, and `vit.bundle`, which any machine can `verify` and
`predict` with. The bundle has the INT8 graph only where it kept top-1 within a point; `--weights FILE` takes weights
that are on the disk in place of timm's published ones.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import vitdeploy as vd


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("photos", help="a folder of class folders")
    parser.add_argument("output", type=Path)
    parser.add_argument("--model", default="timm:vit_small_patch16_224")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--quick", action="store_true", help="hardly any timing, to try this script")
    options = parser.parse_args()

    checkpoint = vd.train(
        options.photos,
        options.output / "vit.safetensors",
        model=options.model,
        weights=options.weights,
        options=vd.TrainOptions(epochs=options.epochs, batch=options.batch, learning_rate=options.learning_rate),
    )
    model = vd.export(checkpoint, options=vd.ExportOptions(reference=f"{options.photos}:test"))
    int8 = vd.quantize(model, precision="int8", target="onnxruntime", calibration=f"{options.photos}:train")
    quick = vd.BenchOptions(rounds=1, iterations=1, processes=False, image_to_label=False, energy_s=0)
    timing = quick if options.quick else vd.BenchOptions()
    report = vd.bench([model, int8], f"{options.photos}:test", options=timing)
    vd.write_report(report, options.output / "report")
    print(*report.verdict, sep="\n")

    kept = [model]
    try:
        report.check(max_drop_pp=1.0)
        kept.insert(0, int8)
    except vd.GateError as error:
        print(f"the INT8 graph stays here: {error}")
    bundle = vd.package(kept, options.output / "vit.bundle", report=options.output / "report")
    found = vd.verify(bundle.path)
    names = ", ".join(one.path.name for one in kept)
    print(f"{bundle.path} has {names}; {'verified' if found.passed else 'NOT verified'}")


if __name__ == "__main__":
    main()
