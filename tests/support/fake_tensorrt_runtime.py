"""The classes of ``fake_tensorrt`` that run a plan: its graph in ONNX Runtime, on the memory of ``fake_cuda``."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import fake_cuda
import onnx
import onnxruntime
from fake_engine import layers_of, run_graph
from fake_tensorrt_record import MAGIC, Dims, HostMemory, Record, log, number, start

LAYER_MS = 0.25
DETAILED_NVTX_MS = 0.75  # what detailed NVTX ranges cost each launch that is not a graph's
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


def running_classes(module: Any) -> list[type]:
    """Return the classes of one module that run engines; they find each other through it."""
    record: Record = module.record

    class Runtime:
        _usable: bool
        _logger: Any

        def __init__(self, logger: Any) -> None:
            start(module, self, logger, "InferRuntime")
            self._lean_version = module.__version__ if module._release == "lean" else None

        def load_runtime(self, path: str) -> Any:
            assert self._usable, "segmentation fault: this runtime was not started"
            if not Path(path).is_file():
                log(module, self._logger, f"Unable to load library: {path}")
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
                    module,
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
                log(module, self._logger, text, "WARNING")
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
                    module,
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
                    module,
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
                    module,
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
                    module,
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
