"""Runtimes, one file each. ``get_backend`` imports a runtime's module only when it is asked for."""

from __future__ import annotations

import functools
import importlib

from vitdeploy.backends.absent import AbsentBackend
from vitdeploy.errors import UsageError
from vitdeploy.sessions import Backend

BACKENDS: dict[str, str] = {
    "pytorch": "vitdeploy.backends.pytorch:PyTorchBackend",
    "onnxruntime": "vitdeploy.backends.onnxruntime:OnnxRuntimeBackend",
    "tensorrt": "vitdeploy.backends.tensorrt:TensorRTBackend",
    "tensorrt-rtx": "vitdeploy.backends.tensorrt_rtx:TensorRTRTXBackend",
    "openvino": "vitdeploy.backends.openvino:OpenVINOBackend",
    "null": "vitdeploy.backends.null:NullBackend",
}


def names() -> tuple[str, ...]:
    """Return the names of all backends, installed or not."""
    return tuple(BACKENDS)


@functools.cache
def get_backend(name: str) -> Backend:
    """Return the backend of that name; whether it can be used here, its ``unavailable()`` tells.

    Raises:
        UsageError: There is no such backend.
    """
    if name not in BACKENDS:
        raise UsageError(f"there is no backend {name!r}, expected one of {', '.join(BACKENDS)}")
    module, cls = BACKENDS[name].split(":")
    try:
        backend: Backend = getattr(importlib.import_module(module), cls)()
    except ImportError as error:
        if name != "pytorch":  # the one whose library is imported at the top of its module
            raise
        return AbsentBackend(name, f"torch cannot be imported ({error}): pip install 'vitdeploy[torch]'")
    return backend
