"""What ``quantize`` costs beside ONNX Runtime's plain forward of the same images: CPU and wall time, and peak memory.

    python benchmarks/quantize_cost.py                      # ViT-B/16 at 224, 512 images, percentile
    python benchmarks/quantize_cost.py --images 64 --turns 1 --effort fast,default,best

Both run in processes of their own, of which the whole counts: starting, reading and preparing the images, and for
``quantize`` calibration, trials, check and writing. Weights are random, which changes no time. Expected with effort
``default``: peak at most 1.5 GB, wall time at most 1.5 times the plain forward.

CPU seconds, of all threads, are the steadier figure: other processes on the machine stretch wall time, and not evenly.
``passes`` are images through any graph, per image of the set; it does not depend on the machine at all. Of these, those
through the graphs in 8 bits take a third of the time of the others on a CPU with VNNI.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

MOST_PEAK_GB, MOST_RATIO = 1.5, 1.5


@dataclass(frozen=True)
class Cost:
    """Of one process: wall and CPU seconds, peak memory in GB, and images through any graph."""

    wall: float
    cpu: float
    peak: float
    passes: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--effort", default="default", help="one, or several with commas between them")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU, 0 for all")
    parser.add_argument("--part", choices=("export", "plain", "quantize"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part is not None:
        {"export": export_model, "plain": plain, "quantize": quantized}[arguments.part](arguments)
        return
    efforts = arguments.effort.split(",")
    found: dict[str, list[tuple[Cost, Cost]]] = {effort: [] for effort in efforts}
    with tempfile.TemporaryDirectory() as folder:
        arguments.folder = Path(folder)
        carried_out("export", arguments)
        for turn in range(arguments.turns):
            arguments.effort = efforts[0]
            beside = carried_out("plain", arguments)
            for effort in efforts:
                arguments.effort = effort
                ours = carried_out("quantize", arguments)
                found[effort].append((ours, beside))
                print(
                    f"turn {turn + 1}, {effort}: plain {beside.wall:.0f} s ({beside.cpu:.0f} s of CPU), quantize "
                    f"{ours.wall:.0f} s ({ours.cpu:.0f} s of CPU), peak {ours.peak:.2f} GB",
                    flush=True,
                )
    print(f"\n{arguments.model}, {arguments.images} images, beside a plain forward of {beside.peak:.2f} GB\n")
    print("| effort | CPU time | wall time | passes | peak |\n| --- | --- | --- | --- | --- |")
    kept = True
    for effort, pairs in found.items():
        cpu = statistics.median(ours.cpu / beside.cpu for ours, beside in pairs)
        wall = statistics.median(ours.wall / beside.wall for ours, beside in pairs)
        peak = max(ours.peak for ours, _ in pairs)
        passes = pairs[0][0].passes / arguments.images
        print(f"| `{effort}` | {cpu:.2f} × | {wall:.2f} × | {passes:.2f} | {peak:.2f} GB |")
        kept = kept and (effort != "default" or (peak <= MOST_PEAK_GB and wall <= MOST_RATIO))
    sys.exit(0 if kept else 1)


def carried_out(part: str, arguments: argparse.Namespace) -> Cost:
    """Run a part in a process of its own."""
    command = [sys.executable, __file__, "--part", part, "--folder", str(arguments.folder)]
    for name in ("model", "images", "effort", "threads"):
        command += [f"--{name}", str(getattr(arguments, name))]
    start, before = time.monotonic(), cpu_seconds()
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found = json.loads(printed.strip().splitlines()[-1])
    return Cost(time.monotonic() - start, cpu_seconds() - before, found["peak"], found["passes"])


def cpu_seconds() -> float:
    """Return the user and system time of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


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
    print_cost(0)


def plain(arguments: argparse.Namespace) -> None:
    from vitdeploy.artifacts import read_onnx
    from vitdeploy.backends.onnxruntime import OnnxRuntimeSession
    from vitdeploy.datasets import batches, open_dataset
    from vitdeploy.sessions import SessionOptions

    model = read_onnx(arguments.folder / "vit.onnx")
    assert model.manifest.preprocess is not None
    images = open_dataset(arguments.folder / "images")
    settings = SessionOptions(device="cpu", threads=arguments.threads)
    with OnnxRuntimeSession(str(model.path), settings, "fp32") as session:
        (name,) = session.inputs
        for batch in batches(images, model.manifest.preprocess, 8):
            session.run({name: batch})
    print_cost(len(images))


def quantized(arguments: argparse.Namespace) -> None:
    from vitdeploy.backends.onnxruntime import OnnxRuntimeSession
    from vitdeploy.sessions import Feed
    from vitdeploy.stages.quantize import QuantizeOptions, quantize

    passes, run = 0, OnnxRuntimeSession.run

    def counted(session: OnnxRuntimeSession, feed: Feed) -> dict[str, Any]:
        nonlocal passes
        passes += len(next(iter(feed.values())))
        return run(session, feed)

    OnnxRuntimeSession.run = counted  # type: ignore[assignment, method-assign]
    quantize(
        arguments.folder / "vit.onnx",
        arguments.folder / "int8.onnx",
        precision="int8",
        target="onnxruntime",
        calibration=str(arguments.folder / "images"),
        options=QuantizeOptions(method="percentile", effort=arguments.effort, threads=arguments.threads),
        progress=None,
    )
    print_cost(passes)


def print_cost(passes: int) -> None:
    print(json.dumps({"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, "passes": passes}))


if __name__ == "__main__":
    main()
