"""Serve a repository of ``package --triton`` by Triton itself, and query it over HTTP and gRPC, up to overload.

    python -m venv serving && serving/bin/pip install nvidia-pytriton onnxruntime
    vitdeploy package vit.onnx -o vit.zip --triton models
    serving/bin/python benchmarks/triton_load.py models [--perf-analyzer PROGRAM]

The wheel ``nvidia-pytriton`` carries the server and its Python backend alone. So ``onnxruntime_onnx`` is answered by a
few lines of Python around ONNX Runtime here (``BACKEND``): what is validated is that the server reads config.pbtxt,
warms up with the golden sample, batches requests, answers over both protocols and turns requests away when the queue is
full; Triton's own ONNX Runtime and TensorRT backends are not. For each model: answers are compared with ONNX Runtime's,
eight clients ask as fast as they get answers, and then sixteen queues' worth of requests come at once. Prints JSON, and
writes it to benchmarks/results/triton_load.json. Ends with 1 where an answer is wrong or the server does not survive.

NVIDIA's ``perf_analyzer``, where it is named, asks each model over both protocols with as many clients. The package
``perf-analyzer`` is empty; the program is in older wheels of ``tritonclient``, and needs a library of Debian's and one
of CUDA's, on a machine without a GPU too:

    pip download --no-deps tritonclient==2.41.0 nvidia-cuda-runtime-cu12 && apt-get install libb64-0d
    unzip -o tritonclient-2.41.0-*.whl '*/perf_analyzer' && unzip -o nvidia_cuda_runtime_cu12-*.whl '*/libcudart.so.12'
    export PERF_ANALYZER_LIBRARIES=$PWD/nvidia/cuda_runtime/lib
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import shutil
import signal
import site
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

HTTP, GRPC = "localhost:18000", "localhost:18001"
CLIENTS, SECONDS, START_S = 8, 10.0, 120.0
TOLERANCE = 1e-4
RESULTS = Path(__file__).parent / "results" / "triton_load.json"
BACKEND = """
import os
import numpy as np
import onnxruntime
import triton_python_backend_utils as utils


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        return config

    def initialize(self, arguments):
        path = os.path.join(arguments["model_repository"], arguments["model_version"], "model.onnx")
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        images = [utils.get_input_tensor_by_name(request, "input").as_numpy() for request in requests]
        (logits,) = self.session.run(["logits"], {"input": np.concatenate(images)})
        parts = np.split(logits, np.cumsum([len(one) for one in images])[:-1])
        return [utils.InferenceResponse([utils.Tensor("logits", np.ascontiguousarray(one))]) for one in parts]
"""


def main() -> int:
    """Serve, ask, and return 1 where something is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("repository", type=Path)
    parser.add_argument("--perf-analyzer", type=Path, help="NVIDIA's program, to measure with too")
    arguments = parser.parse_args()
    repository = arguments.repository.resolve()
    with tempfile.TemporaryDirectory() as name:
        server = start(repository, Path(name))
        try:
            import tritonclient.grpc as triton

            client = triton.InferenceServerClient(GRPC)
            server_version = wait_until_ready(client, server, Path(name) / "log")
            models = sorted(path.parent.name for path in repository.glob("*/config.pbtxt"))
            found = {model: measure(repository / model, client) for model in models}
            if arguments.perf_analyzer is not None:
                for model in models:
                    found[model]["perf_analyzer"] = analyze(arguments.perf_analyzer.resolve(), repository / model)
            survived = server.poll() is None and client.is_server_ready()
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(60)
    figures = {
        "server": server_version,
        "nvidia-pytriton": version("nvidia-pytriton"),
        "tritonclient": version("tritonclient"),
        "survived": survived,
        "models": found,
    }
    print(json.dumps(figures, indent=2))
    RESULTS.write_text(json.dumps(figures, indent=2) + "\n", "utf8")
    return int(not survived or any(max(one["differences"].values()) > TOLERANCE for one in found.values()))


def start(repository: Path, work: Path) -> subprocess.Popen[bytes]:
    """Start the server of the wheel, with a backend for ONNX models beside its own."""
    import pytriton

    packages = Path(pytriton.__file__).parent.parent
    shutil.copytree(packages / "pytriton" / "tritonserver", work / "server")
    stub = f"python_backend_stubs/{sys.version_info.major}.{sys.version_info.minor}/triton_python_backend_stub"
    shutil.copy(work / "server" / stub, work / "server" / "backends" / "python")
    (work / "server" / "backends" / "onnxruntime").mkdir()
    (work / "server" / "backends" / "onnxruntime" / "model.py").write_text(BACKEND)
    ports = [f"--http-port={HTTP.rpartition(':')[2]}", f"--grpc-port={GRPC.rpartition(':')[2]}"]
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "PYTHONPATH": os.pathsep.join(site.getsitepackages()),
        "LD_LIBRARY_PATH": str(packages / "nvidia_pytriton.libs"),
    }
    command = [
        str(work / "server" / "bin" / "tritonserver"),
        f"--model-repository={repository}",
        f"--backend-directory={work / 'server' / 'backends'}",
        "--allow-metrics=false",
        *ports,
    ]
    with (work / "log").open("wb") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def wait_until_ready(client: Any, server: subprocess.Popen[bytes], log: Path) -> str:
    """Return the server's version once every model is ready."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            if client.is_server_ready():
                return str(client.get_server_metadata().version)
        except Exception:  # nobody listens yet
            pass
        time.sleep(0.5)
    failures = [line for line in log.read_text().splitlines() if "fail" in line.lower() or "error" in line.lower()]
    raise SystemExit("\n".join(["the server did not become ready:", *failures[:20]]))


def measure(folder: Path, client: Any) -> dict[str, Any]:
    """Return differences to ONNX Runtime, what eight clients got, and what became of too many requests at once."""
    import onnxruntime
    import tritonclient.grpc as triton
    import tritonclient.http as web

    config = (folder / "config.pbtxt").read_text()
    session = onnxruntime.InferenceSession(folder / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    # the sizes of the warm-up are known even where the model takes images of any size
    (*_, sizes) = re.findall(r"dims: \[([\d, ]+)\]", config)
    shape = [int(size) for size in sizes.split(",")]
    rng = np.random.default_rng(0)
    is_bytes = "TYPE_UINT8" in config
    images = rng.integers(0, 256, (4, *shape), np.uint8) if is_bytes else rng.normal(size=(4, *shape)).astype("f")
    expected = session.run(["logits"], {"input": images})[0]
    kind = "UINT8" if is_bytes else "FP32"

    def asked(module: Any, batch: np.ndarray[Any, Any]) -> Any:
        value = module.InferInput("input", batch.shape, kind)
        value.set_data_from_numpy(batch)
        return value

    answers = {
        "http": web.InferenceServerClient(HTTP).infer(folder.name, [asked(web, images)]).as_numpy("logits"),
        "grpc": client.infer(folder.name, [asked(triton, images)]).as_numpy("logits"),
    }
    differences = {name: float(np.abs(one - expected).max() / np.ptp(expected)) for name, one in answers.items()}

    times: list[float] = []

    def ask_on(stop: float) -> None:
        own = web.InferenceServerClient(HTTP)
        value = asked(web, images[:1])
        while time.monotonic() < stop:
            begin = time.perf_counter()
            own.infer(folder.name, [value])
            times.append(1e3 * (time.perf_counter() - begin))

    threads = [threading.Thread(target=ask_on, args=(time.monotonic() + SECONDS,)) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {
        "differences": differences,
        "clients": CLIENTS,
        "requests": len(times),
        "per_s": len(times) / SECONDS,
        "p50_ms": float(np.percentile(times, 50)),
        "p99_ms": float(np.percentile(times, 99)),
        **overload(folder.name, client, asked(triton, images[:1]), expected[:1], config),
    }


def analyze(program: Path, folder: Path) -> dict[str, Any]:
    """Return what perf_analyzer measures of a model, over each protocol: answers per second, and latencies in ms.

    On a machine that others use, too, no two windows of measurement agree: their mean is taken however they differ.
    """
    (*_, sizes) = re.findall(r"dims: \[([\d, ]+)\]", (folder / "config.pbtxt").read_text())
    environment = {**os.environ, "LD_LIBRARY_PATH": os.environ.get("PERF_ANALYZER_LIBRARIES", "")}
    found: dict[str, Any] = {}
    for protocol, url in (("http", HTTP), ("grpc", GRPC)):
        with tempfile.NamedTemporaryFile(suffix=".csv") as table:
            command = [
                str(program), "-m", folder.name, "-u", url, "-i", protocol, "--concurrency-range", str(CLIENTS),
                "--shape", f"input:{sizes.replace(' ', '')}", "--stability-percentage", "999", "--percentile", "99",
                "--measurement-interval", "5000", "-f", table.name,
            ]  # fmt: skip
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
            if done.returncode:
                raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
            (row,) = csv.DictReader(table.read().decode().splitlines())
        found[protocol] = {
            "per_s": float(row["Inferences/Second"]),
            "p50_ms": float(row["p50 latency"]) / 1e3,
            "p99_ms": float(row["p99 latency"]) / 1e3,
        }
    return found


def overload(model: str, client: Any, value: Any, expected: np.ndarray[Any, Any], config: str) -> dict[str, Any]:
    """Send sixteen queues' worth of requests at once; each is answered rightly or turned away."""
    queued = re.search(r"max_queue_size: (\d+)", config)
    count = 16 * int(queued[1]) if queued else 1000
    done = threading.Semaphore(0)
    right, wrong, refusals = [0], [0], {}  # type: list[int], list[int], dict[str, int]
    lock = threading.Lock()

    def answered(result: Any, error: Any) -> None:
        with lock:
            if error is not None:
                text = str(error).strip()
                refusals[text] = refusals.get(text, 0) + 1
            elif np.abs(result.as_numpy("logits") - expected).max() <= TOLERANCE * max(1.0, np.ptp(expected)):
                right[0] += 1
            else:
                wrong[0] += 1
        done.release()

    for _ in range(count):
        client.async_infer(model, [value], answered)
    for _ in range(count):
        done.acquire()
    return {"overload": count, "answered": right[0], "wrong": wrong[0], "turned_away": refusals}


if __name__ == "__main__":
    sys.exit(main())
