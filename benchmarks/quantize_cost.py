"""What ``quantize`` costs beside ONNX Runtime's plain forward of the same images: wall time in turns, and peak memory.

    python benchmarks/quantize_cost.py                      # ViT-B/16 at 224, 512 images, percentile
    python benchmarks/quantize_cost.py --images 64 --turns 1

Both run in processes of their own, of which the whole counts: starting, reading and preparing the images, and for
``quantize`` calibration, trials, check and writing. Weights are random, which changes no time. Expected: peak at most
1.5 GB, wall time at most 1.5 times the plain forward.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

MOST_PEAK_GB, MOST_RATIO = 1.5, 1.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--effort", default="default")
    parser.add_argument("--part", choices=("export", "plain", "quantize"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part is not None:
        {"export": export_model, "plain": plain, "quantize": quantized}[arguments.part](arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        arguments.folder = Path(folder)
        ratios, peaks = [], []
        carried_out("export", arguments)
        for turn in range(arguments.turns):
            seconds, _ = carried_out("plain", arguments)
            ours, peak = carried_out("quantize", arguments)
            ratios.append(ours / seconds)
            peaks.append(peak)
            print(f"turn {turn + 1}: plain {seconds:.0f} s, quantize {ours:.0f} s, peak {peak:.2f} GB", flush=True)
    ratio, peak = statistics.median(ratios), max(peaks)
    print(f"{arguments.model}, {arguments.images} images: {ratio:.2f} times the plain forward, peak {peak:.2f} GB")
    sys.exit(0 if peak <= MOST_PEAK_GB and ratio <= MOST_RATIO else 1)


def carried_out(part: str, arguments: argparse.Namespace) -> tuple[float, float]:
    """Run a part in a process of its own; return its seconds, and its peak memory in GB."""
    command = [sys.executable, __file__, "--part", part, "--folder", str(arguments.folder)]
    for name in ("model", "images", "effort"):
        command += [f"--{name}", str(getattr(arguments, name))]
    start = time.monotonic()
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return time.monotonic() - start, float(found.stdout.strip().splitlines()[-1])


def export_model(arguments: argparse.Namespace) -> None:
    from vitdeploy.datasets.check_images import smooth_random_pixels
    from vitdeploy.stages.export import ExportOptions, export

    model = export(
        arguments.model, arguments.folder / "vit.onnx", options=ExportOptions(random_weights=True), progress=None
    )
    assert model.manifest.preprocess is not None
    (arguments.folder / "images").mkdir()
    for index, pixels in enumerate(smooth_random_pixels(model.manifest.preprocess, arguments.images, 1)):
        Image.fromarray(pixels).save(arguments.folder / "images" / f"{index:05}.png")
    print_peak()


def plain(arguments: argparse.Namespace) -> None:
    from vitdeploy.artifacts import read_onnx
    from vitdeploy.backends.onnxruntime import OnnxRuntimeSession
    from vitdeploy.datasets import batches, open_dataset
    from vitdeploy.sessions import SessionOptions

    model = read_onnx(arguments.folder / "vit.onnx")
    assert model.manifest.preprocess is not None
    images = open_dataset(arguments.folder / "images")
    with OnnxRuntimeSession(str(model.path), SessionOptions(device="cpu"), "fp32") as session:
        (name,) = session.inputs
        for batch in batches(images, model.manifest.preprocess, 8):
            session.run({name: batch})
    print_peak()


def quantized(arguments: argparse.Namespace) -> None:
    from vitdeploy.stages.quantize import QuantizeOptions, quantize

    quantize(
        arguments.folder / "vit.onnx",
        arguments.folder / "int8.onnx",
        precision="int8",
        target="onnxruntime",
        calibration=str(arguments.folder / "images"),
        options=QuantizeOptions(method="percentile", effort=arguments.effort),
        progress=None,
    )
    print_peak()


def print_peak() -> None:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)


if __name__ == "__main__":
    main()
