"""What every session shares: checked feeds, the wall-clock timing loop, closing."""

from __future__ import annotations

import gc
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from vitdeploy.errors import BackendError, UsageError
from vitdeploy.records import Examination
from vitdeploy.sessions import Feed, Kernel, LaunchMode, LayerTimes, Scope, TensorSpec

Arrays = dict[str, NDArray[Any]]
S = TypeVar("S", bound="CheckedSession")


class CheckedSession(ABC):
    """A session whose feeds are checked before a runtime sees them, so that every backend gives the same errors.

    A subclass implements ``_run`` (arrays that are contiguous and have the declared dtype → outputs that the caller
    owns), ``_release``, and ``_time_on_device`` where the device is not the CPU. ``provider`` names what executes.
    """

    def __init__(
        self, backend: str, provider: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> None:
        self.backend = backend
        self.provider = provider
        self.examination: Examination | None = None
        self._inputs = {spec.name: spec for spec in inputs}
        self._outputs = {spec.name: spec for spec in outputs}
        self._closed = False

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """Name → specification of each input."""
        return self._inputs

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        """Name → specification of each output."""
        return self._outputs

    def run(self, feed: Feed) -> Arrays:
        """Return the outputs as arrays that the caller owns.

        Raises:
            BackendError: The session is closed, an input is missing, unknown, or of another dtype or shape, or the
                runtime failed.
        """
        return self._run(self._checked(feed))

    def time(self, feed: Feed, *, warmup: int, iterations: int, scope: Scope = "end_to_end") -> NDArray[np.float64]:
        """Return [iterations] milliseconds per call, each synchronised with the device, after ``warmup`` calls.

        Raises:
            UsageError: ``warmup`` is negative or ``iterations`` is less than 1.
            BackendError: As for ``run``.
        """
        if warmup < 0 or iterations < 1:
            raise UsageError(f"warmup={warmup!r} and iterations={iterations!r}: expected at least 0 and at least 1")
        arrays = self._checked(feed)
        measure = self._time_on_device if scope == "device" else self._time_end_to_end
        return measure(arrays, warmup, iterations)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of this session's numbers has to know."""
        return ()

    def inspector_json(self) -> str | None:
        """Return the layers as TensorRT's inspector describes them; None for what is no engine."""
        return None

    def kernels(self) -> tuple[Kernel, ...] | None:
        """Return the nodes of the graph that the runtime executes; None where it does not tell.

        Raises:
            BackendError: The runtime failed to tell.
        """
        return None

    def layer_times(self, feed: Feed, *, warmup: int, iterations: int) -> LayerTimes | None:
        """Return how long each layer takes in calls of their own, by the runtime's profiler; None where it has none.

        Raises:
            BackendError: As for ``run``, or the profiler failed.
        """
        return None

    def throughput(self, feed: Feed, *, streams: int, seconds: float, scope: Scope = "device") -> float | None:
        """Return images per second with several contexts at work at once; None for a runtime without streams.

        Raises:
            BackendError: As for ``run``.
        """
        return None

    def enqueue_ms(self, batch: int) -> float | None:
        """Return the median of the host's time per launch at a batch size; None where nothing is launched on a GPU."""
        return None

    def launch_mode(self, batch: int) -> LaunchMode | None:
        """Return how a batch of this size is launched on a GPU; None where it is not."""
        return None

    def close(self) -> None:
        """Release what the runtime holds; a second call does nothing."""
        if not self._closed:
            self._closed = True
            self._release()

    def __enter__(self: S) -> S:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def _run(self, arrays: Arrays) -> Arrays: ...

    @abstractmethod
    def _release(self) -> None: ...

    def _time_end_to_end(self, arrays: Arrays, warmup: int, iterations: int) -> NDArray[np.float64]:
        return wall_clock_ms(lambda: self._run(arrays), warmup, iterations)

    def _time_on_device(self, arrays: Arrays, warmup: int, iterations: int) -> NDArray[np.float64]:
        """Time without copies to and from the device: on a CPU there are none."""
        return self._time_end_to_end(arrays, warmup, iterations)

    def _checked(self, feed: Feed) -> Arrays:
        if self._closed:
            raise BackendError(f"this {self.backend} session is closed: open the artifact again")
        return check_feed(feed, self._inputs, self.backend)


def check_feed(feed: Feed, inputs: Mapping[str, TensorSpec], backend: str) -> Arrays:
    """Return the feed as C-contiguous arrays in the order of ``inputs``.

    Raises:
        BackendError: A name is missing or unknown, or a dtype, rank or fixed dimension differs.
    """
    for name in feed:
        if name not in inputs:
            raise BackendError(f"{backend} has no input {name!r}, expected {', '.join(map(repr, inputs))}")
    arrays: Arrays = {}
    for name, spec in inputs.items():
        if name not in feed:
            raise BackendError(
                f"{backend} needs input {name!r}, the feed has {', '.join(map(repr, feed)) or 'nothing'}"
            )
        array = np.asarray(feed[name])
        if array.dtype != spec.dtype:
            raise BackendError(
                f"input {name!r} of {backend} has dtype {str(array.dtype)!r}, expected {str(spec.dtype)!r}"
            )
        fits = len(array.shape) == len(spec.shape) and all(
            expected is None or expected == size for expected, size in zip(spec.shape, array.shape, strict=True)
        )
        if not fits:
            raise BackendError(f"input {name!r} of {backend} has shape {array.shape!r}, expected {shape_text(spec)}")
        if array.size == 0:
            raise BackendError(f"input {name!r} of {backend} is empty: its shape is {array.shape!r}")
        arrays[name] = np.ascontiguousarray(array)
    return arrays


def shape_text(spec: TensorSpec) -> str:
    """Return ``[batch, 3, 224, 224]``."""
    return "[" + ", ".join("batch" if size is None else str(size) for size in spec.shape) + "]"


def wall_clock_ms(call: Callable[[], object], warmup: int, iterations: int) -> NDArray[np.float64]:
    """Return [iterations] wall-clock milliseconds of ``call``, with Python's cyclic garbage collection held back."""
    for _ in range(warmup):
        call()
    elapsed = np.empty(iterations, np.float64)
    collecting = gc.isenabled()
    gc.disable()
    try:
        for index in range(iterations):
            start = time.perf_counter_ns()
            call()
            elapsed[index] = time.perf_counter_ns() - start
    finally:
        if collecting:
            gc.enable()
    return elapsed / 1e6
