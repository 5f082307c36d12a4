"""Which images to calibrate on? INT8 of a small trained model by what its ranges were taken from.

    python benchmarks/calibration_choice.py

The model is the ViT of two blocks that the tests keep (``tests/quantization/trained``), the sets are 128 digits each:
training digits as they are, of one class, darker, inverted, noise in their place, and test digits. INT8 is for ONNX
Runtime, once with the ranges of min-max alone and once as ``quantize`` does it by default; both are judged on all test
digits. The median of three choices of images stands in the table of ``calibration/README.md``, which this renews.
"""

from __future__ import annotations

import gzip
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

import vitdeploy as vd

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "tests" / "quantization" / "trained" / "vit.onnx.gz"
PAGE = ROOT / "calibration" / "README.md"
BEGIN, END = "<!-- which images -->\n", "<!-- end of it -->\n"
SIZE, SEEDS = 128, (0, 1, 2)
WAYS: dict[str, dict[str, Any]] = {
    "min-max alone": {"method": "minmax", "equalization": "off", "steps": (), "rounding": "nearest"},
    "by default": {},
}


@dataclass(frozen=True)
class Source:
    """Where images come from, and what becomes of each."""

    split: str
    of_class: int | None = None
    change: Callable[[Image.Image, np.random.Generator], Image.Image] = lambda image, random: image


def noise(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Return an image of the same size and mode, each pixel drawn evenly from all values."""
    return Image.fromarray(random.integers(0, 256, np.asarray(image).shape, np.uint8), image.mode)


SOURCES = {
    "training digits": Source("train"),
    "one class, zeros": Source("train", of_class=0),
    "half as bright": Source("train", change=lambda image, random: image.point(lambda pixel: pixel // 2)),
    "inverted": Source("train", change=lambda image, random: ImageOps.invert(image)),
    "noise": Source("train", change=noise),
    "the test digits themselves": Source("test"),
}


def chosen(source: Source, seed: int, folder: Path) -> Path:
    """Write the images of a source into a flat folder and return it."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    data = vd.open_dataset(f"digits:{source.split}")
    labels = np.asarray(data.labels)
    fitting = np.flatnonzero(labels == source.of_class) if source.of_class is not None else np.arange(len(labels))
    for place in random.choice(fitting, min(SIZE, len(fitting)), replace=False):
        source.change(data.image(int(place)), random).save(folder / f"{place:05}.png")
    return folder


def judged(model: vd.OnnxModel, calibration: Path, output: Path, **options: Any) -> tuple[float, float]:
    """Return the logits SQNR in dB and the share of equal predictions against FP32 on the test digits."""
    made = vd.quantize(
        model,
        output,
        precision="int8",
        target="onnxruntime",
        calibration=str(calibration),
        options=vd.QuantizeOptions(validation="digits:test", threads=1, **options),
        progress=None,
    )
    values = {check.name: check.value for check in made.manifest.checks if check.value is not None}
    return values["logits SQNR"], values["agreement"]


def rows(folder: Path) -> Iterator[str]:
    """Yield a line of the table for each source."""
    path = folder / "vit.onnx"
    path.write_bytes(gzip.decompress(MODEL.read_bytes()))
    model = vd.open_artifact(path)
    assert isinstance(model, vd.OnnxModel)
    for name, source in SOURCES.items():
        cells = []
        for way, options in WAYS.items():
            found = [
                judged(model, chosen(source, seed, folder / f"{name} {way} {seed}"), folder / "int8.onnx", **options)
                for seed in SEEDS
            ]
            noise_db, same = (statistics.median(values) for values in zip(*found, strict=True))
            cells.append(f"{noise_db:.1f} dB, {100 * same:.1f} %")
        yield f"| {name} | {' | '.join(cells)} |"
        print(name, cells, flush=True)


def main() -> None:
    """Renew the table."""
    warnings.simplefilter("ignore", vd.FidelityWarning)
    with tempfile.TemporaryDirectory() as folder:
        head = f"| calibrated on | {' | '.join(WAYS)} |\n| --- | {' | '.join('---' for _ in WAYS)} |\n"
        table = head + "\n".join(rows(Path(folder))) + "\n"
    before, rest = PAGE.read_text("utf8").split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", "utf8")


if __name__ == "__main__":
    sys.exit(main())
