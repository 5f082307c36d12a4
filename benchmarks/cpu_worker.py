"""The process of one candidate of ``benchmarks/cpu.py``: it opens it, and answers lines of commands until stdin ends.

A runtime is ``onnxruntime``, ``onnxruntime:pinned`` (a core for each thread), ``onnxruntime:sleeping`` (threads that do
not spin while they wait), ``openvino``, ``openvino:pinned``, ``openvino:bf16`` or ``pytorch:MODE``, where MODE is
``eager``, ``compile``, ``autocast-bf16`` or ``torchao-int8``. Commands are ``feed FILE`` (an array that calls are timed
with), ``outputs FILE`` (what it makes of images, at the batch size of the feed) and ``turn``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

TURN_S, LEAST_CALLS = 0.5, 3
Images = NDArray[np.float32]
Run = Callable[[Images], Any]


class Worker:
    """A candidate in a process of its own, as the benchmark sees it."""

    def __init__(self, runtime: str, file: Path, threads: int) -> None:
        command = [sys.executable, __file__, runtime, str(file), "--threads", str(threads)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def feed(self, images: Path) -> None:
        """Take what calls are timed with; compiling, packing and warming up happen here."""
        self._ask(f"feed {images}")

    def turn(self) -> NDArray[np.float64]:
        """Return milliseconds of some calls, after one that does not count."""
        return np.asarray(json.loads(self._ask("turn")), np.float64)

    def cpu_s(self) -> float:
        """Return the seconds of processor time that it has used."""
        times = psutil.Process(self._process.pid).cpu_times()
        return float(times.user + times.system)

    def outputs(self, images: Path) -> Images:
        return np.asarray(json.loads(self._ask(f"outputs {images}")), np.float32)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _ask(self, line: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"its process ended with {self._process.wait()}")
        found = json.loads(answer)
        if isinstance(found, str):
            raise RuntimeError(found)
        return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runtime")
    parser.add_argument("file", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    run: Run | None = None
    images = np.empty(0, np.float32)
    for line in sys.stdin:
        command, _, file = line.strip().partition(" ")
        try:
            run = run or opened(arguments.runtime, arguments.file, arguments.threads)
            if command == "feed":
                images, answer = np.load(file), True
                run(images)
            elif command == "outputs":
                answer = outputs(run, np.load(file), len(images)).tolist()
            else:
                answer = timed(run, images)
        except Exception as error:  # any runtime's own type; the candidate is left out with this as its reason
            answer = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        print(json.dumps(answer), file=answers, flush=True)


def timed(run: Run, images: Images) -> list[float]:
    run(images)
    found: list[float] = []
    end = time.perf_counter() + TURN_S
    while time.perf_counter() < end or len(found) < LEAST_CALLS:
        start = time.perf_counter()
        run(images)
        found.append(1000 * (time.perf_counter() - start))
    return found


def outputs(run: Run, images: Images, batch: int) -> Images:
    """Return the outputs of all images, which go in at a fixed batch size, the first ones again where the last lack."""
    parts = [run(np.resize(images[i : i + batch], (batch, *images.shape[1:]))) for i in range(0, len(images), batch)]
    found: Images = np.concatenate(parts)[: len(images)]
    return found


def opened(runtime: str, file: Path, threads: int) -> Run:
    """Return a function from a batch to outputs, with the settings of the backends."""
    name, _, mode = runtime.partition(":")
    if name == "onnxruntime":
        import onnxruntime

        from vitdeploy.backends.onnxruntime import session_settings
        from vitdeploy.sessions import SessionOptions

        spinning, pinning = (False if mode == "sleeping" else None), (True if mode == "pinned" else None)
        settings = session_settings(SessionOptions(threads, pinning=pinning, spinning=spinning), "fp32")
        session = onnxruntime.InferenceSession(str(file), settings, providers=["CPUExecutionProvider"])
        feed = session.get_inputs()[0].name
        return lambda images: session.run(None, {feed: images})[0]
    if name == "openvino":
        import openvino

        hints: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
        hints["INFERENCE_PRECISION_HINT"] = "bf16" if mode == "bf16" else "f32"
        if mode == "pinned":
            hints["ENABLE_CPU_PINNING"] = True
        core = openvino.Core()
        model, requests = core.read_model(str(file)), dict[tuple[int, ...], Any]()

        def infer(images: Images) -> Any:
            if images.shape not in requests:
                fixed = model.clone()
                fixed.reshape(list(images.shape))
                requests[images.shape] = core.compile_model(fixed, "CPU", hints).create_infer_request()
            return np.array(requests[images.shape].infer([images], share_inputs=True)[0])

        return infer
    return opened_by_pytorch(file, mode, threads)


def opened_by_pytorch(file: Path, mode: str, threads: int) -> Run:
    import torch

    from vitdeploy.sources.load import load_source

    torch.set_num_threads(threads)
    module: Any = load_source(str(file)).module.eval()
    if mode == "torchao-int8":
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        quantize_(module, Int8DynamicActivationInt8WeightConfig())
    if mode in ("compile", "torchao-int8"):
        module = torch.compile(module)
    halved = mode == "autocast-bf16"

    def run(images: Images) -> Any:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=halved):
            return module(torch.from_numpy(images)).float().numpy()

    return run


if __name__ == "__main__":
    main()
