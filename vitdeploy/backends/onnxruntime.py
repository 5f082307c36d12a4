"""ONNX Runtime: the CPU, CUDA, TensorRT and OpenVINO execution providers, chosen by name."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from vitdeploy import environment
from vitdeploy.artifacts import Artifact, OnnxModel
from vitdeploy.backends.custom_operators import register_libraries, remedy
from vitdeploy.backends.lowered import refuse_lowered
from vitdeploy.backends.onnxruntime_faults import truncates_fp16_quantize
from vitdeploy.backends.session import Arrays, CheckedSession, wall_clock_ms
from vitdeploy.backends.threads import cores, pinned_to, refuse_thread_settings
from vitdeploy.errors import BackendError, BuildError
from vitdeploy.progress import SILENT, Progress
from vitdeploy.records import CpuIntegers, Manifest, Precision
from vitdeploy.records.report import Device
from vitdeploy.sessions import (
    THREAD_SETTINGS,
    BuildTarget,
    Feed,
    Kernel,
    LayerTimes,
    Opener,
    SessionOptions,
    TensorSpec,
    ThreadSetting,
)
from vitdeploy.text import one_line

if TYPE_CHECKING:
    import onnx_ir as ir

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}
REMEDIES = {
    "cuda": "pip install onnxruntime-gpu",
    "tensorrt": "pip install onnxruntime-gpu",
    "openvino": "pip install onnxruntime-openvino",
}
ON_GPU = (PROVIDERS["cuda"], PROVIDERS["tensorrt"])
FATAL_ONLY = 4
IN_MEMORY_LIMIT = 256 << 20
NUMPY_TYPES: dict[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}


class OnnxRuntimeBackend:
    """Runs an ONNX file as it is; ``options.provider`` is a key of ``PROVIDERS`` or a provider's full name."""

    name = "onnxruntime"
    graph_devices: tuple[Device, ...] = ("cpu", "cuda")
    thread_settings: tuple[ThreadSetting, ...] = THREAD_SETTINGS

    def unavailable(self) -> str | None:
        try:
            import onnxruntime  # noqa: F401
        except ImportError as error:
            return f"onnxruntime cannot be imported ({error}): pip install onnxruntime"
        return None

    def can_run(self) -> str | None:
        return self.unavailable()

    def version(self) -> str:
        import onnxruntime

        return str(onnxruntime.__version__)

    def build(self, model: OnnxModel, path: Path, target: BuildTarget, progress: Progress = SILENT) -> NoReturn:
        """Refuse: ONNX Runtime opens the graph itself.

        Raises:
            BuildError: Always.
        """
        raise BuildError(f"onnxruntime builds no engine, it opens {str(model.path)!r} as it is: vd.bench() times it")

    def open(self, artifact: Artifact, options: SessionOptions = SessionOptions()) -> OnnxRuntimeSession:
        """Open an ONNX model.

        Raises:
            BackendError: The artifact is no ONNX model, was lowered for another runtime or processor, the provider is
                not there, or ONNX Runtime refuses the graph.
        """
        if not isinstance(artifact, OnnxModel):
            raise BackendError(
                f"onnxruntime opens ONNX models, {str(artifact.path)!r} is of kind {artifact.manifest.kind!r}: "
                "vd.export() makes one from a checkpoint"
            )
        refuse_lowered(artifact, self.name, self.version())
        exact = saturates_here(artifact.manifest)
        if _quantizes_fp16(artifact.manifest) and truncates_fp16_quantize():
            return open_graph(artifact.load(), options, exact_integers=exact)
        return OnnxRuntimeSession(str(artifact.path), options, artifact.manifest.precision, exact_integers=exact)


def saturates_here(manifest: Manifest) -> bool:
    """Return whether a graph's weights are for processors that add in 32 bits, and this one is known not to."""
    plan = manifest.plan
    return plan is not None and saturates("vnni" if manifest.target == "tensorrt" else plan.cpu)


def saturates(processor: CpuIntegers) -> bool:
    """Return whether this processor is known to add 8-bit products in 16 bits, where such weights need 32."""
    return processor != "any" and environment.cpu_integers() == "any"


def _quantizes_fp16(manifest: Manifest) -> bool:
    """Return whether a graph of ours has QuantizeLinear nodes that read FP16."""
    return manifest.plan is not None and manifest.plan.remainder == "fp16" and manifest.precision != "fp16"


def open_graph(
    model: ir.Model, options: SessionOptions = SessionOptions(), *, exact_integers: bool = False
) -> OnnxRuntimeSession:
    """Open a graph that is in memory: calibration graphs with extra outputs, candidates of a search.

    A graph with more than 256 MB of weights goes through a temporary file with external data, which ONNX Runtime maps
    into memory; so a large model is not held three times. ``exact_integers`` has weights converted so that no product
    saturates, as ``saturates`` says that it would.

    Raises:
        BackendError: ONNX Runtime refuses the graph.
    """
    import onnx_ir as ir

    if _has_fp16_quantize(model) and truncates_fp16_quantize():
        from vitdeploy.graph.quantize_in_float32 import QuantizeInFloat32

        model = model.clone()
        QuantizeInFloat32()(model)
    tensors = [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]
    external = any(isinstance(tensor, ir.ExternalTensor) for tensor in tensors)
    fp8 = any(tensor.dtype == ir.DataType.FLOAT8E4M3FN for tensor in tensors)
    precision: Precision = "fp8" if fp8 else "fp32"
    if not external and sum(tensor.nbytes for tensor in tensors) <= IN_MEMORY_LIMIT:
        source = ir.to_proto(model).SerializeToString()
        return OnnxRuntimeSession(source, options, precision, exact_integers=exact_integers)
    with tempfile.TemporaryDirectory(prefix="vitdeploy-") as folder:
        path = Path(folder) / "graph.onnx"
        ir.save(model, path, external_data="graph.data")
        return OnnxRuntimeSession(str(path), options, precision, exact_integers=exact_integers)


def cpu_opener(threads: int, processor: CpuIntegers = "any") -> Opener:
    """Return what opens graphs on the CPU with that many threads, 0 for all.

    Weights that are made for other processors than this one are computed as these would.
    """
    options, exact = SessionOptions(threads=threads, device="cpu"), saturates(processor)
    return lambda model: open_graph(model, options, exact_integers=exact)


def _has_fp16_quantize(model: ir.Model) -> bool:
    import onnx_ir as ir

    return any(
        node.op_type == "QuantizeLinear"
        and (scale := node.inputs[1]) is not None
        and scale.dtype == ir.DataType.FLOAT16
        for node in model.graph
    )


class OnnxRuntimeSession(CheckedSession):
    """A session of one provider.

    Worker threads spin while a call runs and stop when it ends (``session.force_spinning_stop``): threads that go on
    spinning would slow whatever is timed next.
    """

    def __init__(
        self,
        source: str | bytes,
        options: SessionOptions,
        precision: Precision = "fp32",
        *,
        exact_integers: bool = False,
    ) -> None:
        import onnxruntime

        provider = choose_provider(options, onnxruntime.get_available_providers())
        refuse_thread_settings(
            OnnxRuntimeBackend.name, options, THREAD_SETTINGS if provider == PROVIDERS["cpu"] else ()
        )
        if provider in ON_GPU and hasattr(onnxruntime, "preload_dlls"):
            with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
                onnxruntime.preload_dlls()  # CUDA and cuDNN from pip packages, which the loader does not search
        if provider == PROVIDERS["tensorrt"] and not options.tf32:
            os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")  # it has no setting of its own (onnxruntime #26029)
        self._tf32 = options.tf32
        self._file = source if isinstance(source, str) else None  # a graph in memory is not kept for it
        self._settings = functools.partial(session_settings, options, precision, exact_integers)
        settings = self._settings()
        try:
            self._session: Any = onnxruntime.InferenceSession(
                source,
                settings,
                providers=provider_list(provider, options, precision),
                enable_fallback=0,  # else a run that fails on the GPU is repeated on the CPU, with a line on stdout
            )
        except BackendError:
            raise
        except Exception as error:  # onnxruntime's exceptions have no common public base
            where = "the graph" if isinstance(source, bytes) else repr(source)
            raise BackendError(f"onnxruntime cannot open {where}: {one_line(error)}{remedy(str(error))}") from error
        used = self._session.get_providers()[0]
        is_explicit = options.provider is not None or options.device == "cuda"
        if used != provider and is_explicit:
            raise BackendError(
                f"onnxruntime could not load {provider!r} and fell back to {used!r}: its CUDA or TensorRT libraries "
                f"are missing or of another version; vd.doctor() lists them, provider 'cpu' works without"
            )
        self.nodes_by_provider = nodes_by_provider(self._session)
        left = self.nodes_by_provider.get(PROVIDERS["cpu"], 0)
        if used in ON_GPU and left and not options.cpu_fallback:
            raise BackendError(
                f"onnxruntime leaves {left} of {sum(self.nodes_by_provider.values())} nodes to the CPU, not to "
                f"{used!r}: the row would measure both; allow it with cpu_fallback=True, or use provider 'cpu'"
            )
        inputs = [_spec(value) for value in self._session.get_inputs()]
        super().__init__("onnxruntime", used, inputs, [_spec(value) for value in self._session.get_outputs()])

    @property
    def notes(self) -> tuple[str, ...]:
        """How many nodes each provider took where that is more than one, and what a provider does not let us set."""
        found = []
        if len(self.nodes_by_provider) > 1:
            shares = ", ".join(f"{count} by {name}" for name, count in self.nodes_by_provider.items())
            found.append(f"nodes of the graph: {shares}")
        if self.provider in ON_GPU:
            found.append("its device time is wall-clock time around a call, without copies")
        if self.provider == PROVIDERS["tensorrt"] and not self._tf32:
            found.append("TF32 is switched off by NVIDIA_TF32_OVERRIDE where CUDA was not used before in this process")
        return tuple(found)

    def kernels(self) -> tuple[Kernel, ...] | None:
        """Return what the CPU's provider made of a graph from a file; others do not tell."""
        if self.provider != PROVIDERS["cpu"] or self._file is None:
            return None
        from vitdeploy.backends.onnxruntime_kernels import optimised_kernels

        return optimised_kernels(self._file, self._settings(), self.provider)

    def layer_times(self, feed: Feed, *, warmup: int, iterations: int) -> LayerTimes | None:
        """Return what the profiler sees of a graph from a file on the CPU; on a GPU its nodes are launches."""
        if self.provider != PROVIDERS["cpu"] or self._file is None:
            return None
        from vitdeploy.backends.onnxruntime_profile import profile

        arrays = self._checked(feed)
        return profile(self._file, self._settings(), self.provider, arrays, warmup=warmup, iterations=iterations)

    def _run(self, arrays: Arrays) -> Arrays:
        try:
            results = self._session.run(None, arrays)
        except Exception as error:  # as above
            raise BackendError(f"onnxruntime failed: {one_line(error)}") from error
        return dict(zip(self._outputs, results, strict=True))

    def _release(self) -> None:
        self._session = None

    def _time_on_device(self, arrays: Arrays, warmup: int, iterations: int) -> NDArray[np.float64]:
        if self.provider not in ON_GPU:
            return super()._time_on_device(arrays, warmup, iterations)
        from onnxruntime import OrtValue

        binding = self._session.io_binding()
        held = {name: OrtValue.ortvalue_from_numpy(array, "cuda", 0) for name, array in arrays.items()}
        for name, value in held.items():
            binding.bind_ortvalue_input(name, value)
        for name in self._outputs:
            binding.bind_output(name, "cuda")

        def call() -> None:
            self._session.run_with_iobinding(binding)
            binding.synchronize_outputs()

        return wall_clock_ms(call, warmup, iterations)


def session_settings(options: SessionOptions, precision: Precision, exact_integers: bool = False) -> Any:
    """Return onnxruntime.SessionOptions; ``exact_integers`` has weights converted so that no product saturates."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = options.threads
    if options.pinning is not None:
        # it pins its threads by itself where it chooses how many there are, and never the one that calls
        processors = pinned_to(options.threads) if options.pinning else cores()
        settings.intra_op_num_threads = options.threads or len(processors)
        if options.pinning and len(processors) > 1:
            affinities = ";".join(str(processor + 1) for processor in processors[1:])  # counted from 1
            settings.add_session_config_entry("session.intra_op_thread_affinities", affinities)
    if options.spinning is not None:
        settings.add_session_config_entry("session.intra_op.allow_spinning", str(int(options.spinning)))
    settings.log_severity_level = FATAL_ONLY  # the exception says it; nothing is printed beside it
    register_libraries(settings)
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    # products with weights in 8 bits are FP32 then; the default rounds their activations to 8 bits as well
    settings.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if exact_integers:
        settings.add_session_config_entry("session.x64quantprecision", "1")
    if precision == "fp8":  # it would fuse E4M3 into integer kernels, which then refuse it
        settings.add_session_config_entry("session.disable_quant_qdq", "1")
    return settings


def nodes_by_provider(session: Any) -> dict[str, int]:
    """Return provider → number of nodes that it took when the graph was divided; empty before onnxruntime 1.24."""
    assignment_info = getattr(session, "get_provider_graph_assignment_info", None)
    counts: Counter[str] = Counter()
    for part in assignment_info() if assignment_info is not None else ():
        counts[str(part.ep_name)] += len(part.get_nodes())
    return dict(counts)


def choose_provider(options: SessionOptions, available: list[str]) -> str:
    """Return the full name of the provider that ``options`` ask for; ``auto`` is CUDA where it is there, else the CPU.

    Raises:
        BackendError: There is no GPU for it, or this build of ONNX Runtime has no such provider; the line names the
            package that has.
    """
    if options.provider is not None:
        provider = PROVIDERS.get(options.provider, options.provider)
        known = [short for short, full in PROVIDERS.items() if full in available]
        if provider not in available:
            if provider in ON_GPU and (reason := environment.reason_without_gpu()):
                raise BackendError(f"provider {options.provider!r} cannot run: {reason}; provider 'cpu' works without")
            remedy = REMEDIES.get(options.provider, f"choose one of {', '.join(known)}")
            raise BackendError(
                f"onnxruntime has no provider {options.provider!r} here, expected one of {', '.join(known)}: {remedy}"
            )
        return provider
    if options.device == "cuda" and PROVIDERS["cuda"] not in available:
        if reason := environment.reason_without_gpu():
            raise BackendError(f"device 'cuda' cannot be used: {reason}; device 'cpu' works without")
        raise BackendError(f"this onnxruntime is built for the CPU alone: {REMEDIES['cuda']}")
    gpu = options.device == "cuda" or (options.device == "auto" and environment.current().gpu is not None)
    return PROVIDERS["cuda"] if gpu and PROVIDERS["cuda"] in available else PROVIDERS["cpu"]


def provider_list(provider: str, options: SessionOptions, precision: Precision) -> list[Any]:
    """Return the provider with its options, followed by those that take the nodes it refuses.

    TensorRT before 11 needs leave for the precisions that the graph itself asks for; it is never given more.
    """
    cuda = (PROVIDERS["cuda"], {"use_tf32": "1" if options.tf32 else "0"})
    if provider == PROVIDERS["cpu"]:
        return [provider]
    if provider == PROVIDERS["cuda"]:
        return [cuda, PROVIDERS["cpu"]]
    if provider == PROVIDERS["tensorrt"]:
        leave = {
            "trt_fp16_enable": "0" if precision == "fp32" else "1",
            "trt_int8_enable": "1" if precision in ("int8", "mixed") else "0",
        }
        return [(provider, leave), cuda, PROVIDERS["cpu"]]
    if provider == PROVIDERS["openvino"]:
        threads = {"num_of_threads": str(options.threads)} if options.threads else {}
        return [(provider, {"device_type": "CPU", **threads}), PROVIDERS["cpu"]]
    return [provider, PROVIDERS["cpu"]]


def _spec(value: Any) -> TensorSpec:
    shape = tuple(size if isinstance(size, int) else None for size in value.shape)
    if value.type not in NUMPY_TYPES:
        raise BackendError(f"tensor {value.name!r} has type {value.type!r}, which NumPy cannot hold")
    return TensorSpec(value.name, np.dtype(NUMPY_TYPES[value.type]), shape)
