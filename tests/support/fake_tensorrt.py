"""TensorRT's Python module of any release, without TensorRT: its names are those of the API table, and no others.

A class here implements more than one release has; ``fake_module`` takes away what the table does not list for the
release, so that code that reaches for a name of another release fails as it would there. An engine runs its graph in
ONNX Runtime on the memory that ``fake_cuda`` hands out.
"""

from __future__ import annotations

import ctypes
import enum
import functools
import json
import types
from pathlib import Path
from typing import Any

import fake_cuda
import numpy as np
import onnx
import onnxruntime

TABLE = Path(__file__).parents[1] / "backends" / "data" / "tensorrt_python_api.json"
RTX = "tensorrt_rtx_1.7.1.116"
# named by NVIDIA's pyCore.cpp in every release ("py::class_<ILogger, PyLogger> … .def("log", …)"); the table's pattern
# read the enumeration beside it instead
MISSED_BY_THE_TABLE = frozenset({"ILogger", "ILogger.log"})
MAGIC = b"fake plan\n"


@functools.cache
def api_names(release: str) -> frozenset[str]:
    """Return the names of a release (``10.3``), or of TensorRT-RTX (``rtx``)."""
    table = json.loads(TABLE.read_text())
    if release == "rtx":
        return frozenset(table[RTX])
    order = table["releases"]
    place = order.index(release)
    spans = table["names"].items()
    found = {name for name, span in spans if order.index(span[0]) <= place <= order.index(span[-1])}
    return frozenset(found | MISSED_BY_THE_TABLE)


def releases() -> list[str]:
    """Return the releases that are supported, oldest first."""
    order: list[str] = json.loads(TABLE.read_text())["releases"]
    return order[order.index("10.3") :]


class Strict:
    """Takes no attribute that its class does not list, as a pybind class."""

    names: frozenset[str] = frozenset()

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and name not in self.names:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        object.__setattr__(self, name, value)


def fake_module(release: str, version: str | None = None) -> Any:
    """Return the module of a release; ``module.record`` collects what was asked of it."""
    names = api_names(release)
    module: Any = types.ModuleType("tensorrt_rtx" if release == "rtx" else "tensorrt")
    module.__version__ = version or ("1.7.1.116" if release == "rtx" else f"{release}.0.42")
    module.record = types.SimpleNamespace(flags=[], set=[], cleared=[], capabilities=[], contexts=[], cuda=None)
    module.record.fault = ""  # what the engine does wrong: "", "zeros", "fail"
    for kind in enums(names):
        setattr(module, kind, make_enum(kind, names, release))
    for cls in classes(module):
        kept = {name: value for name, value in vars(cls).items() if name.startswith("_") or in_table(cls, name, names)}
        kept.pop("__dict__", None)
        kept.pop("__weakref__", None)
        allowed = frozenset(name.split(".")[1] for name in names if name.startswith(f"{cls.__name__}."))
        if cls.__name__ in names:
            bases = (Strict,) if cls.__name__ not in ("ILogger", "IProgressMonitor") else ()
            setattr(module, cls.__name__, type(cls.__name__, bases, {**kept, "names": allowed, "_trt": module}))
    return module


def in_table(cls: type, name: str, names: frozenset[str]) -> bool:
    return f"{cls.__name__}.{name}" in names


def enums(names: frozenset[str]) -> list[str]:
    wanted = ("NetworkDefinitionCreationFlag", "BuilderFlag", "MemoryPoolType", "ProfilingVerbosity", "TensorIOMode")
    more = ("DataType", "LayerInformationFormat", "HardwareCompatibilityLevel", "ComputeCapability")
    return [kind for kind in (*wanted, *more, "DynamicShapesKernelSpecializationStrategy") if kind in names]


def make_enum(kind: str, names: frozenset[str], release: str) -> Any:
    skip = ("name", "value", "itemsize")
    members = [name.split(".")[1] for name in names if name.startswith(f"{kind}.")]
    members = sorted(name for name in members if name not in skip and not name.startswith("_"))
    numbers = {name: number for number, name in enumerate(members)}
    if kind == "NetworkDefinitionCreationFlag":  # the numbers of NvInfer.h, which is the trap
        ten = {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1, "PREFER_JIT_PYTHON_PLUGINS": 2, "PREFER_AOT_PYTHON_PLUGINS": 3}
        eleven = {"STRONGLY_TYPED": 0, "PREFER_JIT_PYTHON_PLUGINS": 1, "PREFER_AOT_PYTHON_PLUGINS": 2}
        known = ten if release.startswith("10.") else eleven
        numbers = {name: known[name] for name in members}
    return enum.IntEnum(kind, numbers)


def classes(module: Any) -> list[type]:
    """Return the classes of one module; they find each other through it."""
    record = module.record

    class ILogger:
        def log(self, severity: Any, text: str) -> None: ...

    class IProgressMonitor:
        def phase_start(self, name: str, parent: str | None, steps: int) -> None: ...
        def step_complete(self, name: str, step: int) -> bool: ...
        def phase_finish(self, name: str) -> None: ...

    class Builder:
        def __init__(self, logger: Any) -> None:
            self._logger = logger

        def create_network(self, flags: int = 0) -> Any:
            record.flags.append(flags)
            return module.INetworkDefinition()

        def create_builder_config(self) -> Any:
            return module.IBuilderConfig()

        def create_optimization_profile(self) -> Any:
            return module.IOptimizationProfile()

        def build_serialized_network(self, network: Any, config: Any) -> Any:
            monitor = config.progress_monitor
            monitor.phase_start("Building engine", None, 2)
            monitor.phase_start("Timing", "Building engine", 1)
            stopped = not monitor.step_complete("Timing", 0)
            monitor.phase_finish("Timing")
            monitor.phase_finish("Building engine")
            dynamic = any(size < 0 for size in network._model["shape"])
            if stopped or (dynamic and not config._profiles):
                text = (
                    "IBuilder::buildSerializedNetwork: Error Code 4: API Usage Error (no profile. In validate at /x:1)"
                )
                self._logger.log(error_severity(), text)
                return None
            ranges = config._profiles[0]._ranges if config._profiles else {}
            header = {"version": module.__version__, "ranges": ranges, "half": network._model["half"]}
            return HostMemory(MAGIC + json.dumps(header).encode() + b"\n" + network._model["bytes"])

    class INetworkDefinition:
        def __init__(self) -> None:
            self._model: dict[str, Any] = {}

        def get_input(self, index: int) -> Any:
            tensor = module.ITensor()
            tensor.name, tensor.shape = "input", self._model["shape"]
            return tensor

        @property
        def num_inputs(self) -> int:
            return 1

    class ITensor:
        pass

    class IOptimizationProfile:
        def __init__(self) -> None:
            self._ranges: dict[str, Any] = {}

        def set_shape(self, name: str, least: Any, best: Any, most: Any) -> None:
            assert all(type(size) is int for shape in (least, best, most) for size in shape)
            self._ranges[name] = [least, best, most]

    class IBuilderConfig:
        def __init__(self) -> None:
            self._profiles: list[Any] = []

        def set_flag(self, flag: Any) -> None:
            record.set.append(flag.name)

        def clear_flag(self, flag: Any) -> None:
            record.cleared.append(flag.name)

        def set_memory_pool_limit(self, pool: Any, size: int) -> None:
            record.set.append((pool.name, size))

        def add_optimization_profile(self, profile: Any) -> int:
            least, best, most = next(iter(profile._ranges.values()))
            if not least <= best <= most:
                return -1
            self._profiles.append(profile)
            return 0

        def set_compute_capability(self, capability: Any, index: int) -> bool:
            record.capabilities.append(capability.name)
            return bool(index < self.num_compute_capabilities)

    class OnnxParser:
        def __init__(self, network: Any, logger: Any) -> None:
            self._network, self._errors = network, []

        @property
        def num_errors(self) -> int:
            return len(self._errors)

        def get_error(self, index: int) -> Any:
            return self._errors[index]

        def parse_from_file(self, path: str) -> bool:
            assert type(path) is str
            model = onnx.load(path)
            for number, node in enumerate(model.graph.node):
                if node.domain:
                    self._errors.append(parser_error(module, number, node))
            sizes = model.graph.input[0].type.tensor_type.shape.dim
            shape = tuple(-1 if size.dim_param else size.dim_value for size in sizes)
            half = any(node.op_type == "Cast" for node in model.graph.node)
            self._network._model = {"bytes": model.SerializeToString(), "shape": shape, "half": half}
            return not self._errors

    class ParserError:
        def desc(self) -> str:
            return self._desc

        def node(self) -> int:
            return self._node

        def node_name(self) -> str:
            return self._name

        def node_operator(self) -> str:
            return self._operator

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self._logger = logger

        def deserialize_cuda_engine(self, plan: Any) -> Any:
            assert isinstance(plan, bytes)
            if not plan.startswith(MAGIC):
                text = "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (magicTag differs. In f at /x:1)"
                self._logger.log(error_severity(), text)
                return None
            engine = module.ICudaEngine()
            engine._open(plan)
            return engine

    class ICudaEngine:
        def _open(self, plan: bytes) -> None:
            _, header, model = plan.split(b"\n", 2)
            self._header: dict[str, Any] = json.loads(header)
            self._session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
            self._inputs = [value.name for value in self._session.get_inputs()]
            self._outputs = [value.name for value in self._session.get_outputs()]

        @property
        def num_io_tensors(self) -> int:
            return len(self._inputs) + len(self._outputs)

        def get_tensor_name(self, index: int) -> str:
            return (self._inputs + self._outputs)[index]

        def get_tensor_mode(self, name: str) -> Any:
            return module.TensorIOMode.INPUT if name in self._inputs else module.TensorIOMode.OUTPUT

        def get_tensor_dtype(self, name: str) -> Any:
            return module.DataType.FLOAT

        def get_tensor_shape(self, name: str) -> Any:
            value = next(v for v in (*self._session.get_inputs(), *self._session.get_outputs()) if v.name == name)
            return [size if isinstance(size, int) else -1 for size in value.shape]

        def get_tensor_profile_shape(self, name: str, index: int) -> Any:
            assert index == 0
            return self._header["ranges"][name]

        def create_execution_context(self, *arguments: Any) -> Any:
            record.contexts.append(arguments)
            context = module.IExecutionContext()
            context._engine, context._shapes, context._addresses = self, {}, {}
            return context

        def create_runtime_config(self) -> Any:
            return module.IRuntimeConfig()

        def create_engine_inspector(self) -> Any:
            inspector = module.EngineInspector()
            inspector._engine = self
            return inspector

    class IRuntimeConfig:
        pass

    class EngineInspector:
        def get_engine_information(self, format: Any) -> str:
            assert format.name == "JSON"
            assert self.execution_context._shapes, "without shapes the inspector tells no types"
            kind = "FP16" if self._engine._header["half"] else "FP32"
            eleven = module.__name__ == "tensorrt" and module.__version__.startswith("11")
            layer = {"Format": "Row major linear", "DataType": kind}
            if not eleven:
                layer = {"Format/Datatype": f"Row major linear {kind} format"}
            layers = [
                {"Name": f"gemm{i}", "LayerType": "gemm", "Inputs": [layer], "Outputs": [layer]} for i in range(3)
            ]
            return json.dumps({"Layers": layers, "I/O Tensors" if eleven else "Bindings": ["input", "logits"]})

    class IExecutionContext:
        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            assert isinstance(shape, tuple)
            assert all(type(size) is int for size in shape), "a NumPy integer in TensorRT's own interface"
            ranges = self._engine._header["ranges"].get(name)
            if ranges and not ranges[0][0] <= shape[0] <= ranges[2][0]:
                return False
            self._shapes[name] = shape
            return True

        def get_tensor_shape(self, name: str) -> Any:
            if name in self._shapes:
                return self._shapes[name]
            batch = next(iter(self._shapes.values()))[0]
            return [batch if size < 0 else size for size in self._engine.get_tensor_shape(name)]

        def set_tensor_address(self, name: str, address: int) -> bool:
            assert type(address) is int
            self._addresses[name] = address
            return True

        def execute_async_v3(self, stream: int) -> bool:
            assert type(stream) is int
            if record.fault == "fail":
                return False
            shapes, addresses = dict(self._shapes), dict(self._addresses)
            work = functools.partial(run_graph, self._engine, shapes, addresses, record)
            record.cuda.enqueue(stream, fake_cuda.LAUNCH_MS, work)
            return True

    return [value for value in locals().values() if isinstance(value, type)]


def run_graph(engine: Any, shapes: dict[str, Any], addresses: dict[str, int], record: Any) -> None:
    feed = {}
    for name in engine._inputs:
        size = int(np.prod(shapes[name])) * 4
        data = ctypes.string_at(addresses[name], size)
        feed[name] = np.frombuffer(data, np.float32).reshape(shapes[name])
    for name, result in zip(engine._outputs, engine._session.run(None, feed), strict=True):
        result = np.zeros_like(result) if record.fault == "zeros" else np.ascontiguousarray(result)
        ctypes.memmove(addresses[name], result.ctypes.data, result.nbytes)


def parser_error(module: Any, number: int, node: Any) -> Any:
    error = module.ParserError()
    error._node, error._name, error._operator = number, node.name, node.op_type
    error._desc = 'creator && "Plugin not found, are the plugin name, version, and namespace correct?"'
    return error


def error_severity() -> Any:
    return types.SimpleNamespace(name="ERROR")


class HostMemory(bytearray):
    """What a build returns: something with the buffer protocol."""
