"""OpenVINO on Intel's (and other x86) processors."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from vitdeploy.artifacts import Artifact, OnnxModel
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


class OpenVINOBackend:
    """Runs an ONNX file as it is; an INT8 graph should have target ``openvino`` (FP32 beside INT8)."""

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
            BackendError: It is not installed, the artifact is no ONNX model, or OpenVINO refuses the graph.
        """
        missing = self.unavailable()
        if missing is not None:
            raise BackendError(missing)
        if not isinstance(artifact, OnnxModel):
            raise BackendError(
                f"openvino opens ONNX models, {str(artifact.path)!r} is of kind {artifact.manifest.kind!r}: "
                "vd.export() makes one from a checkpoint"
            )
        if options.device == "cuda" or options.provider not in (None, "cpu"):
            asked = options.provider if options.device != "cuda" else "cuda"
            raise BackendError(f"openvino runs on the CPU here, got {asked!r}, expected 'cpu'")
        return OpenVINOSession(artifact.path, options)


class OpenVINOSession(CheckedSession):
    """A compiled model with one request, set to answer one call as soon as possible."""

    def __init__(self, path: Path, options: SessionOptions) -> None:
        import openvino

        self._path = path
        self._config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        if options.threads:
            self._config["INFERENCE_NUM_THREADS"] = options.threads
        try:
            self._compiled: Any = openvino.Core().compile_model(str(path), DEVICE, self._config)
            self._request: Any = self._compiled.create_infer_request()
        except RuntimeError as error:
            raise BackendError(f"openvino cannot open {str(path)!r}: {one_line(error)}") from error
        super().__init__("openvino", DEVICE, _specs(self._compiled.inputs), _specs(self._compiled.outputs))

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
            results = self._request.infer(arrays, share_inputs=True)
        except RuntimeError as error:
            raise BackendError(f"openvino failed: {one_line(error)}") from error
        return {name: np.array(results[name]) for name in self._outputs}

    def _release(self) -> None:
        self._request = self._compiled = None


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
    told = {key: str(node.rt_info[key].astype(str)) for key in ("layerType", "runtimePrecision", "originalLayersNames")}
    operator = told["layerType"]
    sources = dict.fromkeys((str(node.get_friendly_name()), *told["originalLayersNames"].split(",")))
    precision = PRECISIONS.get(told["runtimePrecision"], told["runtimePrecision"])
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
