"""OpenVINO on Intel's (and other x86) processors."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np

from vitdeploy import environment
from vitdeploy.artifacts import Artifact, OnnxModel
from vitdeploy.backends.lowered import refuse_lowered
from vitdeploy.backends.session import Arrays, CheckedSession
from vitdeploy.backends.threads import refuse_thread_settings
from vitdeploy.errors import BackendError, BuildError
from vitdeploy.progress import SILENT, Progress
from vitdeploy.records.report import Device
from vitdeploy.sessions import (
    BuildTarget,
    Feed,
    Kernel,
    LayerTime,
    LayerTimes,
    Role,
    SessionOptions,
    TensorSpec,
    ThreadSetting,
)
from vitdeploy.text import one_line

DEVICE = "CPU"
TELEMETRY = "openvino_telemetry"
HALF = 0.5e-6
PRECISIONS = {"f32": "fp32", "f16": "fp16", "i8": "int8", "u8": "uint8"}
ROLES: dict[str, Role] = {
    "FullyConnected": "product",
    "MatMul": "product",
    "Convolution": "product",
    "ScaledDotProductAttention": "product",
    "Subgraph": "fusion",
    "Convert": "conversion",
    "FakeQuantize": "conversion",
    "Reorder": "reorder",
}
MODES = ("fp32", "bf16", "throughput")
KEPT_SIZES = 2
"""Batch sizes that a session compiles a model for; each holds the weights once more."""


@dataclass(frozen=True)
class Mode:
    """How OpenVINO runs a graph: what it computes in beside 8-bit products, and what it is set for.

    Set for latency, a call has all threads; set for throughput, its images are divided over streams, each with threads
    of its own, so that none waits for another. ``remainder`` None is what the graph's plan says.
    """

    remainder: Literal["fp32", "bf16"] | None = None
    throughput: bool = False

    @classmethod
    def parse(cls, text: str) -> Mode:
        """Read ``bf16``, ``throughput``, ``bf16+throughput`` or the like; ``cpu`` is the default.

        Raises:
            BackendError: A part is not known.
        """
        parts = [] if text == "cpu" else text.split("+")
        for part in parts:
            if part not in MODES:
                raise BackendError(
                    f"openvino runs on the CPU here, got {text!r}, expected 'cpu', or of 'fp32', 'bf16' and "
                    "'throughput' one, or several as in 'bf16+throughput'"
                )
        if {"fp32", "bf16"} <= set(parts):
            raise BackendError(f"openvino has one precision beside 8-bit products, got {text!r}: take fp32 or bf16")
        remainder: Literal["fp32", "bf16"] | None = "bf16" if "bf16" in parts else "fp32" if "fp32" in parts else None
        return cls(remainder, "throughput" in parts)


def import_openvino() -> Any:
    """Return the module ``openvino``, imported so that it tells nobody.

    Where its package ``openvino_telemetry`` can be imported, ``import openvino`` makes ``intel`` in the user's home and
    sends an event from a process of its own, unless ``opt_in_out --opt_out`` was called or ``CI`` is ``true``. Where it
    cannot, OpenVINO takes stubs in its place, so it cannot while this imports. What was imported before stays as it is.

    Raises:
        ImportError: OpenVINO is not installed, or does not load.
    """
    if "openvino" not in sys.modules and TELEMETRY not in sys.modules:
        sys.modules[TELEMETRY] = None  # type: ignore[assignment]  # Python's own sign for what cannot be imported
        try:
            return importlib.import_module("openvino")
        finally:
            del sys.modules[TELEMETRY]
    return importlib.import_module("openvino")


@cache
def shared_core() -> Any:
    """Return the ``openvino.Core`` of this process; OpenVINO must be installed.

    There is one, which stays: a core takes a stack for signals when it first compiles, and gives the one before back
    when it goes. Of two that go in the order they came, the second gives back the first's, which is gone, and the next
    signal with a handler (Ctrl-C, the end of a child) ends the process.
    """
    return import_openvino().Core()


def computes_bf16() -> bool:
    """Return whether this processor multiplies BF16, by AVX-512 BF16 or AMX; else OpenVINO computes FP32 in its place.

    OpenVINO must be installed.
    """
    return "BF16" in shared_core().get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")


class OpenVINOBackend:
    """Runs an ONNX file as it is; an INT8 graph should have target ``openvino`` (FP32 or BF16 beside INT8).

    ``options.provider`` is a ``Mode`` as text.
    """

    name = "openvino"
    graph_devices: tuple[Device, ...] = ("cpu",)
    thread_settings: tuple[ThreadSetting, ...] = ("pinning",)

    def unavailable(self) -> str | None:
        try:
            import_openvino()
        except ImportError as error:
            return f"openvino cannot be imported ({error}): pip install 'vitdeploy[openvino]'"
        return None

    def can_run(self) -> str | None:
        return self.unavailable()

    def version(self) -> str:
        return str(import_openvino().__version__).partition("-")[0]  # the build and its commit follow

    def build(self, model: OnnxModel, path: Path, target: BuildTarget, progress: Progress = SILENT) -> NoReturn:
        """Refuse: OpenVINO opens the graph itself.

        Raises:
            BuildError: Always.
        """
        raise BuildError(f"openvino builds no engine, it opens {str(model.path)!r} as it is: vd.bench() times it")

    def open(self, artifact: Artifact, options: SessionOptions = SessionOptions()) -> OpenVINOSession:
        """Open an ONNX model.

        Raises:
            BackendError: It is not installed, the artifact is no ONNX model, the options ask for BF16 and this
                processor has none, or OpenVINO cannot read the graph. What it cannot compile is said at the first run.
        """
        missing = self.unavailable()
        if missing is not None:
            raise BackendError(missing)
        if not isinstance(artifact, OnnxModel):
            raise BackendError(
                f"openvino opens ONNX models, {str(artifact.path)!r} is of kind {artifact.manifest.kind!r}: "
                "vd.export() makes one from a checkpoint"
            )
        refuse_lowered(artifact, self.name, self.version())
        refuse_thread_settings(self.name, options, self.thread_settings)
        mode = Mode.parse("cuda" if options.device == "cuda" else options.provider or "cpu")
        plan = artifact.manifest.plan
        planned = plan is not None and plan.remainder == "bf16" and mode.remainder is None
        bf16 = (planned or mode.remainder == "bf16") and computes_bf16()
        if mode.remainder == "bf16" and not bf16:
            raise BackendError(
                f"{environment.cpu_name()} has neither AVX-512 BF16 nor AMX, so OpenVINO computes FP32: ask for 'fp32'"
            )
        note = "its plan has BF16 beside 8-bit products, which this CPU has not: it ran in FP32, which is slower"
        session = OpenVINOSession(artifact.path, options, Mode("bf16" if bf16 else "fp32", mode.throughput))
        session.more_notes = (note,) if planned and not bf16 else ()
        return session


class OpenVINOSession(CheckedSession):
    """A model, set to answer one call as soon as possible, or with a stream for each part of a batch.

    It is compiled when a batch comes, for that size: where the batch is left open, OpenVINO keeps Transposes, changes
    of layout and sums as passes of their own that it else folds into their neighbours.
    The first sizes are kept, so that a remainder behind full batches recompiles nothing; beyond them, one model that
    takes any size answers.
    """

    def __init__(self, path: Path, options: SessionOptions, mode: Mode = Mode()) -> None:
        self._path, self._mode, self.more_notes = path, mode, tuple[str, ...]()
        self._config: dict[str, Any] = {
            "PERFORMANCE_HINT": "THROUGHPUT" if mode.throughput else "LATENCY",
            "INFERENCE_PRECISION_HINT": "bf16" if mode.remainder == "bf16" else "f32",
        }
        if options.threads:
            self._config["INFERENCE_NUM_THREADS"] = options.threads
        if options.pinning is not None:
            self._config["ENABLE_CPU_PINNING"] = options.pinning
        try:
            self._model: Any = shared_core().read_model(str(path))
        except RuntimeError as error:
            raise BackendError(f"openvino cannot open {str(path)!r}: {one_line(error)}") from error
        words = [DEVICE, *(["BF16"] if mode.remainder == "bf16" else []), *(["throughput"] if mode.throughput else [])]
        super().__init__("openvino", " ".join(words), _specs(self._model.inputs), _specs(self._model.outputs))
        self._compiled: dict[int | None, Any] = {}
        self._requests: dict[int | None, list[Any]] = {}
        self._latest: int | None = 1 if self._batch_is_open else None
        self._streams = self._count_streams() if mode.throughput else 1

    @property
    def notes(self) -> tuple[str, ...]:
        """What is computed in BF16, and how many streams a batch is divided over."""
        bf16 = "OpenVINO computes in BF16 what is not in 8 bits" if self._mode.remainder == "bf16" else ""
        streams = f"set for throughput: a batch is divided over {self._streams} streams"
        return tuple(filter(None, (*self.more_notes, bf16, streams if self._mode.throughput else "")))

    def kernels(self) -> tuple[Kernel, ...] | None:
        """Return the nodes of the runtime model, that of the batch which ran last; of one image before any ran."""
        compiled = self._compiled_for(self._latest)
        return tuple(_kernel(node) for node in compiled.get_runtime_model().get_ordered_ops())

    def layer_times(self, feed: Feed, *, warmup: int, iterations: int) -> LayerTimes:
        """Return what the performance counters say of a model that is compiled once more, with them on."""
        arrays = self._checked(feed)
        try:
            compiled = self._compile(self._batch_of(arrays), {**self._config, "PERF_COUNT": True})
            request = compiled.create_infer_request()
            for _ in range(warmup):
                request.infer(arrays, share_inputs=True)
            before, calls = request.get_profiling_info(), np.empty(iterations, np.float64)
            for index in range(iterations):
                start = time.perf_counter_ns()
                request.infer(arrays, share_inputs=True)
                calls[index] = (time.perf_counter_ns() - start) / 1e6
            after = request.get_profiling_info()
        except RuntimeError as error:
            raise BackendError(f"openvino failed while it was profiled: {one_line(error)}") from error
        kernels = {str(op.get_friendly_name()): _kernel(op) for op in compiled.get_runtime_model().get_ordered_ops()}
        return LayerTimes(tuple(_layer_times(before, after, warmup, iterations, kernels)), calls)

    @property
    def _batch_is_open(self) -> bool:
        """Return whether the inputs leave the number of images open, and nothing else."""
        return all(spec.shape[:1] == (None,) and None not in spec.shape[1:] for spec in self._inputs.values())

    def _batch_of(self, arrays: Arrays) -> int | None:
        return len(next(iter(arrays.values()))) if self._batch_is_open else None

    def _compile(self, batch: int | None, config: dict[str, Any]) -> Any:
        """Compile for a batch size, or as the model is for None."""
        model = self._model
        if batch is not None:
            model = model.clone()
            model.reshape({name: [batch, *spec.shape[1:]] for name, spec in self._inputs.items()})
        return shared_core().compile_model(model, DEVICE, config)

    def _compiled_for(self, batch: int | None) -> Any:
        """Return the model for a batch size, compiled now if there is none and room for it, else for any size."""
        if batch not in self._compiled and sum(size is not None for size in self._compiled) >= KEPT_SIZES:
            batch = None
        if batch not in self._compiled:
            self._compiled[batch] = self._compile(batch, self._config)
        self._latest = batch
        return self._compiled[batch]

    def _requests_for(self, batch: int | None, count: int = 1) -> list[Any]:
        compiled = self._compiled_for(batch)
        requests = self._requests.setdefault(self._latest, [])
        while len(requests) < count:
            requests.append(compiled.create_infer_request())
        return requests[:count]

    def _count_streams(self) -> int:
        try:
            return int(self._compiled_for(self._latest).get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        except RuntimeError as error:
            raise BackendError(f"openvino cannot open {str(self._path)!r}: {one_line(error)}") from error

    def _run(self, arrays: Arrays) -> Arrays:
        batch = self._batch_of(arrays)
        try:
            if self._streams > 1 and batch is not None:
                return self._run_in_streams(arrays, batch)
            results = self._requests_for(batch)[0].infer(arrays, share_inputs=True)
        except RuntimeError as error:
            raise BackendError(f"openvino failed: {one_line(error)}") from error
        return {name: np.array(results[name]) for name in self._outputs}

    def _run_in_streams(self, arrays: Arrays, images: int) -> Arrays:
        count = min(self._streams, images)
        parts = {name: np.array_split(array, count) for name, array in arrays.items()}
        busy = self._requests_for(None if images % count else images // count, count)
        for index, request in enumerate(busy):
            request.start_async({name: part[index] for name, part in parts.items()}, share_inputs=True)
        for request in busy:
            request.wait()
        return {name: np.concatenate([request.results[name] for request in busy]) for name in self._outputs}

    def _release(self) -> None:
        self._requests.clear()
        self._compiled.clear()
        self._model = None


def _layer_times(
    before: Sequence[Any], after: Sequence[Any], warmup: int, iterations: int, kernels: Mapping[str, Kernel]
) -> Iterator[LayerTime]:
    """Yield the nodes that ran, with the mean of their milliseconds over the calls between ``before`` and ``after``.

    A counter is the mean over all calls since the graph was compiled, cut to whole microseconds (so half of one is
    added): the first call, which generates code, is taken out of it. ``kernels`` are by name.
    """
    earlier = {str(counter.node_name): counter.real_time.total_seconds() + HALF for counter in before}
    for counter in after:
        if str(counter.status).rpartition(".")[2] != "EXECUTED":
            continue
        name, calls = str(counter.node_name), warmup + iterations
        total = (counter.real_time.total_seconds() + HALF) * calls - earlier.get(name, 0.0) * warmup
        kernel = kernels.get(name) or Kernel(str(counter.node_type), "unknown", "other", (name,))
        mean = np.array([max(total, 0.0) / iterations * 1000])
        yield LayerTime(name, kernel.operator, kernel.precision, kernel.sources, mean)


def _kernel(node: Any) -> Kernel:
    info = {key: str(node.rt_info[key].astype(str)) for key in ("layerType", "runtimePrecision", "originalLayersNames")}
    operator = info["layerType"]
    sources = dict.fromkeys((str(node.get_friendly_name()), *info["originalLayersNames"].split(",")))
    precision = PRECISIONS.get(info["runtimePrecision"], info["runtimePrecision"])
    return Kernel(operator, precision, ROLES.get(operator, "other"), tuple(name for name in sources if name))


def _specs(ports: Sequence[Any]) -> list[TensorSpec]:
    return [
        TensorSpec(
            port.get_any_name(),
            np.dtype(port.get_element_type().to_dtype()),
            tuple(None if size.is_dynamic else size.get_length() for size in port.get_partial_shape()),
        )
        for port in ports
    ]
