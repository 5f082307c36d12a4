"""What only a GPU can tell: one command that asks it, and writes a JSON of answers.

    python benchmarks/gpu_first_run.py vitdeploy-run

takes ``model.onnx``, ``model.fp16.onnx`` and ``model.int8.onnx`` (for TensorRT) from a folder, such as that of
``vitdeploy run``, and asks each question of QUESTIONS with whatever is installed: TensorRT, TensorRT-RTX, ONNX Runtime
with CUDA, torch. A question that cannot be asked here has the reason; one that fails has the error, and the others go
on. The answers are evidence to decide by, no test: ``make gpu-test`` runs the tests that need a GPU. Exit code 1 where
a question failed.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from vitdeploy import environment
from vitdeploy.artifacts import Engine, OnnxModel, read_onnx
from vitdeploy.backends import get_backend
from vitdeploy.backends.onnxruntime import OnnxRuntimeSession
from vitdeploy.backends.tensorrt_check import compare_golden
from vitdeploy.backends.tensorrt_inspector import listed_layers, precision_by_layer, read_layers
from vitdeploy.backends.tensorrt_session import EngineSession, Lane
from vitdeploy.errors import VitdeployError
from vitdeploy.measure.accuracy import only_input
from vitdeploy.measure.sensors import sensors_of
from vitdeploy.sessions import BuildTarget, Feed, Session, SessionOptions
from vitdeploy.text import one_line

RESULTS = Path(__file__).resolve().parent / "results" / "gpu_first_run.json"
LIBRARIES = ("tensorrt", "tensorrt-rtx")
FILES = {"fp32": "model.onnx", "fp16": "model.fp16.onnx", "int8": "model.int8.onnx"}
IDLE_S = (0.005, 0.05, 0.5, 3.0)
CALLS = 200
SHOWN_LAYERS = 12
HUNG_AFTER_S = 120.0


class NotHereError(Exception):
    """A question that cannot be asked on this machine, and why."""


@dataclass
class Scene:
    """The models of a folder, and the engines that were built of them so far."""

    folder: Path
    work: Path
    engines: dict[tuple[str, str], Engine] = field(default_factory=dict)

    def model(self, precision: str) -> OnnxModel:
        path = self.folder / FILES[precision]
        if not path.is_file():
            raise NotHereError(f"there is no {path}")
        return read_onnx(path)

    def engine(self, library: str, precision: str) -> Engine:
        """Build an engine once; a library that is not installed, or refuses this GPU, is a reason and no failure."""
        backend: Any = get_backend(library)
        reason = backend.unavailable() or backend.can_run()
        if reason is not None:
            raise NotHereError(f"{library}: {reason}")
        key = (library, precision)
        if key not in self.engines:
            model = self.model(precision)
            self.engines[key] = backend.build(model, self.work / f"{library}.{precision}.engine", BuildTarget())
        return self.engines[key]

    def libraries(self) -> list[str]:
        """Return the libraries that build and run engines here."""
        found: list[str] = []
        for name in LIBRARIES:
            backend = get_backend(name)
            if backend.unavailable() is None and backend.can_run() is None:
                found.append(name)
        if not found:
            reasons = [
                f"{name}: {get_backend(name).unavailable() or get_backend(name).can_run()}" for name in LIBRARIES
            ]
            raise NotHereError("; ".join(reasons))
        return found


def feed_of(session: Session, batch: int = 1) -> Feed:
    """Return one seeded input of an open session."""
    spec = only_input(session)
    shape = tuple(batch if size is None else size for size in spec.shape)
    return {spec.name: np.random.default_rng(0).standard_normal(shape).astype(spec.dtype)}


def device_ms(session: Session, calls: int = CALLS) -> dict[str, Any]:
    """Return median and 99th percentile on the device and end to end, and how it was launched."""
    feed, found = feed_of(session), {}
    for scope in ("device", "end_to_end"):
        times = session.time(feed, warmup=calls // 4, iterations=calls, scope=scope)
        found |= {f"{scope}_p50_ms": float(np.median(times)), f"{scope}_p99_ms": float(np.quantile(times, 0.99))}
    return {**found, "launch": session.launch_mode(1), "enqueue_ms": session.enqueue_ms(1)}


def what_the_inspector_says(scene: Scene) -> Any:
    answer = {}
    for library in scene.libraries():
        for precision in ("fp16", "int8"):
            engine = scene.engine(library, precision)
            with get_backend(library).open(engine) as session:
                text = session.inspector_json()
            assert text is not None
            layers = listed_layers(text)
            answer[f"{library} {precision}"] = {
                "layers": len(layers),
                "products": precision_by_layer(read_layers(text)),
                "checks": {check.name: f"{check.status}: {check.detail}" for check in engine.manifest.checks},
                "first": layers[:SHOWN_LAYERS],
            }
    return answer


def own_capture_on_rtx(scene: Scene) -> Any:
    engine = scene.engine("tensorrt-rtx", "fp16")
    with get_backend("tensorrt-rtx").open(engine, SessionOptions(cuda_graph=False)) as opened:
        assert isinstance(opened, EngineSession)
        opened._graphs, opened._request = True, replace(opened._request, captures=True)
        feed = feed_of(opened)
        lane = Lane(opened, {name: tuple(array.shape) for name, array in feed.items()})
        try:
            lane.load(dict(feed))
            for _ in range(3):
                lane.launch()
            lane.stream.synchronize()
            return {"recorded": lane.recorded, "notes": list(opened.notes)}
        finally:
            lane.close()


def what_rtx_says_on_hopper(scene: Scene) -> Any:
    capability = environment.current().compute_capability
    if capability != "9.0":
        raise NotHereError(f"this GPU has compute capability {capability}, the question is of 9.0")
    try:
        scene.engine("tensorrt-rtx", "fp32")
    except VitdeployError as error:
        return {"refused": str(error)}
    return {"refused": None}


def whether_golden_limits_fit(scene: Scene) -> Any:
    answer = {}
    for library in scene.libraries():
        for precision in FILES:
            engine = scene.engine(library, precision)
            with get_backend(library).open(engine) as session:
                assert isinstance(session, EngineSession)
                check = compare_golden(session, engine)
            answer[f"{library} {precision}"] = {"value": check.value, "limit": check.limit, "status": check.status}
    return answer


def graphs_and_nvtx(scene: Scene) -> Any:
    answer = {}
    for library in scene.libraries():
        engine = scene.engine(library, "fp16")
        for graph in (True, False):
            for verbosity in ("NONE", "DETAILED"):
                with get_backend(library).open(engine, SessionOptions(cuda_graph=graph)) as session:
                    assert isinstance(session, EngineSession)
                    for lane in session._lanes.values():
                        lane.context.nvtx_verbosity = getattr(session._request.trt.ProfilingVerbosity, verbosity)
                    key = f"{library}, {'graph' if graph else 'no graph'}, NVTX {verbosity}"
                    answer[key] = {**device_ms(session), "notes": list(session.notes)}
    return answer


def whether_deserializing_hangs(scene: Scene) -> Any:
    if environment.current().jetpack is None:
        raise NotHereError("this is no Jetson: the question is of TensorRT 10.3 in JetPack 6")
    engine = scene.engine("tensorrt", "fp16")
    with tempfile.TemporaryFile("w+") as traces:
        faulthandler.dump_traceback_later(HUNG_AFTER_S, file=traces)
        start = time.perf_counter()
        try:
            with get_backend("tensorrt").open(engine):
                seconds = time.perf_counter() - start
        finally:
            faulthandler.cancel_dump_traceback_later()
        traces.seek(0)
        return {"seconds": seconds, "tracebacks": traces.read()}


def cuda_session(model: OnnxModel) -> OnnxRuntimeSession:
    """Open a graph under ONNX Runtime on CUDA, with nodes left to the CPU where it has to."""
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise NotHereError("this ONNX Runtime has no CUDA provider: pip install onnxruntime-gpu")
    if environment.current().gpu is None:
        raise NotHereError("there is no NVIDIA GPU")
    opened = get_backend("onnxruntime").open(model, SessionOptions(provider="cuda", cpu_fallback=True))
    assert isinstance(opened, OnnxRuntimeSession)
    return opened


def nodes_left_to_the_cpu(scene: Scene) -> Any:
    answer = {}
    for precision in FILES:
        with cuda_session(scene.model(precision)) as session:
            answer[precision] = {"nodes": session.nodes_by_provider, **device_ms(session)}
    return answer


def clock_after_idle(scene: Scene) -> Any:
    with ExitStack() as stack:
        what, call = something_to_run(scene, stack)
        sensors = sensors_of("cuda")
        answer: dict[str, Any] = {"what": what}
        for idle_s in IDLE_S:
            start = time.perf_counter()
            while time.perf_counter() - start < 0.5:
                call()
            time.sleep(idle_s)
            before = sensors.read().clock_mhz
            series = [call() for _ in range(50)]
            answer[f"{idle_s:g} s idle"] = {
                "clock_mhz": before,
                "first_ms": series[0],
                "second_ms": series[1],
                "last_ms": float(np.median(series[-10:])),
                "calls_until_settled": next(
                    (number for number, ms in enumerate(series) if ms <= 1.1 * float(np.median(series[-10:]))), None
                ),
            }
        return answer


def one_call(session: Session) -> Callable[[], float]:
    """Return what runs a session once and gives the milliseconds."""
    feed = feed_of(session)
    return lambda: float(session.time(feed, warmup=0, iterations=1)[0])


def something_to_run(scene: Scene, stack: ExitStack) -> tuple[str, Callable[[], float]]:
    """Return what runs on the GPU once and gives the milliseconds: an engine, else ONNX Runtime, else torch."""
    reasons: list[str] = []
    for library in LIBRARIES:
        try:
            session: Session = stack.enter_context(get_backend(library).open(scene.engine(library, "fp16")))
        except (NotHereError, VitdeployError) as error:
            reasons.append(str(error))
            continue
        return library, one_call(session)
    try:
        return "onnxruntime", one_call(stack.enter_context(cuda_session(scene.model("fp32"))))
    except (NotHereError, VitdeployError) as error:
        reasons.append(str(error))
    try:
        import torch
    except ImportError as error:
        raise NotHereError("; ".join([*reasons, f"torch: {error}"])) from error
    if not torch.cuda.is_available():
        raise NotHereError("; ".join([*reasons, "torch sees no GPU"]))
    matrix = torch.ones(1024, 1024, device="cuda")

    def multiply() -> float:
        start = time.perf_counter()
        torch.mm(matrix, matrix)
        torch.cuda.synchronize()
        return 1000 * (time.perf_counter() - start)

    return "torch", multiply


def what_the_sensors_say(_: Scene) -> Any:
    if environment.current().gpu is None:
        raise NotHereError("there is no NVIDIA GPU")
    sensors = sensors_of("cuda")
    reading = sensors.read()
    return {"source": type(sensors).__name__, **{name: getattr(reading, name) for name in vars(reading)}}


def whether_layers_add_up(scene: Scene) -> Any:
    answer = {}
    for library in scene.libraries():
        with get_backend(library).open(scene.engine(library, "fp16"), SessionOptions(cuda_graph=False)) as session:
            times = session.layer_times(feed_of(session), warmup=20, iterations=50)
            assert times is not None
            answer[library] = {
                "layers": len(times.layers),
                "layers_ms": float(sum(np.median(layer.ms) for layer in times.layers)),
                "profiled_call_ms": float(np.median(times.call_ms)),
                "without_profiler": device_ms(session),
                "unnamed_by_the_inspector": sum(layer.operator == "unknown" for layer in times.layers),
            }
    return answer


def streams_and_contexts(scene: Scene) -> Any:
    answer = {}
    for library in scene.libraries():
        with get_backend(library).open(scene.engine(library, "fp16")) as session:
            assert isinstance(session, EngineSession)
            feed = feed_of(session)
            answer[library] = {
                str(streams): session.throughput(feed, streams=streams, seconds=1.0) for streams in (1, 2, 4)
            }
    return answer


QUESTIONS: dict[str, tuple[str, Callable[[Scene], Any]]] = {
    "A": ("What does the inspector say of layers and precisions?", what_the_inspector_says),
    "B": ("Can a launch of TensorRT-RTX be recorded by ourselves?", own_capture_on_rtx),
    "C": ("What does TensorRT-RTX say on compute capability 9.0?", what_rtx_says_on_hopper),
    "D": ("How far are engines from their golden samples, and do the limits fit?", whether_golden_limits_fit),
    "E": ("What do CUDA graphs and NVTX verbosity change at batch 1?", graphs_and_nvtx),
    "F": ("Does deserializing hang while Python logs (TensorRT 10.3, JetPack 6)?", whether_deserializing_hangs),
    "G": ("How many nodes does ONNX Runtime's CUDA provider leave to the CPU?", nodes_left_to_the_cpu),
    "H": ("How does the clock come back after 5 ms to 3 s of idleness?", clock_after_idle),
    "I": ("What do the GPU's sensors say?", what_the_sensors_say),
    "J": ("Do the profiled layers add up to the call?", whether_layers_add_up),
    "K": ("What do several streams and contexts gain?", streams_and_contexts),
}


def ask(scene: Scene, letters: list[str]) -> dict[str, Any]:
    """Return letter → question, status (``answered``, ``not possible`` or ``failed``), reason and answer."""
    found = {}
    for letter in letters:
        question, experiment = QUESTIONS[letter]
        status, reason, answer = "answered", "", None
        try:
            answer = experiment(scene)
        except NotHereError as error:
            status, reason = "not possible", str(error)
        except Exception as error:  # the answers of the others are worth more than a traceback
            status, reason = "failed", f"{type(error).__name__}: {one_line(error)}"
        found[letter] = {"question": question, "status": status, "reason": reason, "answer": answer}
        print(f"{letter} {status:12} {question} {reason}".rstrip(), flush=True)
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "folder", type=Path, nargs="?", default=Path("vitdeploy-run"), help="with model.onnx and others"
    )
    parser.add_argument("--only", nargs="+", choices=list(QUESTIONS), default=list(QUESTIONS), metavar="LETTER")
    parser.add_argument("--output", type=Path, default=RESULTS)
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as work:
        answers = ask(Scene(chosen.folder, Path(work)), chosen.only)
    content = {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "environment": environment.current().model_dump(mode="json"),
        "versions": environment.versions(),
        "experiments": answers,
    }
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    chosen.output.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf8")
    print(f"wrote {chosen.output}")
    return int(any(one["status"] == "failed" for one in answers.values()))


if __name__ == "__main__":
    sys.exit(main())
