"""Running a TensorRT engine: tensors by name, memory from cuda-python; no NumPy array enters TensorRT itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.backends.cuda import Cuda, DeviceBuffer, Event, Graph, PinnedBuffer, Stream
from vitdeploy.backends.session import Arrays, CheckedSession
from vitdeploy.backends.tensorrt_builder import batch_text
from vitdeploy.backends.tensorrt_monitor import listening_logger
from vitdeploy.errors import BackendError
from vitdeploy.sessions import Feed, SessionOptions, TensorSpec

NUMPY_TYPES: dict[str, Any] = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "INT8": np.int8,
    "UINT8": np.uint8,
    "INT32": np.int32,
    "INT64": np.int64,
    "BOOL": np.bool_,
}
Shapes = dict[str, tuple[int, ...]]
MakeContext = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class EngineRequest:
    """What to run.

    backend: Named in messages.
    trt: The library's module.
    path: Of the engine, for messages.
    make_context: (trt, engine) → execution context, where the libraries differ.
    """

    backend: str
    trt: Any
    path: Path
    make_context: MakeContext


@dataclass
class _Place:
    """Where one tensor lies."""

    spec: TensorSpec
    device: DeviceBuffer | None = None
    host: PinnedBuffer | None = None

    def reserve(self, cuda: Cuda, size_bytes: int) -> None:
        """Make both buffers large enough; they only grow."""
        if self.device is None or self.host is None or self.device.size_bytes < size_bytes:
            self.close()
            self.device = DeviceBuffer(cuda, size_bytes)
            self.host = PinnedBuffer(cuda, size_bytes)

    def close(self) -> None:
        for buffer in (self.device, self.host):
            if buffer is not None:
                buffer.close()
        self.device = self.host = None


class EngineSession(CheckedSession):
    """One execution context with one profile, its buffers and its stream.

    A run copies the inputs into pinned memory, queues copy, engine and copy on the stream, waits, and hands out copies.
    With ``options.cuda_graph`` the engine's launch is captured once per input shape and replayed.

    Raises:
        BackendError: The plan cannot be deserialized, or memory is short.
    """

    def __init__(self, request: EngineRequest, plan: bytes, options: SessionOptions) -> None:
        trt = request.trt
        logger, messages = listening_logger(trt)
        messages.clear()
        self._messages = messages
        self._request = request
        self._graph: Graph | None = None
        self._shapes: Shapes = {}
        self._runtime = trt.Runtime(logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            reason = messages.first_error() or "it gave no reason"
            raise BackendError(
                f"{request.backend} cannot load {str(request.path)!r}: {reason}: "
                f"build it again here with 'vitdeploy build'"
            )
        self._context = request.make_context(trt, self._engine)
        if self._context is None:
            raise BackendError(
                f"{request.backend} has no memory to run {str(request.path)!r}: {messages.first_error()}"
            )
        inputs, outputs, self._profiles = describe_tensors(trt, self._engine)
        super().__init__(request.backend, request.backend, inputs, outputs)
        self._places = {spec.name: _Place(spec) for spec in (*inputs, *outputs)}
        self._use_graph = options.cuda_graph
        self._cuda = Cuda()
        self._stream = Stream(self._cuda)

    @property
    def batch(self) -> tuple[int, int, int]:
        """(min, opt, max) batch of the profile."""
        return next(iter(self._profiles.values()))

    def inspector_json(self) -> str:
        """Return what the engine's inspector tells, with the shapes of the profile's preferred batch set.

        Without shapes the inspector answers "N/A due to dynamic shapes" in place of the types.
        """
        feed = {
            name: np.zeros(tuple(self.batch[1] if size is None else size for size in spec.shape), spec.dtype)
            for name, spec in self.inputs.items()
        }
        self._bind(feed)
        inspector = self._engine.create_engine_inspector()
        inspector.execution_context = self._context
        return str(inspector.get_engine_information(self._request.trt.LayerInformationFormat.JSON))

    def _checked(self, feed: Feed) -> Arrays:
        for name, (least, best, most) in self._profiles.items():
            batch = np.shape(feed[name])[0] if name in feed and np.ndim(feed[name]) else least
            if not least <= batch <= most:
                wider = batch_text((min(least, batch), best, max(most, batch)))
                raise BackendError(
                    f"{str(self._request.path)!r} was built for batch {batch_text((least, best, most))}, "
                    f"got {batch!r}: build it again with --batch {wider}"
                )
        return super()._checked(feed)

    def _run(self, arrays: Arrays) -> Arrays:
        self._bind(arrays)
        self._copy_in(arrays)
        self._launch()
        views: Arrays = {}
        for name, spec in self.outputs.items():
            place, shape = self._places[name], self._shapes[name]
            assert place.device is not None
            assert place.host is not None
            self._stream.copy_out(place.host, place.device, size_of(shape, spec))
            views[name] = place.host.array(shape, spec.dtype)
        self._stream.synchronize()
        return {name: view.copy() for name, view in views.items()}

    def _time_on_device(self, arrays: Arrays, warmup: int, iterations: int) -> NDArray[np.float64]:
        """Time the engine alone, from an event before it to one after it on the same stream."""
        self._bind(arrays)
        self._copy_in(arrays)
        for _ in range(warmup):
            self._launch()
        self._stream.synchronize()
        start, end = Event(self._cuda), Event(self._cuda)
        elapsed = np.empty(iterations, np.float64)
        try:
            for index in range(iterations):
                self._stream.record(start)
                self._launch()
                self._stream.record(end)
                end.wait()
                elapsed[index] = start.elapsed_ms(end)
        finally:
            start.close()
            end.close()
        return elapsed

    def _bind(self, arrays: Arrays) -> None:
        """Tell the context shapes and addresses; nothing to do while the shapes stay."""
        shapes: Shapes = {name: tuple(map(int, array.shape)) for name, array in arrays.items()}
        if all(self._shapes.get(name) == shape for name, shape in shapes.items()):
            return
        self._shapes = {}
        self._drop_graph()
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, shape):
                raise BackendError(
                    f"{self.backend} refuses shape {shape!r} for {name!r}: {self._messages.first_error()}"
                )
        for name in self.outputs:
            shapes[name] = tuple(map(int, self._context.get_tensor_shape(name)))
            if any(size < 0 for size in shapes[name]):
                raise BackendError(
                    f"the shape {shapes[name]!r} of output {name!r} depends on the data: export it fixed"
                )
        for name, place in self._places.items():
            place.reserve(self._cuda, size_of(shapes[name], place.spec))
            assert place.device is not None
            if not self._context.set_tensor_address(name, place.device.address):
                raise BackendError(f"{self.backend} refuses the memory of {name!r}: {self._messages.first_error()}")
        self._shapes = shapes
        if self._use_graph:
            self._capture()

    def _copy_in(self, arrays: Arrays) -> None:
        for name, array in arrays.items():
            place = self._places[name]
            assert place.device is not None
            assert place.host is not None
            np.copyto(place.host.array(array.shape, array.dtype), array)
            self._stream.copy_in(place.device, place.host, array.nbytes)

    def _launch(self) -> None:
        if self._graph is not None:
            self._stream.launch(self._graph)
        else:
            self._execute()

    def _execute(self) -> None:
        if not self._context.execute_async_v3(self._stream.handle):
            raise BackendError(
                f"{self.backend} failed to run {str(self._request.path)!r}: {self._messages.first_error()}"
            )

    def _capture(self) -> None:
        """Record the engine's launch; TensorRT asks for one ordinary run after a change of shape before that."""
        self._execute()
        self._stream.synchronize()
        self._stream.begin_capture()
        try:
            self._execute()
        finally:
            graph = self._stream.end_capture()
        self._graph = graph

    def _drop_graph(self) -> None:
        if self._graph is not None:
            self._graph.close()
            self._graph = None

    def _release(self) -> None:
        """Free in the order that TensorRT asks for: context, engine, runtime."""
        self._drop_graph()
        for place in self._places.values():
            place.close()
        self._stream.close()
        self._context = None
        self._engine = None
        self._runtime = None


def describe_tensors(
    trt: Any, engine: Any
) -> tuple[list[TensorSpec], list[TensorSpec], dict[str, tuple[int, int, int]]]:
    """Return inputs, outputs, and the batch range of each input; a range of one number makes the dimension fixed."""
    inputs: list[TensorSpec] = []
    outputs: list[TensorSpec] = []
    profiles: dict[str, tuple[int, int, int]] = {}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        kind = engine.get_tensor_dtype(name).name
        if kind not in NUMPY_TYPES:
            raise BackendError(f"tensor {name!r} has type {kind!r}, which NumPy cannot hold")
        shape = tuple(map(int, engine.get_tensor_shape(name)))
        if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
            least = best = most = shape[0]
            if least < 0:
                low, middle, high = engine.get_tensor_profile_shape(name, 0)
                least, best, most = int(low[0]), int(middle[0]), int(high[0])
            profiles[name] = (least, best, most)
            if least == most:
                shape = (least, *shape[1:])
            inputs.append(TensorSpec(name, np.dtype(NUMPY_TYPES[kind]), _open(shape)))
        else:
            outputs.append(TensorSpec(name, np.dtype(NUMPY_TYPES[kind]), _open(shape)))
    return inputs, outputs, profiles


def size_of(shape: tuple[int, ...], spec: TensorSpec) -> int:
    """Return the bytes of a tensor."""
    return int(np.prod(shape, dtype=np.int64)) * spec.dtype.itemsize


def _open(shape: tuple[int, ...]) -> tuple[int | None, ...]:
    return tuple(None if size < 0 else size for size in shape)
