"""How far a graph that normalises and resizes images itself is from one that is given Pillow's, on 240 photographs.

    python benchmarks/fused_preprocess.py

Trains a small vision transformer for two epochs on generated photographs, exports and quantizes it, puts the
normalisation, and then the resizing too, into each graph, and compares logits and first classes over all photographs,
of any size, under ONNX Runtime on the CPU. Prints the tables of docs/deploying.md and writes
benchmarks/results/fused_preprocess.json.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
from photographs import make_photographs

import vitdeploy as vd

IMAGES = 240
SMALL = {"image_size": 224, "patch": 16, "width": 64, "depth": 4, "heads": 4}
RESULT = Path(__file__).parent / "results" / "fused_preprocess.json"


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        rows = measure(Path(name))
    RESULT.write_text(json.dumps(rows, indent=2) + "\n", "utf8")
    print("| graph | largest difference of a logit, of their range | same first class | input of a batch of 1 |")
    print("| --- | --- | --- | --- |")
    for row in rows:
        bytes_in = f"{row['bytes_before'] / 1e3:.0f} → {row['bytes_after'] / 1e3:.0f} kB"
        print(f"| {row['precision']} | {row['largest']:.1e} | {row['same']} of {row['images']} | {bytes_in} |")
    print("\n| graph that resizes | largest difference of a logit, of their range | same first class |")
    print("| --- | --- | --- |")
    for row in rows:
        print(f"| {row['precision']} | {row['resized_largest']:.1e} | {row['resized_same']} of {row['images']} |")


def measure(folder: Path) -> list[dict[str, object]]:
    photos = folder / "photos"
    make_photographs(photos, IMAGES)
    checkpoint = vd.train(photos, folder / "vit.safetensors", arguments=SMALL, options=vd.TrainOptions(epochs=2))
    graph = vd.export(checkpoint, folder / "vit.onnx")
    graphs = {
        "fp32": graph,
        "fp16": vd.quantize(graph, folder / "fp16.onnx", precision="fp16"),
        "int8": vd.quantize(graph, folder / "int8.onnx", precision="int8", target="onnxruntime", calibration=photos),
    }
    rows = []
    for precision, plain in graphs.items():
        fused = vd.export(plain, folder / f"{precision}.u8.onnx", options=vd.ExportOptions(fuse_preprocess="nhwc"))
        whole = vd.export(plain, folder / f"{precision}.any.onnx", options=vd.ExportOptions(fuse_resize="any"))
        with vd.load(plain) as one, vd.load(fused) as other, vd.load(whole) as last:
            before, after, resized = one.outputs(photos), other.outputs(photos), last.outputs(photos)
        size = int(np.prod(plain.manifest.preprocess.size)) * plain.manifest.preprocess.channels
        rows.append(
            {
                "precision": precision,
                "images": len(before),
                "largest": float(np.abs(after - before).max() / np.ptp(before)),
                "same": int(np.sum(after.argmax(axis=1) == before.argmax(axis=1))),
                "resized_largest": float(np.abs(resized - before).max() / np.ptp(before)),
                "resized_same": int(np.sum(resized.argmax(axis=1) == before.argmax(axis=1))),
                "bytes_before": 4 * size,
                "bytes_after": size,
            }
        )
    return rows


if __name__ == "__main__":
    main()
