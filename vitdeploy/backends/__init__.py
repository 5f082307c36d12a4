"""Runtimes, one file each. ``get_backend`` imports a runtime's module only when it is asked for."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable

from vitdeploy.backends.absent import AbsentBackend
from vitdeploy.errors import UsageError
from vitdeploy.plugins import load_plugins
from vitdeploy.sessions import Backend

BACKENDS: dict[str, str] = {
    "pytorch": "vitdeploy.backends.pytorch:PyTorchBackend",
    "onnxruntime": "vitdeploy.backends.onnxruntime:OnnxRuntimeBackend",
    "tensorrt": "vitdeploy.backends.tensorrt:TensorRTBackend",
    "tensorrt-lean": "vitdeploy.backends.tensorrt_lean:TensorRTLeanBackend",
    "tensorrt-rtx": "vitdeploy.backends.tensorrt_rtx:TensorRTRTXBackend",
    "openvino": "vitdeploy.backends.openvino:OpenVINOBackend",
    "null": "vitdeploy.backends.null:NullBackend",
}


GROUP = "vitdeploy.backends"
_registered: dict[str, Callable[[], Backend]] = {}


def register_backend(name: str, factory: Callable[[], Backend]) -> None:
    """Add a backend under a name of its own; ``factory`` (usually its class) is called once, when it is first needed.

    A backend whose ``graph_devices`` are not empty runs ONNX files as they are, where
    ``BenchOptions.runtimes`` names it.

    Raises:
        UsageError: Another backend has that name.
    """
    if name in BACKENDS or _registered.get(name, factory) is not factory:
        raise UsageError(f"there already is a backend {name!r}: register another name")
    _registered[name] = factory
    get_backend.cache_clear()


def names() -> tuple[str, ...]:
    """Return the names of all backends, installed or not, those of other packages last."""
    load_plugins(GROUP)
    return (*BACKENDS, *_registered)


@functools.cache
def get_backend(name: str) -> Backend:
    """Return the backend of that name; whether it can be used here, its ``unavailable()`` tells.

    Raises:
        UsageError: There is no such backend.
    """
    if name not in BACKENDS and name not in names():
        raise UsageError(f"there is no backend {name!r}, expected one of {', '.join(names())}")
    if name in _registered:
        return _registered[name]()
    module, cls = BACKENDS[name].split(":")
    try:
        backend: Backend = getattr(importlib.import_module(module), cls)()
    except ImportError as error:
        if name != "pytorch":  # the one whose library is imported at the top of its module
            raise
        return AbsentBackend(name, f"torch cannot be imported ({error}): pip install 'vitdeploy[torch]'")
    return backend
