"""Images per second of load(...).stream over a folder, and how far that is from the slower of its two halves alone.

    python benchmarks/predict_throughput.py --images 1000

Makes photographs, exports DeiT-Ti with fresh weights (the speed does not depend on them), and times, in turns: decoding
and preprocessing alone, inference alone on images that are in memory, and both as ``stream`` overlaps them. Where one
half runs on a device of its own, the whole is as fast as the slower half; on a CPU both share the cores, and the whole
is bounded by their sum. Prints the medians over the turns.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from photographs import make_photographs

import vitdeploy as vd

BATCH = 16
TURNS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photos = folder / "photos"
        make_photographs(photos, arguments.images)
        options = vd.ExportOptions(random_weights=True)
        graph = vd.export("deit_tiny_patch16_224", folder / "deit.onnx", options=options)
        with vd.load(graph) as model:
            (_, pixels), *_ = model.read(photos)
            batch = np.stack([pixels] * BATCH)
            count = sum(1 for _ in model.read(photos))

            def decode() -> None:
                for _ in model.read(photos):
                    pass

            def infer() -> None:
                for _ in range(count // BATCH):
                    model.run(batch)

            def both() -> None:
                for _ in model.stream(photos, batch=BATCH):
                    pass

            rates = {name: [] for name in ("decoding", "inference", "together")}  # type: dict[str, list[float]]
            for _ in range(TURNS):
                for name, work in (("decoding", decode), ("inference", infer), ("together", both)):
                    rates[name].append(count / seconds(work))
    for name, found in rates.items():
        print(f"{name}: {statistics.median(found):.0f} images/s")
    halves = zip(rates["decoding"], rates["inference"], rates["together"], strict=True)
    ratios = [(both / min(one, other), both * (1 / one + 1 / other)) for one, other, both in halves]
    slower, summed = (statistics.median(values) for values in zip(*ratios, strict=True))
    print(f"together: {slower:.2f} of the slower half, {summed:.2f} of one after the other")


def seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
