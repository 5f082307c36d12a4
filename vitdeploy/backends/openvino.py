"""OpenVINO on Intel's (and other x86) processors."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np

from vitdeploy import environment
from vitdeploy.artifacts import Artifact, OnnxModel
from vitdeploy.backends.lowered import refuse_lowered
from vitdeploy.backends.session import Arrays, CheckedSession
from vitdeploy.errors import BackendError, BuildError
from vitdeploy.progress import SILENT, Progress
from vitdeploy.records.report import Device
from vitdeploy.sessions import BuildTarget, Feed, Kernel, LayerTime, LayerTimes, Role, SessionOptions, TensorSpec
from vitdeploy.text import one_line

DEVICE = "CPU"
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


def computes_bf16() -> bool:
    """Return whether this processor multiplies BF16, by AVX-512 BF16 or AMX; else OpenVINO computes FP32 in its place.

    OpenVINO must be installed.
    """
    import openvino

    return "BF16" in openvino.Core().get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")


class OpenVINOBackend:
    """Runs an ONNX file as it is; an INT8 graph should have target ``openvino`` (FP32 or BF16 beside INT8).

    ``options.provider`` is a ``Mode`` as text.
    """

    name = "openvino"
    graph_devices: tuple[Device, ...] = ("cpu",)

    def unavailable(self) -> str | None:
        try:
            import openvino  # noqa: F401
        except ImportError as error:
            return f"openvino cannot be imported ({error}): pip install 'vitdeploy[openvino]'"
        return None

    def can_run(self) -> str | None:
        return self.unavailable()

    def version(self) -> str:
        import openvino

        return str(openvino.__version__).partition("-")[0]  # the build and its commit follow

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
                processor has none, or OpenVINO refuses the graph.
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
    """A compiled model, set to answer one call as soon as possible, or with a stream for each part of a batch."""

    def __init__(self, path: Path, options: SessionOptions, mode: Mode = Mode()) -> None:
        import openvino

        self._path, self._mode, self.more_notes = path, mode, tuple[str, ...]()
        self._config: dict[str, Any] = {
            "PERFORMANCE_HINT": "THROUGHPUT" if mode.throughput else "LATENCY",
            "INFERENCE_PRECISION_HINT": "bf16" if mode.remainder == "bf16" else "f32",
        }
        if options.threads:
            self._config["INFERENCE_NUM_THREADS"] = options.threads
        try:
            self._compiled: Any = openvino.Core().compile_model(str(path), DEVICE, self._config)
            streams = self._compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS") if mode.throughput else 1
            self._requests: list[Any] = [self._compiled.create_infer_request() for _ in range(streams)]
        except RuntimeError as error:
            raise BackendError(f"openvino cannot open {str(path)!r}: {one_line(error)}") from error
        words = [DEVICE, *(["BF16"] if mode.remainder == "bf16" else []), *(["throughput"] if mode.throughput else [])]
        super().__init__("openvino", " ".join(words), _specs(self._compiled.inputs), _specs(self._compiled.outputs))

    @property
    def notes(self) -> tuple[str, ...]:
        """What is computed in BF16, and how many streams a batch is divided over."""
        bf16 = "OpenVINO computes in BF16 what is not in 8 bits" if self._mode.remainder == "bf16" else ""
        streams = f"set for throughput: a batch is divided over {len(self._requests)} streams"
        return tuple(filter(None, (*self.more_notes, bf16, streams if self._mode.throughput else "")))

    def kernels(self) -> tuple[Kernel, ...] | None:
        """Return the nodes of the runtime model."""
        return tuple(_kernel(node) for node in self._compiled.get_runtime_model().get_ordered_ops())

    def layer_times(self, feed: Feed, *, warmup: int, iterations: int) -> LayerTimes:
        """Return what the performance counters say of a model that is compiled once more, with them on."""
        import openvino

        arrays = self._checked(feed)
        try:
            compiled: Any = openvino.Core().compile_model(str(self._path), DEVICE, {**self._config, "PERF_COUNT": True})
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

    def _run(self, arrays: Arrays) -> Arrays:
        try:
            if len(self._requests) > 1 and all(spec.shape[:1] == (None,) for spec in self._inputs.values()):
                return self._run_in_streams(arrays)
            results = self._requests[0].infer(arrays, share_inputs=True)
        except RuntimeError as error:
            raise BackendError(f"openvino failed: {one_line(error)}") from error
        return {name: np.array(results[name]) for name in self._outputs}

    def _run_in_streams(self, arrays: Arrays) -> Arrays:
        images = len(next(iter(arrays.values())))
        count = min(len(self._requests), images)
        parts = {name: np.array_split(array, count) for name, array in arrays.items()}
        busy = self._requests[:count]
        for index, request in enumerate(busy):
            request.start_async({name: part[index] for name, part in parts.items()}, share_inputs=True)
        for request in busy:
            request.wait()
        return {name: np.concatenate([request.results[name] for request in busy]) for name in self._outputs}

    def _release(self) -> None:
        self._requests, self._compiled = [], None


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
