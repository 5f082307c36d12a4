"""cuda-python's runtime module without a GPU: device memory is host memory, a stream is a queue.

What is queued runs only when something waits for it, as on a device; so a result that is read before it was waited for
is seen to be wrong. Copies and launches take fixed times on a clock of its own. Everything that is created is counted,
and what is not given back is listed in ``alive``.
"""

from __future__ import annotations

import ctypes
import enum
import types
from collections.abc import Callable
from typing import Any

COPY_MS = 5.0
LAUNCH_MS = 2.0
GARBAGE = 0xAB


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


class Event(Handle):
    time: float | None = None


class FakeRuntime(types.ModuleType):
    """The functions that sessions use; each returns (error, result…) as cuda-python does."""

    cudaMemcpyKind = cudaMemcpyKind
    cudaStreamCaptureMode = cudaStreamCaptureMode

    def __init__(self) -> None:
        super().__init__("cuda.bindings.runtime")
        self.memory: dict[int, tuple[str, Any]] = {}
        self.objects: dict[int, Any] = {}
        self.calls: list[str] = []
        self.clock = 0.0
        self.fail: dict[str, int] = {}
        self._numbers = 1000

    @property
    def alive(self) -> list[Any]:
        return [*self.memory, *self.objects.values()]

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("cuda") and not name.startswith(("cudaMemcpyKind", "cudaStreamCaptureMode")):
            self.calls.append(name)
            error = self.fail.get(name)
            if error is not None:
                return lambda *arguments: (error, None)
        return super().__getattribute__(name)

    def enqueue(self, stream: Any, cost_ms: float, work: Callable[[], None]) -> None:
        held = self.objects[int(stream)]
        (held.queue if held.capturing is None else held.capturing).append((cost_ms, work))

    def _new(self, handle: Callable[[int], Any]) -> Any:
        self._numbers += 1
        self.objects[self._numbers] = handle(self._numbers)
        return self.objects[self._numbers]

    def _allocate(self, kind: str, size: int) -> tuple[int, int]:
        buffer = (ctypes.c_ubyte * size)(*([GARBAGE] * size))
        address = ctypes.addressof(buffer)
        self.memory[address] = (kind, buffer)
        return 0, address

    def _drain(self, stream: Stream, until: Event | None = None) -> None:
        while stream.queue:
            cost, work = stream.queue.pop(0)
            self.clock += cost
            work()
            if until is not None and until.time is not None:
                return

    def cudaGetErrorName(self, error: int) -> tuple[int, bytes]:
        return 0, {2: b"cudaErrorMemoryAllocation", 700: b"cudaErrorIllegalAddress"}[int(error)]

    def cudaMalloc(self, size: int) -> tuple[int, int]:
        return self._allocate("device", size)

    def cudaMallocHost(self, size: int) -> tuple[int, int]:
        return self._allocate("pinned", size)

    def cudaFree(self, address: int) -> tuple[int]:
        assert self.memory.pop(address)[0] == "device"
        return (0,)

    def cudaFreeHost(self, address: int) -> tuple[int]:
        assert self.memory.pop(address)[0] == "pinned"
        return (0,)

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: int, stream: Any) -> tuple[int]:
        ends = ("device", "pinned") if kind == cudaMemcpyKind.cudaMemcpyHostToDevice else ("pinned", "device")
        for address, expected in zip((to, source), ends, strict=True):
            assert self.memory[address][0] == expected
            assert len(self.memory[address][1]) >= size
        self.enqueue(stream, COPY_MS, lambda: void(ctypes.memmove(to, source, size)))
        return (0,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[int, Any]:
        assert flags == 1
        return 0, self._new(Stream)

    def cudaStreamDestroy(self, stream: Any) -> tuple[int]:
        del self.objects[int(stream)]
        return (0,)

    def cudaStreamSynchronize(self, stream: Stream) -> tuple[int]:
        assert stream.capturing is None, "a stream that is being captured cannot be waited for"
        self._drain(stream)
        return (0,)

    def cudaStreamBeginCapture(self, stream: Stream, mode: int) -> tuple[int]:
        stream.capturing = []
        return (0,)

    def cudaStreamEndCapture(self, stream: Stream) -> tuple[int, Any]:
        graph = self._new(Handle)
        graph.work, stream.capturing = stream.capturing, None
        return 0, graph

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> tuple[int, Any]:
        executable = self._new(Handle)
        executable.work = graph.work
        return 0, executable

    def cudaGraphLaunch(self, executable: Any, stream: Any) -> tuple[int]:
        for cost, work in executable.work:
            self.enqueue(stream, cost, work)
        return (0,)

    def cudaGraphDestroy(self, graph: Any) -> tuple[int]:
        del self.objects[int(graph)]
        return (0,)

    def cudaGraphExecDestroy(self, executable: Any) -> tuple[int]:
        del self.objects[int(executable)]
        return (0,)

    def cudaEventCreate(self) -> tuple[int, Any]:
        return 0, self._new(Event)

    def cudaEventDestroy(self, event: Any) -> tuple[int]:
        del self.objects[int(event)]
        return (0,)

    def cudaEventRecord(self, event: Event, stream: Any) -> tuple[int]:
        event.time, event.stream = None, stream
        self.enqueue(stream, 0.0, lambda: setattr(event, "time", self.clock))
        return (0,)

    def cudaEventSynchronize(self, event: Any) -> tuple[int]:
        self._drain(event.stream, until=event)
        return (0,)

    def cudaEventElapsedTime(self, start: Event, end: Event) -> tuple[int, float]:
        assert start.time is not None
        assert end.time is not None
        return 0, end.time - start.time


def void(_: object) -> None:
    pass
