"""Order ways to quantize by what they leave in the outputs of linears at 8, 6 and 4 bits, in simulation.

    python benchmarks/low_bits.py

The linears are those of the trained digits graphs of the tests, as they are and with channels that were grown behind
norms. Ranges, factors and moments come from 300 images of the training split, errors from 200 of the test split.
Channels are scaled, shifted and turned where the graph has constants that take it. No engine of ours has fewer bits
than 8: they only magnify what tells the ways apart. Prints the mean SQNR of the outputs over all linears.
"""

from __future__ import annotations

import gzip
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from vitdeploy.artifacts import read_onnx
from vitdeploy.backends.onnxruntime import open_graph
from vitdeploy.datasets import batches, open_dataset
from vitdeploy.graph.channel_places import bias_places
from vitdeploy.graph.linear_groups import LinearGroup
from vitdeploy.quantization.activation import Activation
from vitdeploy.quantization.collector import Collector, Observers
from vitdeploy.quantization.placement import Format
from vitdeploy.quantization.plan import Intent, make_plan
from vitdeploy.quantization.prepared import Prepared
from vitdeploy.quantization.realize import free_places, observed_tensors
from vitdeploy.quantization.rotation import Bases
from vitdeploy.quantization.rounding import round_for_outputs
from vitdeploy.quantization.scaling import matrix, smoothing_factor, weight_amax
from vitdeploy.records import RangeMethod, Rotated

ROOT = Path(__file__).resolve().parents[1]
TRAINED = ROOT / "tests" / "quantization" / "trained"
BITS = {"W8A8": (8, 8), "W6A6": (6, 6), "W4A8": (4, 8)}
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Way:
    """How activations and weights of a graph are treated."""

    ranges: RangeMethod = "minmax"
    rotated: tuple[Rotated, ...] = ()
    balanced: bool = False
    gptq: bool = False
    ridge: bool = False


WAYS = {
    "min-max": Way(),
    "least squares ranges": Way("mse"),
    "rotated": Way("mse", ("stream", "values")),
    "scaled and shifted (as RepQ)": Way("mse", balanced=True),
    "scaled and shifted, GPTQ": Way("mse", balanced=True, gptq=True),
    "scaled and shifted, ridge, GPTQ (as ERQ)": Way("mse", balanced=True, gptq=True, ridge=True),
    "rotated, scaled and shifted, GPTQ": Way("mse", ("stream", "values"), balanced=True, gptq=True),
}


def graphs(folder: Path) -> Iterator[tuple[str, Prepared, Observers, Observers]]:
    """Yield each graph with what was observed of it on both splits."""
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    from outliers import norm_outliers

    for file in sorted(TRAINED.glob("*.onnx.gz")):
        path = folder / file.name.removesuffix(".gz")
        path.write_bytes(gzip.decompress(file.read_bytes()))
        artifact = read_onnx(path)
        spec = artifact.manifest.preprocess
        assert spec is not None
        models: dict[str, ir.Model] = {path.stem: artifact.load()}
        if "pinned" not in path.stem:
            models[f"{path.stem}.grown"] = norm_outliers(artifact.load())
        for name, model in models.items():
            prepared = Prepared.of(model)
            plan = make_plan(prepared.linears, prepared.attentions, Intent("int8", "tensorrt"))
            with Collector(prepared.graph, observed_tensors(prepared, plan), open_graph) as collector:
                seen = collector.observe(batches(open_dataset("digits:train", samples=300), spec, 32))
                unseen = collector.observe(batches(open_dataset("digits:test", samples=200), spec, 32))
            yield name, prepared, seen, unseen


def sqnrs(way: Way, bits: tuple[int, int], prepared: Prepared, seen: Observers, unseen: Observers) -> Iterator[float]:
    """Yield the SQNR of the outputs of every linear, in dB."""
    basis, other = (Bases(prepared, observers, Format()).of(way.rotated) for observers in (seen, unseen))
    for group in basis.prepared.linears:
        if not group.obstacle:
            yield from _group_sqnrs(way, bits, group, prepared, basis.activation(group), other.activation(group).rows)


def _group_sqnrs(
    way: Way, bits: tuple[int, int], group: LinearGroup, prepared: Prepared, activation: Activation, others: Array
) -> Iterator[float]:
    factor = np.ones(activation.lo.size, np.float32)
    shapes, middle = prepared.shapes, np.zeros_like(factor)
    if way.balanced and bias_places(group) is not None and free_places(group, shapes, "shift", frozenset()):
        middle = activation.middle
    activation, others = activation.shifted(middle), others - middle
    if way.balanced and free_places(group, shapes, "scale", frozenset()):
        factor = smoothing_factor(activation.channel_amax, weight_amax(group), 0.5)
    activation, others = activation.scaled(factor), others / factor
    weight_steps, steps = (2 ** (count - 1) - 1 for count in bits)
    step = activation.histogram.clip(way.ranges, activation.amax, steps=steps) / steps
    rows, rounded = activation.rows, _rounded(activation.rows, step, steps)
    for linear in group.linears:
        weight = matrix(linear) * factor[:, None]
        scale = np.maximum(np.abs(weight).max(axis=0), 1e-12) / weight_steps
        moved = _ridge(weight, rows, rounded) if way.ridge else weight
        integers = round_for_outputs(moved, scale, rounded) if way.gptq else np.rint(moved / scale)
        found = _rounded(others, step, steps) @ (np.clip(integers, -weight_steps, weight_steps) * scale)
        right = others @ weight
        yield 10 * float(np.log10(np.sum(right**2) / np.sum((found - right) ** 2)))


def _rounded(x: Array, step: float, steps: int) -> Array:
    rounded: Array = (np.clip(np.rint(x / step), -steps, steps) * step).astype(np.float32)
    return rounded


def _ridge(weight: Array, rows: Array, rounded: Array, damping: float = 0.1) -> Array:
    """Move a weight so that it makes up for the rounding of its inputs (ERQ, Zhong et al. 2024, arXiv:2407.06794)."""
    moments = rounded.T.astype(np.float64) @ rounded
    moments += damping * np.trace(moments) / len(moments) * np.eye(len(moments))
    moved: Array = weight + np.linalg.solve(moments, rounded.T.astype(np.float64) @ ((rows - rounded) @ weight))
    return moved.astype(np.float32)


def main() -> None:
    found: defaultdict[tuple[str, str, bool], list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        for name, prepared, seen, unseen in graphs(Path(folder)):
            for title, way in WAYS.items():
                for width, bits in BITS.items():
                    found[title, width, name.endswith(".grown")] += sqnrs(way, bits, prepared, seen, unseen)
    counts = [len(found["min-max", "W8A8", grown]) for grown in (False, True)]
    print(f"{counts[0]} linears of graphs as they are, {counts[1]} with channels grown behind norms\n")
    head = [f"{width}{kind}" for kind in ("", ", grown") for width in BITS]
    print(f"| | {' | '.join(head)} |\n|{' --- |' * (len(head) + 1)}")
    for title in WAYS:
        means = [np.mean(found[title, width, grown]) for grown in (False, True) for width in BITS]
        print(f"| {title} | {' | '.join(f'{mean:.1f} dB' for mean in means)} |")


if __name__ == "__main__":
    main()
