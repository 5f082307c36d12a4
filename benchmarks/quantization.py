"""Whose INT8 keeps the accuracy: ours beside six other quantizers, on the same graph, images and runtime.

    python benchmarks/quantization.py                                     # the digits models of the tests
    python benchmarks/quantization.py --emoji emoji                       # and what benchmarks/emoji.py trained
    python benchmarks/quantization.py --python nncf=ENV/bin/python        # a tool that has an environment of its own

The digits models are a ViT, a DeiT and a T2T-ViT, each plain and with outliers: (a) channels of LayerNorm's γ and β
grow 30 to 1000 times and the rows that read them shrink; (b) the same behind each GELU; (c) trained with two channels
of the residual stream at 300 and -1400. Every tool gets the same FP32 graph of ours and the same calibration images,
quantizes in a process of its own, at the settings that its documentation gives for such a model, and its graph runs in
ONNX Runtime. Top-1, agreement and SQNR of logits are of the whole test split, which nobody calibrated on; latency is
measured in turns, ours against each (``measure.statistics.speedup``), and nobody is called faster whose interval
touches 1. Wall time and peak memory are those of the whole process. Results go to
``benchmarks/results/quantization.json`` model by model, and ``docs/accuracy.md`` is rendered from it.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from accuracy_page import OURS, QUANTIZATION_RESULTS, render_accuracy
from numpy.typing import NDArray
from peers import PEERS
from support_tables import ROOT, read_results, write_results

import vitdeploy
from vitdeploy import environment
from vitdeploy.artifacts import OnnxModel, read_onnx, write_onnx
from vitdeploy.datasets import batches, load_pixels, open_dataset
from vitdeploy.measure.load import watch_other_load
from vitdeploy.measure.statistics import agreement, logits_sqnr_db, speedup
from vitdeploy.preprocess import normalize
from vitdeploy.stages.calibration_sets import make_calibration_set
from vitdeploy.stages.export import export

sys.path.insert(0, str(ROOT / "tests" / "support"))
from outliers import gelu_outliers, norm_outliers

TRAINED = ROOT / "tests" / "quantization" / "trained"
PLANTED: dict[str, Callable[..., Any]] = {"a": norm_outliers, "b": gelu_outliers}
CALIBRATED = 200
ROUNDS, TURN_S = 7, 0.2
Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Subject:
    """A trained FP32 graph, and the data that it knows."""

    name: str
    model: OnnxModel
    data: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="model", help="part of the models' names, such as vit or deit.c")
    parser.add_argument("--emoji", type=Path, metavar="FOLDER", help="what benchmarks/emoji.py wrote and trained")
    parser.add_argument(
        "--python", action="append", default=[], metavar="PEER=FILE", help="its interpreter; repeatable"
    )
    arguments = parser.parse_args()
    interpreters = dict(item.split("=", 1) for item in arguments.python)
    if unknown := interpreters.keys() - PEERS.keys():
        parser.error(f"there is no peer {', '.join(sorted(unknown))}, expected some of {', '.join(PEERS)}")
    with tempfile.TemporaryDirectory() as folder:
        for subject in subjects(Path(folder), arguments.emoji):
            if arguments.names and not any(name in subject.name for name in arguments.names):
                continue
            row = measure(subject, Path(folder) / subject.name, interpreters)
            models = read_results(QUANTIZATION_RESULTS).get("models", {}) | {subject.name: row}
            write_results(QUANTIZATION_RESULTS, {"models": models})
            render_accuracy()
            print(f"{subject.name}: FP32 {row['fp32_top1']:.2%}", flush=True)
            for title, one in row["candidates"].items():
                print(f"  {title}: " + (one.get("error") or f"{one['top1']:.2%}, {one['sqnr_db']:.1f} dB"), flush=True)


def subjects(folder: Path, emoji: Path | None) -> Iterator[Subject]:
    """Yield the digits models, plain and with outliers, then those of the emoji task."""
    for family in ("vit", "deit", "t2t"):
        plain = unpacked(family, folder)
        yield Subject(f"digits.{family}", plain, "digits")
        for kind, plant in PLANTED.items():
            path = folder / f"{family}.{kind}.onnx"
            yield Subject(
                f"digits.{family}.{kind}", write_onnx(path, plant(plain.load()), plain.manifest, plain.golden), "digits"
            )
        yield Subject(f"digits.{family}.c", unpacked(f"{family}.pinned", folder), "digits")
    for checkpoint in sorted(emoji.glob("*.safetensors")) if emoji else ():
        model = export(checkpoint, folder / f"{checkpoint.stem}.emoji.onnx")
        yield Subject(f"emoji.{checkpoint.stem}", model, str((emoji or folder) / "images"))


def unpacked(name: str, folder: Path) -> OnnxModel:
    path = folder / f"{name}.onnx"
    path.write_bytes(gzip.decompress((TRAINED / f"{name}.onnx.gz").read_bytes()))
    return read_onnx(path)


def measure(subject: Subject, folder: Path, interpreters: dict[str, str]) -> dict[str, Any]:
    """Let every tool quantize a model, judge the logits on the test split, and time what was made in turns."""
    folder.mkdir()
    spec = subject.model.manifest.preprocess
    assert spec is not None
    make_calibration_set(subject.data, folder / "calibration", samples=CALIBRATED, preprocess=spec)
    np.save(folder / "images.npy", np.concatenate(list(batches(open_dataset(str(folder / "calibration")), spec, 32))))
    test = open_dataset(subject.data, split="test")
    images, labels = normalize(load_pixels(test, spec), spec), np.asarray(test.labels)
    right = run(subject.model.path, images)
    runs: dict[str, Any] = {"FP32": opened(subject.model.path)}
    candidates: dict[str, dict[str, Any]] = {}
    for title in (OURS, *PEERS):
        output = folder / f"{title}.onnx"
        try:
            row = quantized(command(title, subject.model.path, folder, output, interpreters), folder)
            logits = run(output, images)
            runs[title] = opened(output)
        except RuntimeError as error:
            candidates[title] = {"error": str(error)}
            continue
        candidates[title] = row | {
            "top1": float(np.mean(logits.argmax(axis=1) == labels)),
            "agreement": agreement(logits, right),
            "sqnr_db": logits_sqnr_db(logits, right) if np.isfinite(logits).all() else 0.0,
        }
    blocks, other = timed(runs, images[:1])
    for title, row in candidates.items():
        if "error" not in row:
            row["p50_ms"] = float(np.median(np.concatenate(blocks[title])))
            if title != OURS:
                row["ours_faster_by"], row["interval"] = speedup(blocks[OURS], blocks[title])
    return {
        "fp32_top1": float(np.mean(right.argmax(axis=1) == labels)),
        "test_images": len(labels),
        "calibration_images": CALIBRATED,
        "fp32_ms": float(np.median(np.concatenate(blocks["FP32"]))),
        "candidates": candidates,
        "other_load_cores": other,
        "measured": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "tools": {name: version for row in candidates.values() for name, version in row.pop("tools", {}).items()},
        "environment": environment.current().model_dump(mode="json", exclude_none=True),
    }


def command(title: str, source: Path, folder: Path, output: Path, interpreters: dict[str, str]) -> list[str]:
    if title != OURS:
        python = interpreters.get(title, sys.executable)
        script = Path(__file__).resolve().with_name("peers.py")
        return [python, str(script), title, str(source), str(folder / "images.npy"), str(output)]
    options = ["--precision", "int8", "--target", "onnxruntime", "--calibration", str(folder / "calibration")]
    return [sys.executable, "-m", "vitdeploy", "quantize", str(source), "-o", str(output), *options]


def quantized(arguments: list[str], folder: Path) -> dict[str, Any]:
    """Run a tool and return wall time and peak memory of its process, or raise what it ended with."""
    start = time.perf_counter()
    with (folder / "log.txt").open("w+") as log:
        process = subprocess.Popen(arguments, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - start
        log.seek(0)
        last = (log.read().strip().splitlines() or ["no output"])[-1]
    if process.returncode:
        raise RuntimeError(last[:200])
    tools = json.loads(last) if arguments[1].endswith("peers.py") else {OURS: vitdeploy.__version__}
    return {"seconds": seconds, "peak_mb": used.ru_maxrss / 1024, "tools": tools}


def opened(path: Path) -> Any:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = 1, 4
    try:
        session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common class of their own
        raise RuntimeError(f"onnxruntime does not open its graph: {str(error).splitlines()[0][:200]}") from error
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def run(path: Path, images: NDArray[np.float32]) -> Logits:
    model = opened(path)
    return np.concatenate([model(images[start : start + 32]) for start in range(0, len(images), 32)])


def timed(
    runs: dict[str, Any], image: NDArray[np.float32]
) -> tuple[dict[str, list[NDArray[np.float64]]], float | None]:
    """Return blocks of milliseconds per call at batch 1, of candidates in turns, and the cores that others used."""
    blocks: dict[str, list[NDArray[np.float64]]] = {title: [] for title in runs}
    random = np.random.default_rng(0)
    with watch_other_load() as load:
        for _ in range(ROUNDS):
            for title in random.permutation(list(runs)):
                model, calls = runs[title], []
                model(image)
                end = time.perf_counter() + TURN_S
                while time.perf_counter() < end:
                    start = time.perf_counter()
                    model(image)
                    calls.append(1000 * (time.perf_counter() - start))
                blocks[title].append(np.asarray(calls))
    return blocks, load.cores


if __name__ == "__main__":
    main()
