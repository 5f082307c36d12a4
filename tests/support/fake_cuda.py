"""cuda-python's runtime module without a GPU: device memory is host memory, a stream is a queue.

It refuses what the CUDA runtime refuses, with the same error numbers. What is queued runs only when something waits
for it, so a result that is read too early is seen to be wrong. During a capture, calls that CUDA prohibits
(allocating, freeing, waiting) end it as invalid. An error that a kernel leaves behind is returned by every call from
then on, also by those that free. Memory that nothing was written to cannot be read by a kernel. Copies and launches
take fixed times on a clock of its own. Everything that is created is counted, and what is not given back is listed in
``alive``.
"""

from __future__ import annotations

import ctypes
import enum
import threading
import types
from collections.abc import Callable
from typing import Any

COPY_MS = 5.0
LAUNCH_MS = 2.0
GARBAGE = 0xAB

INVALID_VALUE, OUT_OF_MEMORY, INSUFFICIENT_DRIVER, NO_DEVICE, INVALID_DEVICE = 1, 2, 35, 100, 101
INVALID_HANDLE, NOT_READY, ILLEGAL_ADDRESS, LAUNCH_FAILURE = 400, 600, 700, 719
CAPTURE_UNSUPPORTED, CAPTURE_INVALIDATED = 900, 901
NAMES = {
    INVALID_VALUE: "cudaErrorInvalidValue",
    OUT_OF_MEMORY: "cudaErrorMemoryAllocation",
    INSUFFICIENT_DRIVER: "cudaErrorInsufficientDriver",
    NO_DEVICE: "cudaErrorNoDevice",
    INVALID_DEVICE: "cudaErrorInvalidDevice",
    INVALID_HANDLE: "cudaErrorInvalidResourceHandle",
    NOT_READY: "cudaErrorNotReady",
    ILLEGAL_ADDRESS: "cudaErrorIllegalAddress",
    LAUNCH_FAILURE: "cudaErrorLaunchFailure",
    CAPTURE_UNSUPPORTED: "cudaErrorStreamCaptureUnsupported",
    CAPTURE_INVALIDATED: "cudaErrorStreamCaptureInvalidated",
}
ANSWERED_ALWAYS = ("cudaGetErrorName", "cudaGetErrorString")
PROHIBITED_IN_A_CAPTURE = (
    "cudaMalloc",
    "cudaMallocHost",
    "cudaFree",
    "cudaFreeHost",
    "cudaDeviceSynchronize",
    "cudaStreamSynchronize",
    "cudaEventSynchronize",
)


class cudaMemcpyKind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class cudaStreamCaptureMode(enum.IntEnum):
    cudaStreamCaptureModeThreadLocal = 1


class Handle:
    def __init__(self, number: int) -> None:
        self.number = number

    def __int__(self) -> int:
        return self.number


class Stream(Handle):
    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.queue: list[tuple[float, Callable[[], None]]] = []
        self.capturing: list[tuple[float, Callable[[], None]]] | None = None
        self.invalidated = False


class Event(Handle):
    time: float | None = None
    stream: Any = None


class Buffer:
    """Memory, and which of its first bytes something was written to."""

    def __init__(self, kind: str, size: int) -> None:
        self.kind = kind
        self.bytes = (ctypes.c_ubyte * size)(*([GARBAGE] * size))
        self.written = size if kind == "pinned" else 0


class BrokenDown(Exception):
    """A kernel failed: the error stays for the rest of the process."""


class FakeRuntime(types.ModuleType):
    """The functions that sessions use; each returns (error, result…) as cuda-python does.

    ``fail`` makes a function return an error, ``fault_at_drain`` is an error that the next kernel leaves behind,
    ``driver_error`` is what ``cudaFree(0)`` says on a machine whose driver cannot serve this runtime.
    ``records_nothing`` leaves captures empty.
    """

    cudaMemcpyKind = cudaMemcpyKind
    cudaStreamCaptureMode = cudaStreamCaptureMode

    def __init__(self, devices: int = 1) -> None:
        super().__init__("cuda.bindings.runtime")
        self.memory: dict[int, Buffer] = {}
        self.objects: dict[int, Any] = {}
        self.calls: list[str] = []
        self.clock = 0.0
        self.fail: dict[str, int] = {}
        self.fault_at_drain = 0
        self.sticky = 0
        self.driver_error = 0
        self.last_error = 0
        self.devices = devices
        self.device_bytes = 1 << 30
        self.records_nothing = False
        self.current_device: dict[int, int] = {}
        self._numbers = 1000

    @property
    def alive(self) -> list[Any]:
        return [*self.memory, *self.objects.values()]

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("cuda") or name.startswith(("cudaMemcpyKind", "cudaStreamCaptureMode")):
            return super().__getattribute__(name)
        self.calls.append(name)
        function = super().__getattribute__(name)
        return lambda *arguments: self._call(name, function, arguments)

    def _call(self, name: str, function: Callable[..., tuple[Any, ...]], arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        if name in ANSWERED_ALWAYS:
            return function(*arguments)
        error = self.driver_error or self.sticky or self.fail.get(name, 0)
        if not error and name in PROHIBITED_IN_A_CAPTURE and self._captures():
            for stream in self._captures():
                stream.invalidated = True
            error = CAPTURE_UNSUPPORTED
        if not error:
            try:
                answer = function(*arguments)
            except BrokenDown:
                error = self.sticky
            else:
                error = answer[0]
                if not error:
                    return answer
        if name != "cudaGetLastError":
            self.last_error = error
        return (error, None)

    def _captures(self) -> list[Stream]:
        return [held for held in self.objects.values() if isinstance(held, Stream) and held.capturing is not None]

    def enqueue(self, stream: Any, cost_ms: float, work: Callable[[], None]) -> int:
        held = self.objects.get(int(stream))
        if held is None:
            return INVALID_HANDLE
        (held.queue if held.capturing is None else held.capturing).append((cost_ms, work))
        return 0

    def invalidate(self, stream: Any) -> bool:
        """End a capture as invalid, as a prohibited call of a library inside it does; return whether there was one."""
        held = self.objects[int(stream)]
        held.invalidated = held.capturing is not None
        return bool(held.invalidated)

    def find(self, address: int) -> Buffer:
        return self.memory[address]

    def read(self, address: int, size: int) -> bytes:
        """Return what a kernel reads."""
        held = self.memory[address]
        assert held.kind == "device", "a kernel reads memory of the host"
        assert held.written >= size, "a kernel reads memory that nothing was written to"
        return ctypes.string_at(address, size)

    def write(self, address: int, data: bytes) -> None:
        """Write what a kernel computes."""
        held = self.memory[address]
        assert held.kind == "device"
        assert len(held.bytes) >= len(data), "a kernel writes past the end of its memory"
        ctypes.memmove(address, data, len(data))
        held.written = max(held.written, len(data))

    def _new(self, handle: Callable[[int], Any]) -> Any:
        self._numbers += 1
        self.objects[self._numbers] = handle(self._numbers)
        return self.objects[self._numbers]

    def _allocate(self, kind: str, size: int) -> tuple[int, Any]:
        used = sum(len(held.bytes) for held in self.memory.values() if held.kind == kind)
        if kind == "device" and used + size > self.device_bytes:
            return OUT_OF_MEMORY, None
        buffer = Buffer(kind, size)
        address = ctypes.addressof(buffer.bytes)
        self.memory[address] = buffer
        return 0, address

    def _drain(self, stream: Stream, until: Event | None = None) -> None:
        while stream.queue:
            cost, work = stream.queue.pop(0)
            self.clock += cost
            if cost and self.fault_at_drain:
                self.sticky, self.fault_at_drain = self.fault_at_drain, 0
                raise BrokenDown
            work()
            if until is not None and until.time is not None:
                return

    def cudaGetErrorName(self, error: int) -> tuple[int, bytes]:
        return 0, NAMES[int(error)].encode()

    def cudaGetLastError(self) -> tuple[int]:
        error, self.last_error = self.last_error, 0
        return (error,)

    def cudaGetDeviceCount(self) -> tuple[int, int]:
        return 0, self.devices

    def cudaSetDevice(self, number: int) -> tuple[int]:
        if not 0 <= number < self.devices:
            return (INVALID_DEVICE,)
        self.current_device[threading.get_ident()] = number
        return (0,)

    def cudaGetDevice(self) -> tuple[int, int]:
        return 0, self.current_device.get(threading.get_ident(), 0)

    def cudaMemGetInfo(self) -> tuple[int, int, int]:
        used = sum(len(held.bytes) for held in self.memory.values() if held.kind == "device")
        return 0, self.device_bytes - used, self.device_bytes

    def cudaMalloc(self, size: int) -> tuple[int, Any]:
        return self._allocate("device", size)

    def cudaMallocHost(self, size: int) -> tuple[int, Any]:
        return self._allocate("pinned", size)

    def cudaFree(self, address: int) -> tuple[int]:
        if address == 0:
            return (0,)
        if address not in self.memory or self.memory[address].kind != "device":
            return (INVALID_VALUE,)
        self._wait_for_all()
        del self.memory[address]
        return (0,)

    def cudaFreeHost(self, address: int) -> tuple[int]:
        if address not in self.memory or self.memory[address].kind != "pinned":
            return (INVALID_VALUE,)
        self._wait_for_all()
        del self.memory[address]
        return (0,)

    def _wait_for_all(self) -> None:
        for held in list(self.objects.values()):
            if isinstance(held, Stream):
                self._drain(held)

    def cudaDeviceSynchronize(self) -> tuple[int]:
        self._wait_for_all()
        return (0,)

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: int, stream: Any) -> tuple[int]:
        ends = ("device", "pinned") if kind == cudaMemcpyKind.cudaMemcpyHostToDevice else ("pinned", "device")
        for address, expected in zip((to, source), ends, strict=True):
            held = self.memory.get(address)
            if held is None or held.kind != expected or len(held.bytes) < size:
                return (INVALID_VALUE,)

        def copy() -> None:
            ctypes.memmove(to, source, size)
            self.memory[to].written = max(self.memory[to].written, size)

        return (self.enqueue(stream, COPY_MS, copy),)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[int, Any]:
        assert flags == 1
        return 0, self._new(Stream)

    def cudaStreamDestroy(self, stream: Any) -> tuple[int]:
        return self._destroy(stream, Stream)

    def cudaStreamSynchronize(self, stream: Stream) -> tuple[int]:
        self._drain(stream)
        return (0,)

    def cudaStreamBeginCapture(self, stream: Stream, mode: int) -> tuple[int]:
        if stream.capturing is not None:
            return (INVALID_VALUE,)
        stream.capturing, stream.invalidated = [], False
        return (0,)

    def cudaStreamEndCapture(self, stream: Stream) -> tuple[int, Any]:
        work, stream.capturing = stream.capturing, None
        if work is None:
            return INVALID_VALUE, None
        if stream.invalidated:
            stream.invalidated = False
            return CAPTURE_INVALIDATED, None
        graph = self._new(Handle)
        graph.work = [] if self.records_nothing else work
        return 0, graph

    def cudaGraphGetNodes(self, graph: Any, numNodes: int = 0) -> tuple[int, list[Any], int]:
        return 0, [], len(graph.work)

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> tuple[int, Any]:
        executable = self._new(Handle)
        executable.work = graph.work
        return 0, executable

    def cudaGraphLaunch(self, executable: Any, stream: Any) -> tuple[int]:
        for cost, work in executable.work:
            self.enqueue(stream, cost, work)
        return (0,)

    def cudaGraphDestroy(self, graph: Any) -> tuple[int]:
        return self._destroy(graph, Handle)

    def cudaGraphExecDestroy(self, executable: Any) -> tuple[int]:
        return self._destroy(executable, Handle)

    def cudaEventCreate(self) -> tuple[int, Any]:
        return 0, self._new(Event)

    def cudaEventDestroy(self, event: Any) -> tuple[int]:
        return self._destroy(event, Event)

    def _destroy(self, handle: Any, kind: type) -> tuple[int]:
        if not isinstance(self.objects.get(int(handle)), kind):
            return (INVALID_HANDLE,)
        del self.objects[int(handle)]
        return (0,)

    def cudaEventRecord(self, event: Event, stream: Any) -> tuple[int]:
        event.time, event.stream = None, stream
        return (self.enqueue(stream, 0.0, lambda: setattr(event, "time", self.clock)),)

    def cudaEventSynchronize(self, event: Any) -> tuple[int]:
        if event.stream is not None:
            self._drain(event.stream, until=event)
        return (0,)

    def cudaEventElapsedTime(self, start: Event, end: Event) -> tuple[int, Any]:
        if start.time is None or end.time is None:
            return NOT_READY, None
        return 0, end.time - start.time
