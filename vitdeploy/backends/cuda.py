"""The CUDA runtime as an engine session needs it: buffers, copies, one stream, events, graphs; over cuda-python.

cuda-python has had three layouts: ``cuda.bindings.runtime`` (12.6.1 and newer, all of 13) and ``cuda.cudart`` (before).
Its functions return a tuple whose first entry is the error.
"""

from __future__ import annotations

import ctypes
import importlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy import environment
from vitdeploy.errors import BackendError

LAYOUTS = ("cuda.bindings.runtime", "cuda.cudart")
NO_FLAGS = 0


def cuda_missing() -> str | None:
    """Return None where cuda-python can be imported, else the command that adds the one for this driver."""
    try:
        runtime_module()
    except BackendError as error:
        return str(error)
    return None


def runtime_module() -> Any:
    """Return cuda-python's runtime module.

    Raises:
        BackendError: cuda-python is not installed.
    """
    for layout in LAYOUTS:
        try:
            return importlib.import_module(layout)
        except ImportError:
            continue
    driver = environment.current().cuda
    extra = "cuda12" if driver is not None and driver.startswith("12.") else "cuda13"
    raise BackendError(f"cuda-python is not installed: pip install 'vitdeploy[{extra}]'")


class Cuda:
    """Calls of the runtime that raise instead of returning an error number."""

    def __init__(self) -> None:
        self._runtime = runtime_module()

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a function of the CUDA runtime; return its one result, None where it has none.

        Raises:
            BackendError: It failed; the line has CUDA's name of the error.
        """
        error, *results = getattr(self._runtime, name)(*arguments)
        if int(error) != 0:
            told = self._runtime.cudaGetErrorName(error)[1]
            text = told.decode() if isinstance(told, bytes) else str(told)
            hint = ": free GPU memory, or take a smaller batch" if "MemoryAllocation" in text else ""
            raise BackendError(f"CUDA failed in {name}: {text}{hint}")
        return results[0] if results else None

    def enum(self, kind: str, member: str) -> Any:
        """Return a member of one of the runtime's enumerations."""
        return getattr(getattr(self._runtime, kind), member)


class Stream:
    """A stream that does not wait for the default one, with the copies, events and graphs that run on it."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        non_blocking = 1  # cudaStreamNonBlocking
        self._stream = cuda.call("cudaStreamCreateWithFlags", non_blocking)

    @property
    def handle(self) -> int:
        """The ``cudaStream_t`` as TensorRT's bindings take it."""
        return int(self._stream)

    def copy_in(self, device: DeviceBuffer, host: PinnedBuffer, size_bytes: int) -> None:
        """Queue a copy from pinned memory to the device."""
        kind = self._cuda.enum("cudaMemcpyKind", "cudaMemcpyHostToDevice")
        self._cuda.call("cudaMemcpyAsync", device.address, host.address, size_bytes, kind, self._stream)

    def copy_out(self, host: PinnedBuffer, device: DeviceBuffer, size_bytes: int) -> None:
        """Queue a copy from the device to pinned memory."""
        kind = self._cuda.enum("cudaMemcpyKind", "cudaMemcpyDeviceToHost")
        self._cuda.call("cudaMemcpyAsync", host.address, device.address, size_bytes, kind, self._stream)

    def synchronize(self) -> None:
        """Wait until everything queued is done."""
        self._cuda.call("cudaStreamSynchronize", self._stream)

    def begin_capture(self) -> None:
        """Record what is queued from now on instead of running it."""
        mode = self._cuda.enum("cudaStreamCaptureMode", "cudaStreamCaptureModeThreadLocal")
        self._cuda.call("cudaStreamBeginCapture", self._stream, mode)

    def end_capture(self) -> Graph:
        """Return what was recorded as a graph that can be launched."""
        return Graph(self._cuda, self._cuda.call("cudaStreamEndCapture", self._stream))

    def launch(self, graph: Graph) -> None:
        """Queue one run of the graph."""
        self._cuda.call("cudaGraphLaunch", graph.executable, self._stream)

    def record(self, event: Event) -> None:
        """Queue a time stamp."""
        self._cuda.call("cudaEventRecord", event.handle, self._stream)

    def close(self) -> None:
        """Destroy the stream."""
        self._cuda.call("cudaStreamDestroy", self._stream)


class Graph:
    """An executable CUDA graph."""

    def __init__(self, cuda: Cuda, graph: Any) -> None:
        self._cuda = cuda
        try:
            self.executable = cuda.call("cudaGraphInstantiate", graph, NO_FLAGS)
        finally:
            cuda.call("cudaGraphDestroy", graph)

    def close(self) -> None:
        """Destroy the graph."""
        self._cuda.call("cudaGraphExecDestroy", self.executable)


class Event:
    """A time stamp on the device."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self.handle = cuda.call("cudaEventCreate")

    def wait(self) -> None:
        """Wait until the stream has passed this event."""
        self._cuda.call("cudaEventSynchronize", self.handle)

    def elapsed_ms(self, end: Event) -> float:
        """Return the milliseconds from this event to ``end``; both have passed."""
        return float(self._cuda.call("cudaEventElapsedTime", self.handle, end.handle))

    def close(self) -> None:
        """Destroy the event."""
        self._cuda.call("cudaEventDestroy", self.handle)


class DeviceBuffer:
    """Memory on the device."""

    def __init__(self, cuda: Cuda, size_bytes: int) -> None:
        self._cuda = cuda
        self.size_bytes = size_bytes
        self.address = int(cuda.call("cudaMalloc", size_bytes))

    def close(self) -> None:
        """Free it."""
        self._cuda.call("cudaFree", self.address)


class PinnedBuffer:
    """Page-locked memory on the host: only from such memory does a copy run beside the processor."""

    def __init__(self, cuda: Cuda, size_bytes: int) -> None:
        self._cuda = cuda
        self.size_bytes = size_bytes
        self.address = int(cuda.call("cudaMallocHost", size_bytes))
        self._bytes = (ctypes.c_ubyte * size_bytes).from_address(self.address)

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return a view of the first bytes; it is valid until ``close``."""
        count = int(np.prod(shape, dtype=np.int64))
        array: NDArray[Any] = np.frombuffer(memoryview(self._bytes), dtype, count)
        return array.reshape(shape)

    def close(self) -> None:
        """Free it."""
        self._cuda.call("cudaFreeHost", self.address)
