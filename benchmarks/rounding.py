"""Compare ways to round weights by the error that they leave in the outputs of linears, at 8 and at 4 bits.

    python benchmarks/rounding.py

The linears are those of the trained digits graphs of the tests. Ranges, moments and everything that is learned come
from 300 images of the training split, errors from 200 of the test split; inputs have 8 bits, and 4-bit weights (which
no engine of ours has) magnify what tells the methods apart. Prints the mean SQNR of the outputs over all
linears, and the time, and the same of GPTQ by how many rows of the inputs it has for each channel.
"""

from __future__ import annotations

import gzip
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vitdeploy.artifacts import read_onnx
from vitdeploy.backends.onnxruntime import open_graph
from vitdeploy.datasets import batches, open_dataset
from vitdeploy.quantization.activation import Activation
from vitdeploy.quantization.collector import Collector
from vitdeploy.quantization.observers import MANY_ROWS
from vitdeploy.quantization.placement import Format, activation_grid, quantize_weight
from vitdeploy.quantization.plan import Intent, make_plan
from vitdeploy.quantization.prepared import Prepared
from vitdeploy.quantization.realize import observed_tensors
from vitdeploy.quantization.rounding import round_for_outputs
from vitdeploy.quantization.scaling import matrix

TRAINED = Path(__file__).resolve().parents[1] / "tests" / "quantization" / "trained"
Array = np.ndarray[Any, Any]
Method = Callable[[Array, Array, Array, Array], Array]
ROWS_BY_CHANNEL = (0.055, 0.25, 0.5, 1, 2, 4)
"""The first is what a sample of 2 MB has for fc2 of ViT-B: 170 rows of 3072 channels."""


def nearest(weight: Array, scale: Array, _rows: Array, _rounded: Array) -> Array:
    return np.rint(weight / scale)


def gptq(weight: Array, scale: Array, _rows: Array, rounded: Array) -> Array:
    return round_for_outputs(weight, scale, rounded)


def ridge(weight: Array, scale: Array, rows: Array, rounded: Array) -> Array:
    return np.rint(_ridge(weight, rows, rounded) / scale)


def ridge_and_gptq(weight: Array, scale: Array, rows: Array, rounded: Array) -> Array:
    return round_for_outputs(_ridge(weight, rows, rounded), scale, rounded)


def adaround(weight: Array, scale: Array, _rows: Array, rounded: Array, iterations: int = 1000) -> Array:
    """Learn for every weight whether it goes up or down (Nagel et al. 2020, arXiv:2004.10568), by Adam in NumPy."""
    moments = rounded.T.astype(np.float64) @ rounded / len(rounded)
    moments /= np.trace(moments) / len(moments)
    low = np.floor(weight / scale)
    share = np.clip((weight / scale - low + 0.1) / 1.2, 1e-4, 1 - 1e-4)
    logit = np.log(share / (1 - share))
    first, second = np.zeros_like(logit), np.zeros_like(logit)
    for step in range(1, iterations + 1):
        sigmoid = 1 / (1 + np.exp(-logit))
        up = np.clip(1.2 * sigmoid - 0.1, 0, 1)
        slope = 2 * (moments @ (low + up - weight / scale))
        done = max(0.0, (step / iterations - 0.2) / 0.8)
        if done:
            beta = 20 - 18 * done
            slope -= 0.02 * beta * np.sign(2 * up - 1) * np.abs(2 * up - 1) ** (beta - 1)
        slope *= ((up > 0) & (up < 1)) * 1.2 * sigmoid * (1 - sigmoid)
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        logit -= 0.1 * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    return low + (1.2 / (1 + np.exp(-logit)) - 0.1 >= 0.5)


def _ridge(weight: Array, rows: Array, rounded: Array, damping: float = 0.1) -> Array:
    """Move a weight so that it makes up for the rounding of its inputs (ERQ, Zhong et al. 2024, arXiv:2407.06794)."""
    moments = rounded.T.astype(np.float64) @ rounded
    moments += damping * np.trace(moments) / len(moments) * np.eye(len(moments))
    moved: Array = weight + np.linalg.solve(moments, rounded.T.astype(np.float64) @ ((rows - rounded) @ weight))
    return moved.astype(np.float32)


METHODS: dict[str, Method] = {
    "nearest": nearest,
    "GPTQ": gptq,
    "AdaRound, 1000 steps": adaround,
    "ridge": ridge,
    "ridge, then GPTQ": ridge_and_gptq,
}


def linears(name: str, form: Format, folder: Path) -> Iterator[tuple[Array, Array, Array, Array, Array, Array]]:
    """Yield weight, scale, inputs and rounded inputs of the training split, and of the test split, of each linear."""
    path = folder / f"{name}.onnx"
    path.write_bytes(gzip.decompress((TRAINED / f"{name}.onnx.gz").read_bytes()))
    artifact = read_onnx(path)
    spec = artifact.manifest.preprocess
    assert spec is not None
    prepared = Prepared.of(artifact.load())
    plan = make_plan(prepared.linears, prepared.attentions, Intent("int8", "tensorrt"))
    with Collector(prepared.graph, observed_tensors(prepared, plan), open_graph, MANY_ROWS) as collector:
        seen = collector.observe(batches(open_dataset("digits:train", samples=300), spec, 32))
        unseen = collector.observe(batches(open_dataset("digits:test", samples=200), spec, 32))
    for group in prepared.linears:
        if group.obstacle:
            continue
        observed = Activation.of(seen[str(group.activation.name)])
        others = Activation.of(unseen[str(group.activation.name)]).rows
        grid = activation_grid(observed.interval("mse", 99.99), form)
        for linear in group.linears:
            scale = quantize_weight(linear, form).scale
            yield matrix(linear), scale, observed.rows, grid.rounded(observed.rows), others, grid.rounded(others)


def main() -> None:
    form = Format()
    names = sorted(path.name.removesuffix(".onnx.gz") for path in TRAINED.glob("*.onnx.gz"))
    found: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
    seconds: defaultdict[str, float] = defaultdict(float)
    by_rows: defaultdict[tuple[float, int], list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            for weight, scale, rows, rounded, others, others_rounded in linears(name, form, Path(folder)):
                right = others @ weight
                for method, function in METHODS.items():
                    for bits, most in ((8, 127), (4, 7)):
                        step = scale * 127 / most
                        start = time.perf_counter()
                        integers = np.clip(function(weight, step, rows, rounded), -most, most)
                        seconds[method] += (time.perf_counter() - start) / 2
                        wrong = others_rounded @ (integers * step) - right
                        found[method, bits].append(_sqnr_db(right, wrong))
                mixed = np.random.default_rng(0).permutation(rounded)
                for ratio in ROWS_BY_CHANNEL if len(rounded) >= ROWS_BY_CHANNEL[-1] * len(weight) else ():
                    for bits, most in ((8, 127), (4, 7)):
                        step = scale * 127 / most
                        integers = np.clip(gptq(weight, step, rows, mixed[: round(ratio * len(weight))]), -most, most)
                        by_rows[ratio, bits].append(_sqnr_db(right, others_rounded @ (integers * step) - right))
    print(f"{len(found['nearest', 8])} linears of {', '.join(names)}\n")
    print("| rounding | W8A8 | W4A8 | time |\n| --- | --- | --- | --- |")
    for method in METHODS:
        eight, four = np.mean(found[method, 8]), np.mean(found[method, 4])
        print(f"| {method} | {eight:.1f} dB | {four:.1f} dB | {seconds[method]:.2f} s |")
    print(f"\nGPTQ, {len(by_rows[1, 8])} linears\n\n| rows for each channel | W8A8 | W4A8 |\n| --- | --- | --- |")
    for ratio in ROWS_BY_CHANNEL:
        print(f"| {ratio:g} | {np.mean(by_rows[ratio, 8]):.1f} dB | {np.mean(by_rows[ratio, 4]):.1f} dB |")


def _sqnr_db(right: Array, wrong: Array) -> float:
    return float(10 * np.log10(np.sum(right**2) / np.sum(wrong**2)))


if __name__ == "__main__":
    main()
