"""Images per second of ``vitdeploy predict`` over a folder, and how far that is from the slower of its two halves.

    python benchmarks/predict_throughput.py            # 10,000 photographs, DeiT-Ti
    python benchmarks/predict_throughput.py --small    # 500 photographs of 96 pixels, a small model

Makes photographs, a few of them no images at all, exports a model with fresh weights (the speed does not depend on
them), and times: decoding and preprocessing alone, inference alone on images that are in memory, and both as ``stream``
overlaps them, the last by the command too, which must list every unreadable file at its end. Where one half runs on a
device of its own, the whole is as fast as the slower half; on a CPU both share the cores, and the whole is bounded by
their sum. The largest memory of the command is that of a tenth of the images too: it must not grow with their number.
Prints JSON, and writes it to ``benchmarks/results/predict_throughput.json``, but not with ``--small``.

Ends with 1 where an image is lost, an unreadable one is not listed, or memory grows.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

import vitdeploy as vd

BATCH = 16
SEEDS = 50
"""Photographs that are drawn; the others are copies with one pixel that is their own, so that making them is quick."""
UNREADABLE_EVERY = 500
GROWTH = 48 << 20
"""Bytes by which the memory of ten times the images may be larger: what allocators keep, not 1.5 GB of images."""
RESULTS = Path(__file__).parent / "results" / "predict_throughput.json"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=None, help="how many photographs (default: 10000, small: 500)")
    parser.add_argument("--small", action="store_true", help="a small model and small photographs")
    parser.add_argument("--turns", type=int, default=1, help="how often each is timed; the median counts")
    arguments = parser.parse_args()
    count = arguments.images or (500 if arguments.small else 10_000)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        few, photos = folder / "few", folder / "photos"
        bad = make_photographs(photos, count, (96, 80) if arguments.small else (500, 375))
        few.mkdir()
        for path in sorted(photos.iterdir())[: count // 10]:
            os.link(path, few / path.name)
        graph = export(folder / "model.onnx", arguments.small)
        with vd.load(graph) as model:
            rates = measure(model, photos, count - bad, arguments.turns)
        command, few_only = (run_command(graph.path, images) for images in (photos, few))
    slower = min(rates["decoding"], rates["inference"])
    figures = {
        "images": count,
        "unreadable": bad,
        "model": graph.manifest.model.name,
        "processor": processor(),
        "threads_of_onnxruntime": os.environ.get("OMP_NUM_THREADS", "its own choice"),
        "images_per_s": {**rates, "command": command["images_per_s"]},
        "of_the_slower_half": rates["together"] / slower,
        "of_one_after_the_other": rates["together"] * (1 / rates["decoding"] + 1 / rates["inference"]),
        "lines": command["images"],
        "listed": command["listed"],
        "largest_memory_mb": {str(count): command["memory_mb"], str(count // 10): few_only["memory_mb"]},
    }
    print(json.dumps(figures, indent=2))
    if not arguments.small and arguments.images is None:
        RESULTS.write_text(json.dumps(figures, indent=2) + "\n", "utf8")
    whole = command["images"] == count - bad and command["listed"] == bad
    return int(not whole or command["memory_mb"] - few_only["memory_mb"] > GROWTH / 1e6)


def make_photographs(folder: Path, count: int, size: tuple[int, int]) -> int:
    """Write JPEGs, every so many of them cut off at a third or no image; return how many cannot be read."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(min(SEEDS, count)):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
        drawn.append(coarse.resize(size, Image.Resampling.BICUBIC))
    bad = 0
    for index in range(count):
        path, image = folder / f"{index:06d}.jpg", drawn[index % len(drawn)]
        image.putpixel((index % size[0], index // size[0] % size[1]), (255, 0, 0))
        image.save(path, quality=90)
        if index % UNREADABLE_EVERY == UNREADABLE_EVERY // 2:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 3] if bad % 2 else b"no image")
            bad += 1
    return bad


def export(path: Path, small: bool) -> Any:
    """Return a graph with fresh weights."""
    arguments = {"image_size": 64, "patch": 16, "width": 64, "depth": 2, "heads": 2, "num_classes": 10} if small else {}
    options = vd.ExportOptions(random_weights=True, arguments=arguments)
    return vd.export("vit" if small else "deit_tiny_patch16_224", path, options=options)


def measure(model: Any, photos: Path, readable: int, turns: int) -> dict[str, float]:
    """Return images per second of decoding, of inference, and of both together."""
    pixels = next(one for _, one in model.read(photos) if isinstance(one, np.ndarray))
    batch = np.stack([pixels] * BATCH)

    def decode() -> None:
        for _ in model.read(photos):
            pass

    def infer() -> None:
        for _ in range(readable // BATCH):
            model.run(batch)

    def both() -> None:
        for _ in model.stream(photos, batch=BATCH, on_error=lambda name, error: None):
            pass

    parts = {"decoding": decode, "inference": infer, "together": both}
    taken: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(turns):
        for name, work in parts.items():
            taken[name].append(seconds(work))
    return {name: readable / float(np.median(values)) for name, values in taken.items()}


def run_command(graph: Path, photos: Path) -> dict[str, Any]:
    """Return what ``vitdeploy predict --csv`` did, and its largest memory."""
    command = [sys.executable, "-m", "vitdeploy", "predict", str(graph), str(photos), "--top", "1", "--csv"]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as notes:
        start = time.perf_counter()
        process = psutil.Popen(command, stdout=out, stderr=notes)
        memory = 0
        while process.poll() is None:
            try:
                memory = max(memory, process.memory_info().rss)
            except psutil.NoSuchProcess:
                break
            time.sleep(0.05)
        taken = time.perf_counter() - start
        out.seek(0)
        notes.seek(0)
        images = sum(1 for _ in out) - 1
        listed = sum(line.startswith("left out: ") for line in notes)
    return {"images": images, "listed": listed, "memory_mb": memory / 1e6, "images_per_s": images / taken}


def processor() -> str:
    """Return the processor's name and how many cores this process may use."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    name = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


def seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
