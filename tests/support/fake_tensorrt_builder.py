"""The classes of ``fake_tensorrt`` that make a plan of a graph."""

from __future__ import annotations

import hashlib
import json
import threading
import warnings
from typing import Any

import onnx
from fake_tensorrt_record import MAGIC, Dims, HostMemory, Record, log, start


def building_classes(module: Any) -> list[type]:
    """Return the classes of one module that build; they find each other through it."""
    record: Record = module.record

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
            start(module, self, logger, "InferBuilder")
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
                    module,
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

    return [value for value in locals().values() if isinstance(value, type)]


def parser_error(module: Any, number: int, node: Any) -> Any:
    error = module.ParserError()
    error._node, error._name, error._operator = number, node.name, node.op_type
    error._desc = 'creator && "Plugin not found, are the plugin name, version, and namespace correct?"'
    return error
