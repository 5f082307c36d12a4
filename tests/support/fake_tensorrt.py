"""TensorRT's Python module of any release, without TensorRT: its names and signatures are those of the API table.

A class here implements more than one release has; ``fake_module`` takes away what the table does not list for the
release, and holds every call and every assignment against the release's own signature. So code that reaches for a
name of another release, or passes what pybind would refuse, fails as it would there. An engine runs its graph in ONNX
Runtime on the memory that ``fake_cuda`` hands out.

``module.record`` collects what was asked of the module, and holds what goes wrong: see ``Record``.
"""

from __future__ import annotations

import ctypes
import enum
import functools
import hashlib
import inspect
import json
import re
import threading
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fake_cuda
import numpy as np
import onnx
import onnxruntime

TABLE = Path(__file__).parents[1] / "backends" / "data" / "tensorrt_python_api.json"
MODULES = {"rtx": "tensorrt_rtx", "lean": "tensorrt_lean"}
MAGIC = b"fake plan\n"
LAYER_MS = 0.25
DETAILED_NVTX_MS = 0.75  # what detailed NVTX ranges cost each launch that is not a graph's
PRODUCTS = ("MatMul", "Gemm", "Conv", "Einsum")
ONNX_TYPES = {
    1: "FLOAT",
    2: "UINT8",
    3: "INT8",
    6: "INT32",
    7: "INT64",
    9: "BOOL",
    10: "HALF",
    16: "BF16",
    17: "FP8",
}
NUMPY_TYPES: dict[str, Any] = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "INT8": np.int8,
    "UINT8": np.uint8,
    "INT32": np.int32,
    "INT64": np.int64,
    "BOOL": np.bool_,
}


@functools.cache
def table() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(TABLE.read_text())
    return found


@functools.cache
def api_names(release: str) -> frozenset[str]:
    """Return the names of a release (``10.3``), of TensorRT-RTX (``rtx``) or of the lean runtime (``lean``)."""
    if release in MODULES:
        return frozenset(table()[MODULES[release]])
    order = table()["releases"]
    place = order.index(release)

    def has(span: list[str]) -> bool:
        return release in span if len(span) > 2 else order.index(span[0]) <= place <= order.index(span[-1])

    return frozenset(name for name, span in table()["names"].items() if has(span))


def releases() -> list[str]:
    """Return the releases that are supported, oldest first."""
    order: list[str] = table()["releases"]
    return order


@functools.cache
def signatures(release: str) -> dict[str, Any]:
    """Return name → signature, kind of property or number, as a release has it."""
    if release in MODULES:
        return {name: text for name, text in table()[MODULES[release]].items() if text != ""}
    order = table()["releases"]
    place = order.index(release)
    found: dict[str, Any] = {}
    for kind in ("signatures", "values"):
        for name, rows in table()[kind].items():
            for first, last, text in rows:
                if order.index(first) <= place <= order.index(last) and release in order:
                    found[name] = int(text) if kind == "values" else text
    return found


@dataclass
class Record:
    """What was asked of a module, and what it is to do wrong.

    ``fault`` is what an engine does wrong: ``zeros``, ``fail`` (refuses to run), ``illegal`` (a kernel breaks the
    device), ``no-capture`` (it cannot be captured), ``no-memory`` (a context cannot be made). ``start`` is how a
    builder or runtime fails to start: ``nullptr`` (pybind's TypeError), ``error35`` (an error is logged and an object
    returned that cannot be used). ``inspector`` replaces the inspector's answer, ``precision`` is what its products
    run in where that is not what the graph says. ``warnings`` are logged when an engine is deserialized.
    """

    cuda: Any = None
    gpu: str = "some GPU"
    flags: list[int] = field(default_factory=list)
    set: list[Any] = field(default_factory=list)
    cleared: list[str] = field(default_factory=list)
    capabilities: list[str] = field(default_factory=list)
    contexts: list[tuple[Any, ...]] = field(default_factory=list)
    configs: list[Any] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    kernels_compiled: int = 0
    dla_cores: int = 0
    dla_runtimes: list[int] = field(default_factory=list)
    fault: str = ""
    start: str = ""
    inspector: str | None = None
    precision: str = ""
    warnings: tuple[str, ...] = ()
    validity: str = "VALID"
    diagnostics: int = 0
    logger: Any = None


class Strict:
    """Takes no attribute that its class does not list, and no value that a property of that type refuses, as pybind."""

    names: frozenset[str] = frozenset()
    _trt: Any = None

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_"):
            if name not in self.names:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            kind = self._trt._signatures.get(f"{type(self).__name__}.{name}", "")
            if kind.startswith("property readonly"):
                raise AttributeError(f"property {name!r} of {type(self).__name__!r} object has no setter")
            if kind.startswith("property: ") and not fits(value, kind.removeprefix("property: "), self._trt):
                raise TypeError(f"{type(self).__name__}.{name} = {value!r}: expected {kind}")
        object.__setattr__(self, name, value)


def fits(value: Any, kind: str, module: Any) -> bool:
    """Return whether pybind would take a value for a parameter of a kind, as a signature names it."""
    if kind in ("bool", "str", "tuple", "list"):
        return type(value).__name__ == kind
    if kind in ("int", "SupportsInt"):
        return hasattr(type(value), "__int__") and not isinstance(value, (float, str))
    if kind in ("float", "SupportsFloat"):
        return isinstance(value, (int, float))
    if kind == "Buffer":
        return isinstance(value, (bytes, bytearray, memoryview))
    if kind == "Dims":
        return isinstance(value, (tuple, list)) and all(type(size) is int for size in value)
    expected = getattr(module, kind, None)
    if isinstance(expected, type):
        return value is None or isinstance(value, expected)
    return True


def checked(name: str, function: Callable[..., Any], module: Any) -> Callable[..., Any]:
    """Return a method that refuses arguments which no overload of its signature takes."""
    text = module._signatures.get(name, "")
    overloads = [parameters(part) for part in str(text).split(" | ") if part.startswith("(")]
    if not overloads:
        return function

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        assert any(takes(overload, arguments[1:], named, module) for overload in overloads), (
            f"{name}{arguments[1:]!r} {named!r}: incompatible function arguments, expected {text}"
        )
        return function(*arguments, **named)

    return call


def parameters(signature: str) -> list[tuple[str, str, bool]]:
    """Return (name, type, has a default) of each parameter but ``self``."""
    inner = signature[1 : signature.rindex(") ->")]
    parts = re.split(r",\s*(?![^\[<]*[\]>])", inner) if inner else []
    found = []
    for part in parts[1:]:
        name, _, rest = part.partition(": ")
        kind, default, _ = rest.partition(" = ")
        found.append((name, kind.strip(), bool(default)))
    return found


def takes(overload: list[tuple[str, str, bool]], arguments: tuple[Any, ...], named: dict[str, Any], trt: Any) -> bool:
    given = dict(zip((name for name, _, _ in overload), arguments, strict=False)) | named
    if len(arguments) > len(overload) or set(given) - {name for name, _, _ in overload}:
        return False
    return all(fits(given[name], kind, trt) if name in given else default for name, kind, default in overload)


def fake_module(release: str, version: str | None = None) -> Any:
    """Return the module of a release; ``module.record`` is its ``Record``."""
    names = api_names(release)
    module: Any = types.ModuleType(MODULES.get(release, "tensorrt"))
    wheel = signatures(release).get("__version__") or table()["wheels"].get(release, release)
    module.__version__ = version or str(wheel)
    module.record = Record()
    module._signatures = signatures(release)
    module._release = release
    for kind in enums(names):
        setattr(module, kind, make_enum(kind, names, release))
    for cls in classes(module):
        if cls.__name__ not in names:
            continue
        kept = {name: value for name, value in vars(cls).items() if name.startswith("_") or in_table(cls, name, names)}
        for unwanted in ("__dict__", "__weakref__"):
            kept.pop(unwanted, None)
        for name, value in kept.items():
            if inspect.isfunction(value) and (not name.startswith("_") or name == "__init__"):
                kept[name] = checked(f"{cls.__name__}.{name}", value, module)
        allowed = frozenset(name.split(".")[1] for name in names if name.startswith(f"{cls.__name__}."))
        bases = (Strict,) if cls.__name__ not in ("ILogger", "IProgressMonitor", "IProfiler") else ()
        setattr(module, cls.__name__, type(cls.__name__, bases, {**kept, "names": allowed, "_trt": module}))
    severities = {"INTERNAL_ERROR": 0, "ERROR": 1, "WARNING": 2, "INFO": 3}
    module.ILogger.Severity = enum.IntEnum("Severity", severities)  # type: ignore[misc]
    return module


def in_table(cls: type, name: str, names: frozenset[str]) -> bool:
    return f"{cls.__name__}.{name}" in names


def enums(names: frozenset[str]) -> list[str]:
    wanted = ("NetworkDefinitionCreationFlag", "BuilderFlag", "MemoryPoolType", "ProfilingVerbosity", "TensorIOMode")
    more = ("DataType", "LayerInformationFormat", "HardwareCompatibilityLevel", "ComputeCapability", "DeviceType")
    rtx = ("DynamicShapesKernelSpecializationStrategy", "CudaGraphStrategy", "EngineValidity")
    return [kind for kind in (*wanted, *more, *rtx, "EngineInvalidityDiagnostics", "EngineStat") if kind in names]


def make_enum(kind: str, names: frozenset[str], release: str) -> Any:
    found = signatures(release)
    numbers = {name.split(".")[1]: found[name] for name in names if name.startswith(f"{kind}.") and name in found}
    return enum.IntEnum(kind, {name: number for name, number in sorted(numbers.items()) if isinstance(number, int)})


class Dims(list[int]):
    """A shape as TensorRT gives it: neither a tuple nor equal to one."""


class HostMemory(bytearray):
    """What a build returns: something with the buffer protocol."""


def classes(module: Any) -> list[type]:
    """Return the classes of one module; they find each other through it."""
    record: Record = module.record

    def log(logger: Any, text: str, severity: str = "ERROR") -> None:
        logger.log(module.ILogger.Severity[severity], text)

    def start(holder: Any, logger: Any, what: str) -> None:
        record.logger = record.logger or logger  # TensorRT keeps the first logger that it is given
        holder._logger, holder._usable = record.logger, True
        if record.start == "nullptr":
            log(holder._logger, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        if record.start == "error35":
            log(
                holder._logger,
                f"create{what}: Error Code 6: API Usage Error (CUDA initialization failure with error: 35 In "
                "checkCudaInstallation at /_src/runtime/dispatch/runtime.cpp:960)",
            )
            holder._usable = False

    class ILogger:
        def log(self, severity: Any, msg: str) -> None: ...

    class IProgressMonitor:
        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None: ...
        def step_complete(self, phase_name: str, step: int) -> bool:
            return True

        def phase_finish(self, phase_name: str) -> None: ...

    class IProfiler:
        def __init__(self) -> None: ...
        def report_layer_time(self, layer_name: str, ms: float) -> None: ...

    class Builder:
        _usable: bool
        _logger: Any

        def __init__(self, logger: Any) -> None:
            start(self, logger, "InferBuilder")
            self._thread = threading.get_ident()
            self._device = record.cuda.current_device.get(self._thread, 0) if record.cuda else 0

        def create_network(self, flags: int = 0) -> Any:
            assert self._usable, "segmentation fault: this builder was not started"
            record.flags.append(flags)
            return module.INetworkDefinition()

        def create_builder_config(self) -> Any:
            config = module.IBuilderConfig()
            record.configs.append(config)
            return config

        def create_optimization_profile(self) -> Any:
            return module.IOptimizationProfile()

        @property
        def num_DLA_cores(self) -> int:
            return record.dla_cores

        def build_serialized_network(self, network: Any, config: Any) -> Any:
            record.threads.append(threading.get_ident())
            assert threading.get_ident() == self._thread, "the builder was made in another thread"
            monitor = config.progress_monitor
            monitor.phase_start("Building engine", None, 2)
            monitor.phase_start("Timing", "Building engine", 1)
            stopped = not monitor.step_complete("Timing", 0)
            monitor.phase_finish("Timing")
            monitor.phase_finish("Building engine")
            dynamic = any(size < 0 for size in network._model["shape"])
            flags = config._flags
            rtx_cannot = module._release == "rtx" and flags & {"REFIT", "STRIP_PLAN"} and record.cuda is None
            if stopped or (dynamic and not config._profiles) or rtx_cannot:
                reason = "no profile" if not rtx_cannot else "CHECK(status == CUDA_SUCCESS) failed"
                log(
                    self._logger,
                    f"IBuilder::buildSerializedNetwork: Error Code 4: API Usage Error ({reason}. In f at /x:1)",
                )
                return None
            if config._timing_cache is not None:
                config._timing_cache._entries.add(hashlib.sha256(network._model["bytes"]).hexdigest()[:8])
            header = {
                "release": module._release,
                "version": module.__version__,
                "profiles": [profile._ranges for profile in config._profiles],
                "flags": sorted(flags),
                "verbosity": getattr(config, "profiling_verbosity", module.ProfilingVerbosity.LAYER_NAMES_ONLY).name,
                "refitted": "STRIP_PLAN" not in flags,
                "gpu": record.gpu,
            }
            return HostMemory(MAGIC + json.dumps(header).encode() + b"\n" + network._model["bytes"])

    class INetworkDefinition:
        def __init__(self) -> None:
            self._model: dict[str, Any] = {}

        def get_input(self, index: int) -> Any:
            tensor = module.ITensor()
            tensor.name, tensor.shape = self._model["input"], Dims(self._model["shape"])
            return tensor

        @property
        def num_inputs(self) -> int:
            return 1

    class ITensor:
        pass

    class IOptimizationProfile:
        def __init__(self) -> None:
            self._ranges: dict[str, Any] = {}

        def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
            assert all(type(size) is int for shape in (min, opt, max) for size in shape)
            if not all(low <= best <= high for low, best, high in zip(min, opt, max, strict=True)):
                raise ValueError("Shape provided for min is inconsistent with other shapes")
            self._ranges[input] = [list(min), list(opt), list(max)]

    class IBuilderConfig:
        def __init__(self) -> None:
            self._profiles: list[Any] = []
            self._flags: set[str] = {"TF32"}
            self._timing_cache: Any = None

        def set_flag(self, flag: Any) -> None:
            record.set.append(flag.name)
            self._flags.add(flag.name)

        def clear_flag(self, flag: Any) -> None:
            record.cleared.append(flag.name)
            self._flags.discard(flag.name)

        def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
            record.set.append((pool.name, pool_size))

        def add_optimization_profile(self, profile: Any) -> int:
            self._profiles.append(profile)
            return len(self._profiles) - 1

        def set_compute_capability(self, compute_capability: Any, index: int) -> bool:
            record.capabilities.append(compute_capability.name)
            return bool(index < getattr(self, "num_compute_capabilities", 0))

        def create_timing_cache(self, serialized_timing_cache: bytes) -> Any:
            if module._release == "rtx":
                warnings.warn("Timing cache operations are no-ops in TensorRT-RTX.", DeprecationWarning, stacklevel=2)
            cache = module.ITimingCache()
            data = json.loads(bytes(serialized_timing_cache) or b"{}") if serialized_timing_cache[:1] != b"?" else None
            if data is None:
                return None
            cache._entries, cache._of = set(data.get("entries", [])), data.get("of", "")
            return cache

        def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
            here = f"{module.__version__} {record.gpu}"
            if cache._of not in ("", here) and not ignore_mismatch:
                return False
            cache._of, self._timing_cache = here, cache
            return True

        def get_timing_cache(self) -> Any:
            return self._timing_cache

    class ITimingCache:
        _of: str
        _entries: set[str]

        def serialize(self) -> Any:
            return HostMemory(json.dumps({"of": self._of, "entries": sorted(self._entries)}).encode())

        def combine(self, input_cache: Any, ignore_mismatch: bool) -> bool:
            self._entries |= input_cache._entries
            return True

    class OnnxParser:
        def __init__(self, network: Any, logger: Any) -> None:
            self._network = network
            self._errors: list[Any] = []

        @property
        def num_errors(self) -> int:
            return len(self._errors)

        def get_error(self, index: int) -> Any:
            return self._errors[index]

        def parse_from_file(self, model: str) -> bool:
            loaded = onnx.load(model)
            for number, node in enumerate(loaded.graph.node):
                if node.domain:
                    self._errors.append(parser_error(module, number, node))
            sizes = loaded.graph.input[0].type.tensor_type.shape.dim
            shape = tuple(-1 if size.dim_param else size.dim_value for size in sizes)
            self._network._model = {
                "bytes": loaded.SerializeToString(),
                "shape": shape,
                "input": loaded.graph.input[0].name,
            }
            return not self._errors

    class ParserError:
        _desc: str
        _node: int
        _name: str
        _operator: str

        def desc(self) -> str:
            return self._desc

        def node(self) -> int:
            return self._node

        def node_name(self) -> str:
            return self._name

        def node_operator(self) -> str:
            return self._operator

    class Runtime:
        _usable: bool
        _logger: Any

        def __init__(self, logger: Any) -> None:
            start(self, logger, "InferRuntime")
            self._lean_version = module.__version__ if module._release == "lean" else None

        def load_runtime(self, path: str) -> Any:
            assert self._usable, "segmentation fault: this runtime was not started"
            if not Path(path).is_file():
                log(self._logger, f"Unable to load library: {path}")
                return None
            loaded = module.Runtime(self._logger)
            loaded._lean_version = Path(path).read_text().strip()
            return loaded

        def get_engine_validity(self, buffer: Any) -> tuple[Any, int]:
            return module.EngineValidity[record.validity], record.diagnostics

        @property
        def engine_header_size(self) -> int:
            return 64

        def deserialize_cuda_engine(self, serialized_engine: Any) -> Any:
            assert self._usable, "segmentation fault: this runtime was not started"
            plan = bytes(serialized_engine)

            def refuse(text: str) -> None:
                log(
                    self._logger,
                    f"IRuntime::deserializeCudaEngine: Error Code 1: Serialization ({text}. In f at /x:1)",
                )

            if not plan.startswith(MAGIC):
                return refuse("magicTag differs")
            header = json.loads(plan.split(b"\n", 2)[1])
            compatible = "VERSION_COMPATIBLE" in header["flags"]
            embedded = compatible and "EXCLUDE_LEAN_RUNTIME" not in header["flags"]
            if embedded and not getattr(self, "engine_host_code_allowed", False):
                return refuse("Cannot deserialize engine with lean runtime unless engine_host_code_allowed is set")
            if module._release == "lean":
                if not compatible:
                    return refuse("the lean runtime takes version compatible engines only")
                if number(header["version"]) > number(module.__version__):
                    return refuse("the engine was built by a newer TensorRT")
            elif header["version"] != module.__version__ and not (embedded or self._lean_version == header["version"]):
                return refuse("Version tag does not match")
            for text in record.warnings:
                log(self._logger, text, "WARNING")
            engine = module.ICudaEngine()
            engine._open(plan, self._logger)
            record.dla_runtimes.append(getattr(self, "DLA_core", -1))
            return engine

    class ICudaEngine:
        def _open(self, plan: bytes, logger: Any) -> None:
            _, header, model = plan.split(b"\n", 2)
            self._logger = logger
            self._header: dict[str, Any] = json.loads(header)
            self._model = onnx.load_from_string(model)
            self._session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
            self._inputs = [value.name for value in self._session.get_inputs()]
            self._outputs = [value.name for value in self._session.get_outputs()]

        @property
        def num_io_tensors(self) -> int:
            return len(self._inputs) + len(self._outputs)

        @property
        def num_optimization_profiles(self) -> int:
            return max(1, len(self._header["profiles"]))

        @property
        def refittable(self) -> bool:
            return bool({"REFIT", "REFIT_IDENTICAL", "STRIP_PLAN"} & set(self._header["flags"]))

        @property
        def device_memory_size_v2(self) -> int:
            return 4096

        def serialize(self) -> Any:
            return HostMemory(MAGIC + json.dumps(self._header).encode() + b"\n" + self._model.SerializeToString())

        def get_tensor_name(self, index: int) -> str:
            return (self._inputs + self._outputs)[index]

        def get_tensor_mode(self, name: str) -> Any:
            return module.TensorIOMode.INPUT if name in self._inputs else module.TensorIOMode.OUTPUT

        def get_tensor_dtype(self, name: str) -> Any:
            values = (*self._model.graph.input, *self._model.graph.output)
            value = next(value for value in values if value.name == name)
            return module.DataType[ONNX_TYPES[value.type.tensor_type.elem_type]]

        def get_tensor_shape(self, name: str) -> Any:
            value = next(v for v in (*self._session.get_inputs(), *self._session.get_outputs()) if v.name == name)
            return Dims(size if isinstance(size, int) else -1 for size in value.shape)

        def get_tensor_profile_shape(self, name: str, profile_index: int) -> Any:
            assert 0 <= profile_index < self.num_optimization_profiles
            return [Dims(shape) for shape in self._header["profiles"][profile_index][name]]

        def create_execution_context(self, *arguments: Any, **named: Any) -> Any:
            if record.fault == "no-memory":
                log(
                    self._logger,
                    "ICudaEngine::createExecutionContext: Error Code 2: OutOfMemory (Requested size was 123 bytes. In "
                    "executeHelper at /x:1)",
                )
                return None
            record.contexts.append((*arguments, *named.values()))
            context = module.IExecutionContext()
            context._engine, context._shapes, context._addresses, context._version = self, {}, {}, 0
            context._profile, context._ran = 0, False
            config = next((one for one in record.contexts[-1] if type(one).__name__ == "IRuntimeConfig"), None)
            context._strategy = getattr(config, "cuda_graph_strategy", None)
            if module._release == "rtx":
                cache = getattr(config, "_cache", None)
                kernels = hashlib.sha256(self._model.SerializeToString()).hexdigest()[:8]
                if cache is None or kernels not in cache._kernels:
                    record.kernels_compiled += 1
                if cache is not None:
                    cache._kernels.add(kernels)
            return context

        def create_runtime_config(self) -> Any:
            config = module.IRuntimeConfig()
            config._cache = None
            return config

        def create_engine_inspector(self) -> Any:
            inspector = module.EngineInspector()
            inspector._engine = self
            return inspector

    class IRuntimeConfig:
        def create_runtime_cache(self) -> Any:
            cache = module.IRuntimeCache()
            cache._kernels = set()
            return cache

        def set_runtime_cache(self, cache: Any = None) -> bool:
            self._cache = cache
            return True

    class IRuntimeCache:
        def serialize(self) -> Any:
            return HostMemory(json.dumps(sorted(self._kernels)).encode())

        def deserialize(self, blob: Any) -> bool:
            try:
                self._kernels = set(json.loads(bytes(blob)))
            except ValueError:
                return False
            return True

    class Refitter:
        def __init__(self, engine: Any, logger: Any) -> None:
            self._engine = engine

        def refit_cuda_engine(self) -> bool:
            self._engine._header["refitted"] = True
            return True

        def get_missing_weights(self) -> list[str]:
            return []

    class OnnxParserRefitter:
        def __init__(self, refitter: Any, logger: Any) -> None:
            self._refitter = refitter

        def refit_from_file(self, model: str) -> bool:
            loaded = onnx.load(model)
            engine = self._refitter._engine
            if [node.op_type for node in loaded.graph.node] != [node.op_type for node in engine._model.graph.node]:
                return False
            engine._model = loaded
            engine._session = onnxruntime.InferenceSession(
                loaded.SerializeToString(), providers=["CPUExecutionProvider"]
            )
            return True

        @property
        def num_errors(self) -> int:
            return 0

    class EngineInspector:
        _engine: Any
        execution_context: Any

        def get_engine_information(self, format: Any) -> str:
            assert format.name == "JSON"
            if record.inspector is not None:
                return record.inspector
            assert self.execution_context._shapes, "without shapes the inspector tells no types"
            eleven = module.__name__ == "tensorrt" and module.__version__.startswith("11")
            layers: list[Any] = layers_of(self._engine._model, record.precision, eleven)
            if self._engine._header["verbosity"] == "NONE":
                layers = []
            elif self._engine._header["verbosity"] != "DETAILED":
                layers = [layer["Name"] for layer in layers]
            return json.dumps({"Layers": layers, "I/O Tensors" if eleven else "Bindings": ["input", "logits"]})

    class IExecutionContext:
        _engine: Any
        _profile: int
        _shapes: dict[str, Any]
        _addresses: dict[str, int]
        _version: int
        _ran: bool
        _strategy: Any

        @property
        def active_optimization_profile(self) -> int:
            return self._profile

        def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
            if not 0 <= profile_index < self._engine.num_optimization_profiles:
                return False
            self._profile, self._shapes = profile_index, {}
            self._version += 1
            self._ran = False
            return True

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            assert all(type(size) is int for size in shape), "a NumPy integer in TensorRT's own interface"
            profiles = self._engine._header["profiles"]
            ranges = profiles[self._profile].get(name) if profiles else None
            if ranges and not ranges[0][0] <= shape[0] <= ranges[2][0]:
                log(
                    self._engine._logger,
                    "IExecutionContext::setInputShape: Error Code 3: API Usage Error (Parameter check failed, Supplied "
                    "binding dimension for bindings[0] exceed min ~ max range. In setInputShape at /x:1)",
                )
                return False
            self._shapes[name] = tuple(shape)
            self._version += 1
            self._ran = False
            return True

        def get_tensor_shape(self, name: str) -> Any:
            if name in self._shapes:
                return Dims(self._shapes[name])
            batch = next(iter(self._shapes.values()))[0] if self._shapes else -1
            return Dims(batch if size < 0 else size for size in self._engine.get_tensor_shape(name))

        def set_tensor_address(self, name: str, memory: int) -> bool:
            assert type(memory) is int
            assert memory % 256 == 0 or record.cuda is not None
            self._addresses[name] = memory
            self._version += 1
            return True

        def is_stream_capturable(self, stream: int) -> bool:
            return False

        def execute_async_v3(self, stream_handle: int) -> bool:
            assert type(stream_handle) is int
            missing = [name for name in self._engine._inputs if name not in self._shapes]
            unset = [name for name in (*self._engine._inputs, *self._engine._outputs) if name not in self._addresses]
            if record.fault == "fail" or missing or unset or not self._engine._header["refitted"]:
                reason = f"shape of {missing} or address of {unset} is not set" if missing or unset else "it gave up"
                if not self._engine._header["refitted"]:
                    reason = "the engine has no weights: refit it first"
                log(
                    self._engine._logger,
                    f"IExecutionContext::enqueueV3: Error Code 3: API Usage Error (Parameter check failed, {reason}. "
                    "In "
                    "enqueueV3 at /x:1)",
                )
                return False
            capturing = record.cuda.objects[stream_handle].capturing is not None
            rtx_own = module._release == "rtx" and capturing
            if capturing and (record.fault == "no-capture" or not self._ran or rtx_own):
                # what is still to be set up after a change of shape, or cannot be captured at all, ends the capture
                record.cuda.invalidate(stream_handle)
                log(
                    self._engine._logger,
                    "IExecutionContext::enqueueV3: Error Code 1: Cuda Runtime (operation not permitted when stream is "
                    "capturing. In f at /x:1)",
                )
                return False
            self._ran = True
            shapes, addresses, version = dict(self._shapes), dict(self._addresses), self._version
            verbosity = getattr(self, "nvtx_verbosity", module.ProfilingVerbosity[self._engine._header["verbosity"]])
            cost = fake_cuda.LAUNCH_MS
            inside_a_graph = capturing or getattr(self._strategy, "name", "") == "WHOLE_GRAPH_CAPTURE"
            if verbosity.name == "DETAILED" and not inside_a_graph:
                cost += DETAILED_NVTX_MS

            def work() -> None:
                assert not capturing or self._version == version, "the context of a captured graph was changed since"
                run_graph(self._engine, shapes, addresses, record)

            if record.fault == "illegal":
                record.cuda.fault_at_drain = fake_cuda.ILLEGAL_ADDRESS
            queued = record.cuda.enqueue(stream_handle, cost, work) == 0
            profiler = getattr(self, "profiler", None)
            if profiler is not None and not inside_a_graph:
                eleven = module.__name__ == "tensorrt" and module.__version__.startswith("11")
                for index, layer in enumerate(layers_of(self._engine._model, record.precision, eleven)):
                    hidden = self._engine._header["verbosity"] == "NONE"
                    profiler.report_layer_time(str(index) if hidden else layer["Name"], LAYER_MS * (1 + index % 3))
            return queued

    return [value for value in locals().values() if isinstance(value, type)]


def number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:4])


def run_graph(engine: Any, shapes: dict[str, Any], addresses: dict[str, int], record: Record) -> None:
    feed = {}
    for name in engine._inputs:
        kind = NUMPY_TYPES[engine.get_tensor_dtype(name).name]
        size = int(np.prod(shapes[name])) * np.dtype(kind).itemsize
        feed[name] = np.frombuffer(record.cuda.read(addresses[name], size), kind).reshape(shapes[name])
    for name, result in zip(engine._outputs, engine._session.run(None, feed), strict=True):
        result = np.zeros_like(result) if record.fault == "zeros" else np.ascontiguousarray(result)
        record.cuda.write(addresses[name], ctypes.string_at(result.ctypes.data, result.nbytes))


def layers_of(model: Any, forced: str, eleven: bool) -> list[dict[str, Any]]:
    """Return the layers of an engine of a graph as the inspector tells them: a product each, and what is between them.

    A product whose operands come from DequantizeLinear runs in 8 bits. ``forced`` "dequantized" is what TensorRT #3784
    shows: kernels that read 8 bits and write FP16, and products in FP16 behind them.
    """
    graph = model.graph
    makers = {output: node for node in graph.node for output in node.output}
    weights = {tensor.name: tensor.data_type for tensor in graph.initializer}
    half = any(kind == onnx.TensorProto.FLOAT16 for kind in weights.values())

    def tensor(kind: str) -> dict[str, Any]:
        if eleven:
            return {"Name": "t", "Dimensions": [1, 16, 32], "Format": "Row major linear", "DataType": kind.upper()}
        spelled = {"fp32": "Float", "fp16": "Half", "int8": "Int8", "fp8": "FP8"}[kind]
        return {"Name": "t", "Dimensions": [1, 16, 32], "Format/Datatype": spelled}

    def layer(name: str, kind: str, source: str, ends: tuple[str, str], tactic: str) -> dict[str, Any]:
        return {
            "Name": name,
            "LayerType": kind,
            "Inputs": [tensor(ends[0])],
            "Outputs": [tensor(ends[1])],
            "TacticName": tactic,
            "StreamId": 0,
            "Metadata": f"[ONNX Layer: {source}]",
        }

    high = "fp16" if half else "fp32"
    found: list[dict[str, Any]] = [layer("reformat", "Reformat", "", ("fp32", high), "")]
    for index, node in enumerate(node for node in graph.node if node.op_type in PRODUCTS):
        kind = high
        behind = [makers[name] for name in node.input if name in makers]
        if len([one for one in behind if one.op_type == "DequantizeLinear"]) >= 2:
            stored = {weights.get(one.input[2]) for one in behind if len(one.input) > 2}
            kind = "fp8" if onnx.TensorProto.FLOAT8E4M3FN in stored else "int8"
        if forced == "dequantized" and kind in ("int8", "fp8"):
            found.append(layer(f"__myl_CastMul_myl0_{index}", "kgen", node.name, (kind, high), "__myl_CastMul_0x12"))
            kind = high
        elif forced and forced != "dequantized":
            kind = forced
        spelled = {"fp32": "f32f32_f32f32_f32", "fp16": "f16f16_f16f16_f16", "int8": "i8i8_i8i32_f32"}
        title = "fprop_implicit_gemm" if node.op_type == "Conv" else "gemm"
        tactic = f"sm80_xmma_{title}_{spelled.get(kind, 'e4m3e4m3_e4m3f32_f32')}_tn_n_tilesize64x64x64"
        layer_type = "CaskConvolution" if node.op_type == "Conv" else "gemm"
        found.append(layer(f"{node.name}_myl0_{index}", layer_type, node.name, (kind, high), tactic))
        found.append(layer(f"__myl_Norm_myl0_{index}", "kgen", node.name, (high, kind), "__myl_Norm_0x34"))
    return found


def parser_error(module: Any, number: int, node: Any) -> Any:
    error = module.ParserError()
    error._node, error._name, error._operator = number, node.name, node.op_type
    error._desc = 'creator && "Plugin not found, are the plugin name, version, and namespace correct?"'
    return error
