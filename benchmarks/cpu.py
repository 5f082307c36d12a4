"""Whose INT8 is fastest on this CPU: ours in both runtimes, onnxruntime's own and NNCF's, against FP32 and PyTorch.

    python benchmarks/cpu.py vit_tiny_patch16_224 --batch 1 --threads 2

Every candidate runs in a process of its own and they take turns, so that clocks and other users of the machine meet all
alike. A ratio is of medians over the same rounds with a 95 % interval (``measure.statistics.speedup``), and nobody is
called faster whose interval touches 1. Weights are redrawn and images made: SQNR is of the logits against the FP32
graph, on images that no candidate was calibrated on. Results go to ``benchmarks/results/cpu.json``, with the load of
the machine. NNCF is measured where it is installed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from matrix import made_images, redrawn_checkpoint
from numpy.typing import NDArray
from support_tables import RESULTS, read_results, write_results

from vitdeploy import environment
from vitdeploy.artifacts import OnnxModel, read_onnx
from vitdeploy.datasets import batches, open_dataset
from vitdeploy.measure.load import watch_other_load
from vitdeploy.measure.statistics import logits_sqnr_db, speedup
from vitdeploy.quantization.request import QuantizeOptions
from vitdeploy.stages.export import export
from vitdeploy.stages.inspect import inspect
from vitdeploy.stages.quantize import quantize

CPU_RESULTS = RESULTS / "cpu.json"
CALIBRATED, CHECKED = 64, 16
OURS = ("ONNX Runtime, our INT8", "OpenVINO, our INT8")
TURN_S = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+", metavar="VARIANT", help="names of the catalogue")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker, arguments.names[0], arguments.batch, arguments.threads)
        return
    for name in arguments.names:
        with tempfile.TemporaryDirectory() as folder:
            row = measure(name, Path(folder), arguments)
        key = f"{name}, batch {arguments.batch}, {arguments.threads} threads"
        rows = read_results(CPU_RESULTS).get("rows", {}) | {key: row}
        write_results(CPU_RESULTS, {"rows": rows})
        print(f"{key}\n" + "\n".join(lines(row)), flush=True)


def measure(name: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Make all candidates of a model, judge their logits, and time them in turns."""
    redrawn_checkpoint(name, folder / "model.safetensors")
    model = export(folder / "model.safetensors", folder / "fp32.onnx")
    assert model.manifest.preprocess is not None
    spec = model.manifest.preprocess
    calibration = made_images(folder / "calibration", CALIBRATED, 1, spec)
    unseen = open_dataset(made_images(folder / "unseen", CHECKED, 3, spec))
    images = np.concatenate(list(batches(unseen, spec, 8)))
    files, reasons = candidates(model, calibration, folder)
    workers: dict[str, Worker] = {}
    for title, (runtime, file) in files.items():
        try:
            workers[title] = Worker(runtime, file, arguments)
        except RuntimeError as error:
            reasons[title] = str(error)
    np.save(folder / "images.npy", images)
    logits = {title: worker.logits(folder / "images.npy") for title, worker in workers.items()}
    blocks: dict[str, list[NDArray[np.float64]]] = {title: [] for title in workers}
    random = np.random.default_rng(0)
    with watch_other_load() as load:
        for _ in range(arguments.rounds):
            for title in random.permutation(list(workers)):
                blocks[title].append(workers[title].turn())
    for worker in workers.values():
        worker.close()
    return {
        "candidates": {title: row_of(title, files[title], logits, blocks) for title in workers},
        "left_out": reasons,
        "rounds": arguments.rounds,
        "images": {"calibrated": CALIBRATED, "compared": CHECKED},
        "measured": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "environment": environment.current().model_dump(mode="json", exclude_none=True),
        "versions": environment.versions(),
        "adds_in_32_bits": environment.adds_in_32_bits(),
        "other_load_cores": load.cores,
    }


def candidates(model: OnnxModel, calibration: str, folder: Path) -> tuple[dict[str, tuple[str, Path]], dict[str, str]]:
    """Return title → (runtime, file), and why a peer is missing."""
    files = {
        "PyTorch eager FP32": ("pytorch", folder / "model.safetensors"),
        "ONNX Runtime FP32": ("onnxruntime", model.path),
        "OpenVINO FP32": ("openvino", model.path),
    }
    reasons: dict[str, str] = {}
    for title, target in zip(OURS, ("onnxruntime", "openvino"), strict=True):
        graph = quantize(
            model,
            folder / f"{target}.onnx",
            precision="int8",
            target=target,  # type: ignore[arg-type]
            calibration=calibration,
            options=QuantizeOptions(effort="fast"),
        )
        files[title] = (target, graph.path)
    assert model.manifest.preprocess is not None
    pixels = list(batches(open_dataset(calibration), model.manifest.preprocess, 1))
    for title, make in (
        ("ONNX Runtime, its own static INT8", own_static),
        ("ONNX Runtime, its own dynamic INT8", own_dynamic),
        ("OpenVINO, NNCF INT8", nncf_int8),
    ):
        try:
            path = make(model.path, pixels, folder)
        except Exception as error:  # a peer that fails is a row that says so
            reasons[title] = f"{type(error).__name__}: {error}"
            continue
        files[title] = ("openvino" if "OpenVINO" in title else "onnxruntime", path)
    return files, reasons


def own_static(path: Path, pixels: list[NDArray[np.float32]], folder: Path) -> Path:
    """Quantize with onnxruntime.quantization at its defaults for transformers: Q/DQ, per channel, min-max."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter({"input": image} for image in pixels)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.left, None)

    output = folder / "own_static.onnx"
    quantize_static(
        str(path),
        str(output),
        Reader(),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return output


def own_dynamic(path: Path, pixels: list[NDArray[np.float32]], folder: Path) -> Path:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    output = folder / "own_dynamic.onnx"
    quantize_dynamic(str(path), str(output), per_channel=True, weight_type=QuantType.QInt8)
    return output


def nncf_int8(path: Path, pixels: list[NDArray[np.float32]], folder: Path) -> Path:
    """Quantize with NNCF in its mode for transformers, for OpenVINO."""
    import nncf
    import openvino

    output = folder / "nncf.xml"
    quantized = nncf.quantize(
        openvino.Core().read_model(str(path)),
        nncf.Dataset(pixels),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(pixels),
    )
    openvino.save_model(quantized, str(output), compress_to_fp16=False)
    return output


def row_of(
    title: str,
    source: tuple[str, Path],
    logits: dict[str, NDArray[np.float32]],
    blocks: dict[str, list[NDArray[np.float64]]],
) -> dict[str, Any]:
    """Return a candidate's median, fidelity, and its speed beside ours in the same runtime."""
    ours = OURS[0] if source[0] == "onnxruntime" else OURS[1]
    ratio, interval = speedup(blocks[ours], blocks[title]) if title not in OURS else (1.0, None)
    row: dict[str, Any] = {
        "p50_ms": float(np.median(np.concatenate(blocks[title]))),
        "ours_faster_by": ratio,
        "interval": interval,
        "sqnr_db": logits_sqnr_db(logits[title], logits["ONNX Runtime FP32"]),
    }
    if title in OURS:
        census = inspect(read_onnx(source[1]), runtime=source[0]).census  # type: ignore[arg-type]
        row["integers"] = None if census is None else [census.integer, census.planned]
    if not np.isfinite(row["sqnr_db"]):
        row["sqnr_db"] = None
    return row


def lines(row: dict[str, Any]) -> list[str]:
    said = [f"  {title}: left out, {reason}" for title, reason in row["left_out"].items()]
    for title, one in sorted(row["candidates"].items(), key=lambda item: item[1]["p50_ms"]):
        verdict = ""
        if one["interval"] is not None:
            low, high = one["interval"]
            who = "ours is faster" if low > 1 else "ours is slower" if high < 1 else "no winner: the interval holds 1"
            verdict = f", ours against it {one['ours_faster_by']:.2f} × ({low:.2f} to {high:.2f}): {who}"
        sqnr = "" if one["sqnr_db"] is None else f", {one['sqnr_db']:.1f} dB"
        said.append(f"  {title}: {one['p50_ms']:.2f} ms{sqnr}{verdict}")
    return [*said, f"  other processes kept {row['other_load_cores'] or 0:.1f} cores busy"]


class Worker:
    """A candidate in a process of its own, which answers lines of commands."""

    def __init__(self, runtime: str, file: Path, arguments: argparse.Namespace) -> None:
        command = [sys.executable, __file__, str(file), "--worker", runtime, "--batch", str(arguments.batch)]
        command += ["--threads", str(arguments.threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.ask("ready")

    def ask(self, line: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"its process ended with {self.process.wait()}")
        return answer

    def turn(self) -> NDArray[np.float64]:
        return np.asarray(json.loads(self.ask("turn")), np.float64)

    def logits(self, images: Path) -> NDArray[np.float32]:
        return np.asarray(json.loads(self.ask(f"logits {images}")), np.float32)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def work(runtime: str, file: str, batch: int, threads: int) -> None:
    """Run in the worker's process: open the candidate, and answer until stdin ends."""
    run = opened(runtime, file, threads)
    feed: NDArray[np.float32] | None = None
    for line in sys.stdin:
        command, _, argument = line.strip().partition(" ")
        if command == "ready":
            answer: Any = True
        elif command == "logits":
            images = np.load(argument)
            feed = np.ascontiguousarray(np.resize(images, (batch, *images.shape[1:])))
            answer = np.concatenate(
                [run(np.resize(images[i : i + batch], feed.shape)) for i in range(0, len(images), batch)]
            )
            answer = answer[: len(images)].tolist()
        else:
            assert feed is not None
            run(feed)
            answer, end = [], time.perf_counter() + TURN_S
            while time.perf_counter() < end or len(answer) < 3:
                start = time.perf_counter()
                run(feed)
                answer.append(1000 * (time.perf_counter() - start))
        print(json.dumps(answer), flush=True)


def opened(runtime: str, file: str, threads: int) -> Any:
    """Return a function from images to logits, with the settings of the backends."""
    if runtime == "onnxruntime":
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads, settings.log_severity_level = threads, 4
        settings.add_session_config_entry("session.force_spinning_stop", "1")
        session = onnxruntime.InferenceSession(file, settings, providers=["CPUExecutionProvider"])
        return lambda images: session.run(None, {"input": images})[0]
    if runtime == "openvino":
        import openvino

        hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
        request = openvino.Core().compile_model(file, "CPU", hints).create_infer_request()
        return lambda images: np.array(request.infer([images], share_inputs=True)[0])
    import torch

    from vitdeploy.sources.load import load_source

    torch.set_num_threads(threads)
    module = load_source(file).module.eval()

    def run(images: NDArray[np.float32]) -> Any:
        with torch.inference_mode():
            return module(torch.from_numpy(images)).numpy()

    return run


if __name__ == "__main__":
    main()
