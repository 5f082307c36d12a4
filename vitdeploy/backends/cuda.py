"""The CUDA runtime as an engine session needs it: buffers, copies, streams, events, graphs; over cuda-python.

cuda-python has had two layouts: ``cuda.bindings.runtime`` (12.6.1 and newer, all of 13) and ``cuda.cudart`` (before).
Its functions return a tuple whose first entry is the error.

An error that a kernel leaves behind is sticky: CUDA returns it from every later call in this process, so it would be
blamed on whatever comes next. ``Cuda`` keeps the first one and names it from then on.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy import environment
from vitdeploy.errors import BackendError

LAYOUTS = ("cuda.bindings.runtime", "cuda.cudart")
NO_FLAGS = 0
# cudaError_t after which the context of the process cannot be used again (driver_types.h, "the process must be
# relaunched")
STICKY = frozenset({214, 220, 700, 702, 709, 710, 711, 714, 715, 716, 717, 718, 719, 721})
TOO_OLD_DRIVER = 35


def cuda_problem() -> str | None:
    """Return None where CUDA works in this process, else why not and the command that changes it.

    The first call makes CUDA's context: importing cuda-python says nothing about the driver.
    """
    try:
        open_cuda().start()
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
    raise BackendError(f"cuda-python is not installed: {install_command()}")


def install_command() -> str:
    """Return the command that adds the cuda-python of this driver's CUDA."""
    driver = environment.current().cuda
    return f"pip install 'vitdeploy[{'cuda12' if driver is not None and driver.startswith('12.') else 'cuda13'}]'"


def open_cuda() -> Cuda:
    """Return the one ``Cuda`` of this process.

    Raises:
        BackendError: cuda-python is not installed.
    """
    return _cuda_of(runtime_module())


@functools.cache
def _cuda_of(runtime: Any) -> Cuda:
    return Cuda(runtime)


class Cuda:
    """Calls of the runtime that raise instead of returning an error number.

    ``lost`` is the first sticky error of this process, in words; None while the GPU can be used.
    """

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime
        self._started = False
        self.lost: str | None = None

    def start(self) -> None:
        """Make CUDA's context.

        Raises:
            BackendError: The driver cannot serve this CUDA, there is no GPU, or the GPU was lost.
        """
        if self.lost is not None:
            raise BackendError(self.lost)
        if not self._started:
            error, *_ = self._runtime.cudaFree(0)
            if int(error) == TOO_OLD_DRIVER:
                serves = environment.current().cuda or "an older CUDA"
                raise BackendError(
                    f"CUDA cannot start ({self._name(error)}): the driver serves CUDA {serves}, and the installed "
                    f"cuda-python needs a newer one: {install_command()}"
                )
            if int(error) != 0:
                raise self._failure("cudaFree(0), its first call", error)
            self._started = True

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a function of the CUDA runtime; return its one result, its results where there are several, or None.

        Raises:
            BackendError: It failed; the line has CUDA's name of the error, of the first one where that was sticky.
        """
        error, *results = getattr(self._runtime, name)(*arguments)
        if int(error) != 0:
            raise self._failure(name, error)
        return (results[0] if len(results) == 1 else tuple(results)) if results else None

    def _failure(self, name: str, error: Any) -> BackendError:
        if self.lost is not None:
            return BackendError(self.lost)
        error_name = self._name(error)
        if int(error) in STICKY:
            self.lost = (
                f"the GPU stopped working in this process ({error_name}, first seen in {name}): start again; the first "
                f"failure is at fault, not those after it"
            )
            return BackendError(self.lost)
        self._runtime.cudaGetLastError()  # so that the next call of anyone does not report this error again
        hint = ": free GPU memory, or take a smaller batch" if "MemoryAllocation" in error_name else ""
        return BackendError(f"CUDA failed in {name}: {error_name}{hint}")

    def _name(self, error: Any) -> str:
        name = self._runtime.cudaGetErrorName(error)[1]
        return name.decode() if isinstance(name, bytes) else str(name)

    def look(self) -> None:
        """Ask for an error that a kernel has left behind, so that it is known before anything else is blamed.

        Raises:
            BackendError: There is one.
        """
        self.call("cudaDeviceSynchronize")

    def enum(self, kind: str, member: str) -> Any:
        """Return a member of one of the runtime's enumerations."""
        return getattr(getattr(self._runtime, kind), member)

    def free_memory_bytes(self) -> int:
        """Return how much device memory is free, of all processes."""
        free, _ = self.call("cudaMemGetInfo")
        return int(free)


def release(*steps: Callable[[], None]) -> None:
    """Give things back, each for itself: one that fails keeps no other from being freed, and raises nothing.

    After a sticky error every such call fails, and the cause is what the user has to see.
    """
    for step in steps:
        try:
            step()
        except BackendError:
            continue


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
        """Return what was recorded as a graph that can be launched.

        Raises:
            BackendError: The capture was invalidated by something that cannot be recorded, or nothing was recorded:
                work on another stream or device leaves an empty graph, whose launches would leave old outputs.
        """
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
            if int(cuda.call("cudaGraphGetNodes", graph)[-1]) == 0:
                raise BackendError("nothing was recorded")
            self.executable = cuda.call("cudaGraphInstantiate", graph, NO_FLAGS)
        finally:
            release(lambda: cuda.call("cudaGraphDestroy", graph))

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
