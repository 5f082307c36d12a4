"""TensorRT's Python module of any release, without TensorRT: its names and signatures are those of the API table.

A class here implements more than one release has; ``fake_module`` takes away what the table does not list for the
release, and holds every call and every assignment against the release's own signature. So code that reaches for a
name of another release, or passes what pybind would refuse, fails as it would there. An engine runs its graph in ONNX
Runtime on the memory that ``fake_cuda`` hands out.

``module.record`` collects what was asked of the module, and holds what goes wrong: see ``Record``.
"""

from __future__ import annotations

import enum
import inspect
import types
from typing import Any

from fake_tensorrt_builder import building_classes
from fake_tensorrt_record import Record
from fake_tensorrt_runtime import running_classes
from tensorrt_signatures import MODULES, Strict, api_names, checked, signatures, table


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
    for cls in [*building_classes(module), *running_classes(module)]:
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
