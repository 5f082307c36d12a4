"""Running a TensorRT engine: tensors by name, memory from cuda-python; no NumPy array enters TensorRT itself."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.backends.cuda import Cuda, DeviceBuffer, Event, Graph, PinnedBuffer, Stream, open_cuda, release
from vitdeploy.backends.session import Arrays, CheckedSession
from vitdeploy.backends.tensorrt_monitor import Messages, listening_logger, started
from vitdeploy.backends.tensorrt_options import batch_text
from vitdeploy.errors import BackendError, UsageError
from vitdeploy.sessions import BatchRange, Feed, LaunchMode, LayerTimes, Scope, SessionOptions, TensorSpec

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
Ranges = dict[str, BatchRange]
MakeContext = Callable[[Any, Any], Any]
Deserialize = Callable[[Any, bytes], Any]
MOST_LANES = 8


@dataclass(frozen=True)
class EngineRequest:
    """What to run.

    backend: Named in messages.
    trt: The library's module.
    path: Of the engine, for messages.
    deserialize: (runtime, plan) → engine, None where it is refused; where the libraries and plans differ.
    make_context: (trt, engine) → execution context, None where memory is short.
    captures: Whether launches are recorded here; TensorRT-RTX records them itself, as its context was told.
    keep: Called when the session closes, for what the library wants to keep.
    """

    backend: str
    trt: Any
    path: Path
    deserialize: Deserialize
    make_context: MakeContext
    captures: bool = True
    keep: Callable[[], None] = lambda: None


class EngineSession(CheckedSession):
    """An engine with one lane per batch size: an execution context, its buffers, its stream and its CUDA graph.

    A recorded graph stays valid only while nothing about its context changes, so each batch size has a context of its
    own (the eight that were used last). A run copies the inputs into pinned memory, queues copy, launch and copy on
    the lane's stream, waits, and hands out copies. ``examination`` is what was found where this was the first open of
    an engine that could not be checked when it was built.

    Raises:
        BackendError: The plan cannot be deserialized, or memory is short.
    """

    def __init__(self, request: EngineRequest, plan: bytes, options: SessionOptions) -> None:
        trt = request.trt
        logger, messages = listening_logger(trt)
        mark = messages.mark()
        self._messages = messages
        self._request = request
        self._lanes: OrderedDict[tuple[Any, ...], Lane] = OrderedDict()
        self._cuda = open_cuda()
        self._cuda.start()
        self._runtime = started(trt.Runtime, logger, messages, f"the runtime of {request.backend}")
        self._engine = request.deserialize(self._runtime, plan)
        if self._engine is None:
            reason = messages.first_error(mark) or "it gave no reason"
            raise BackendError(
                f"{request.backend} cannot load {str(request.path)!r}: {reason}: build it again here with vd.build()"
            )
        inputs, outputs, self._profiles = describe_tensors(trt, self._engine)
        super().__init__(request.backend, request.backend, inputs, outputs)
        self._graphs = options.cuda_graph
        self._notes: dict[str, None] = dict.fromkeys(messages.warnings(mark))
        try:
            self._lane({name: spec_shape(spec, self.profiles[0][1]) for name, spec in self.inputs.items()})
        except BackendError:
            self.close()
            raise

    @property
    def profiles(self) -> tuple[BatchRange, ...]:
        """(min, opt, max) batch of every profile."""
        return tuple(next(iter(ranges.values())) for ranges in self._profiles)

    @property
    def notes(self) -> tuple[str, ...]:
        """What TensorRT warned of, and what was fallen back to."""
        return tuple(self._notes)

    @property
    def lost(self) -> bool:
        """Return whether the GPU stopped working in this process."""
        return self._cuda.lost is not None

    def launch_mode(self, batch: int) -> LaunchMode | None:
        """Return how a batch of this size is launched: ``cuda-graph`` or ``stream``; None where it was not yet."""
        lanes = [lane for lane in self._lanes.values() if lane.batch == batch and lane.launches]
        if not lanes:
            return None
        return "cuda-graph" if lanes[0].recorded or (self._graphs and not self._request.captures) else "stream"

    def enqueue_ms(self, batch: int) -> float | None:
        """Return the median of the host's time per launch at a batch size, over everything that was timed so far."""
        times = [lane.enqueued for lane in self._lanes.values() if lane.batch == batch and lane.enqueued]
        return float(np.median(np.concatenate([np.asarray(one) for one in times]))) / 1e6 if times else None

    def inspector_json(self) -> str:
        """Return what the engine's inspector tells, with the shapes of the first profile's preferred batch set.

        Without shapes the inspector answers "N/A due to dynamic shapes" in place of the types.

        Raises:
            BackendError: This runtime has no inspector.
        """
        if not hasattr(self._request.trt, "EngineInspector"):
            raise BackendError(f"{self.backend} has no inspector: it only runs engines")
        lane = self._lane({name: spec_shape(spec, self.profiles[0][1]) for name, spec in self.inputs.items()})
        inspector = self._engine.create_engine_inspector()
        inspector.execution_context = lane.context
        return str(inspector.get_engine_information(self._request.trt.LayerInformationFormat.JSON))

    def layer_times(self, feed: Feed, *, warmup: int, iterations: int) -> LayerTimes:
        """Return what the library's profiler reports of launches on a context of their own, kernel by kernel.

        Raises:
            BackendError: As for ``run``; it reports nothing, as where the library launches CUDA graphs by itself.
        """
        from vitdeploy.backends.tensorrt_profile import profile

        arrays = self._checked(feed)
        lane = Lane(self, {name: tuple(map(int, array.shape)) for name, array in arrays.items()}, records=False)
        try:
            return profile(self._request.trt, lane, arrays, self.inspector_json, warmup=warmup, iterations=iterations)
        finally:
            release(lane.close)

    def throughput(self, feed: Feed, *, streams: int, seconds: float, scope: Scope = "device") -> float:
        """Return images per second with several contexts at work at once, each on a stream of its own.

        Each is given its next batch as soon as it has finished one; with scope ``end_to_end`` the copies are queued
        too.

        Raises:
            UsageError: ``streams`` or ``seconds`` makes no sense.
            BackendError: As for ``run``; memory for so many contexts is short.
        """
        if streams < 1 or seconds <= 0:
            raise UsageError(f"streams={streams!r} and seconds={seconds!r}: expected at least one, and more than none")
        arrays = self._checked(feed)
        shapes: Shapes = {name: tuple(map(int, array.shape)) for name, array in arrays.items()}
        lanes = [Lane(self, shapes) for _ in range(streams)]
        try:
            return self._all_at_work(lanes, arrays, seconds, copies=scope == "end_to_end")
        finally:
            release(*(lane.close for lane in lanes))

    def _all_at_work(self, lanes: Sequence[Lane], arrays: Arrays, seconds: float, *, copies: bool) -> float:
        for lane in lanes:
            lane.load(arrays)
            for _ in range(lane.launches_until_settled):
                lane.launch()
            lane.stream.synchronize()
        done, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            for lane in lanes:
                lane.stream.synchronize()
                if copies:
                    lane.load(arrays)
                lane.launch()
                if copies:
                    lane.queue_outputs()
                done += lane.batch
        for lane in lanes:
            lane.stream.synchronize()
        return done / (time.perf_counter() - start)

    def _checked(self, feed: Feed) -> Arrays:
        for name, (least, _, _) in self._profiles[0].items():
            batch = np.shape(feed[name])[0] if name in feed and np.ndim(feed[name]) else least
            if not any(low <= batch <= high for low, _, high in self.profiles):
                raise BackendError(
                    f"{str(self._request.path)!r} was built for batch {' and '.join(map(batch_text, self.profiles))}, "
                    f"got {batch!r}: build it again with {self._wider(int(batch))}"
                )
        return super()._checked(feed)

    def _wider(self, batch: int) -> str:
        profiles: object = (*self.profiles, (batch, batch, batch))
        if len(self.profiles) == 1:
            ((least, best, most),) = self.profiles
            profiles = (min(least, batch), best, max(most, batch))
        return f"vd.build(..., target=vd.BuildTarget(batch={profiles!r}))"

    def _run(self, arrays: Arrays) -> Arrays:
        lane = self._lane({name: tuple(map(int, array.shape)) for name, array in arrays.items()})
        lane.load(arrays)
        lane.launch()
        views = lane.queue_outputs()
        lane.stream.synchronize()
        return {name: view.copy() for name, view in views.items()}

    def _time_on_device(self, arrays: Arrays, warmup: int, iterations: int) -> NDArray[np.float64]:
        """Time the engine alone, from an event before it to one after it on the same stream."""
        lane = self._lane({name: tuple(map(int, array.shape)) for name, array in arrays.items()})
        lane.load(arrays)
        for _ in range(max(warmup, lane.launches_until_settled)):
            lane.launch()
        lane.stream.synchronize()
        start, end = Event(self._cuda), Event(self._cuda)
        elapsed = np.empty(iterations, np.float64)
        try:
            for index in range(iterations):
                lane.stream.record(start)
                before = time.perf_counter_ns()
                lane.launch()
                lane.enqueued.append(time.perf_counter_ns() - before)
                lane.stream.record(end)
                end.wait()
                elapsed[index] = start.elapsed_ms(end)
        finally:
            release(start.close, end.close)
        return elapsed

    def _lane(self, shapes: Shapes) -> Lane:
        """Return the lane of these shapes; where memory is short, the others give way to it."""
        key = tuple(shapes.items())
        if key in self._lanes:
            self._lanes.move_to_end(key)
            return self._lanes[key]
        while len(self._lanes) >= MOST_LANES:
            release(self._lanes.popitem(last=False)[1].close)
        try:
            lane = Lane(self, shapes)
        except BackendError:
            if not self._lanes or self._cuda.lost is not None:
                raise
            self._drop_lanes()
            lane = Lane(self, shapes)
        self._lanes[key] = lane
        return lane

    def _drop_lanes(self) -> None:
        lanes, self._lanes = list(self._lanes.values()), OrderedDict()
        release(*(lane.close for lane in lanes))

    def _release(self) -> None:
        """Free in the order that TensorRT asks for: contexts, engine, runtime."""
        self._drop_lanes()
        if self._cuda.lost is None:
            self._request.keep()
        self._engine = None
        self._runtime = None


class Lane:
    """One execution context at one set of shapes, with what it runs on.

    The first launch after a change of shape sets up the rest, so it is an ordinary one on the inputs at hand; before
    the second the launch is recorded. What cannot be recorded goes on being launched kernel by kernel, with a note.
    """

    def __init__(self, session: EngineSession, shapes: Shapes, *, records: bool = True) -> None:
        self._session = session
        self._cuda: Cuda = session._cuda
        self._messages: Messages = session._messages
        self.batch = next(iter(shapes.values()))[0] if shapes else 1
        self.launches = 0
        self.enqueued: list[int] = []
        self._graph: Graph | None = None
        self._records = records and session._graphs and session._request.captures
        self._device: dict[str, DeviceBuffer] = {}
        self._host: dict[str, PinnedBuffer] = {}
        self.stream = Stream(self._cuda)
        try:
            self.context = self._make_context()
            self.shapes = self._set_shapes(shapes)
            self._reserve()
        except BackendError:
            self.close()
            raise

    @property
    def launches_until_settled(self) -> int:
        """How many launches go before those that are like all later ones: the first sets up, the second is recorded."""
        return max(0, 2 - self.launches)

    @property
    def recorded(self) -> bool:
        """Return whether launches replay a graph."""
        return self._graph is not None

    def load(self, arrays: Arrays) -> None:
        """Copy the inputs to the device, through pinned memory."""
        for name, array in arrays.items():
            np.copyto(self._host[name].array(array.shape, array.dtype), array)
            self.stream.copy_in(self._device[name], self._host[name], array.nbytes)

    def launch(self) -> None:
        """Queue one run of the engine."""
        if self._graph is None and self.launches == 1 and self._records:
            self._record()
        if self._graph is not None:
            self.stream.launch(self._graph)
        else:
            self._execute()
        self.launches += 1

    def queue_outputs(self) -> Arrays:
        """Queue the copies of the outputs; return views of them that are valid once the stream has been waited for."""
        views: Arrays = {}
        for name, spec in self._session.outputs.items():
            shape = self.shapes[name]
            self.stream.copy_out(self._host[name], self._device[name], size_of(shape, spec))
            views[name] = self._host[name].array(shape, spec.dtype)
        return views

    def close(self) -> None:
        """Give back graph, context, memory and stream."""
        graph, self._graph = self._graph, None
        self.context = None
        buffers = [one.close for one in self._device.values()] + [one.close for one in self._host.values()]
        self._device, self._host = {}, {}
        release(*([graph.close] if graph is not None else []), *buffers, self.stream.close)

    def _make_context(self) -> Any:
        request, mark = self._session._request, self._messages.mark()
        context = request.make_context(request.trt, self._session._engine)
        if context is None:
            reason = self._messages.first_error(mark) or "it gave no reason"
            raise BackendError(f"{request.backend} has no memory to run {str(request.path)!r}: {reason}")
        # an engine with detailed profiling names every kernel for a profiler at each launch, which costs latency
        context.nvtx_verbosity = request.trt.ProfilingVerbosity.NONE
        return context

    def _set_shapes(self, shapes: Shapes) -> Shapes:
        backend, mark = self._session.backend, self._messages.mark()
        index = choose_profile(self._session.profiles, self.batch)
        if index != int(self.context.active_optimization_profile):
            if not self.context.set_optimization_profile_async(index, self.stream.handle):
                raise BackendError(f"{backend} refuses profile {index}: {self._messages.first_error(mark)}")
            self.stream.synchronize()
        for name, shape in shapes.items():
            if not self.context.set_input_shape(name, shape):
                raise BackendError(
                    f"{backend} refuses shape {shape!r} for {name!r}: {self._messages.first_error(mark)}"
                )
        found = dict(shapes)
        for name in self._session.outputs:
            found[name] = tuple(map(int, self.context.get_tensor_shape(name)))
            if any(size < 0 for size in found[name]):
                raise BackendError(f"the shape {found[name]!r} of output {name!r} depends on the data: export it fixed")
        return found

    def _reserve(self) -> None:
        mark = self._messages.mark()
        for name, spec in (*self._session.inputs.items(), *self._session.outputs.items()):
            size = size_of(self.shapes[name], spec)
            self._device[name] = DeviceBuffer(self._cuda, size)
            self._host[name] = PinnedBuffer(self._cuda, size)
            if not self.context.set_tensor_address(name, self._device[name].address):
                reason = self._messages.first_error(mark)
                raise BackendError(f"{self._session.backend} refuses the memory of {name!r}: {reason}")

    def _execute(self) -> None:
        mark = self._messages.mark()
        if not self.context.execute_async_v3(self.stream.handle):
            self._cuda.look()  # an earlier kernel may have broken the device: then that is the cause
            reason = self._messages.first_error(mark) or "it gave no reason"
            raise BackendError(f"{self._session.backend} failed to run {str(self._session._request.path)!r}: {reason}")

    def _record(self) -> None:
        """Record the launch as a graph; where that fails, drop what was recorded and say so once."""
        self._records = False
        self.stream.synchronize()
        mark = self._messages.mark()
        self.stream.begin_capture()
        failure = ""
        try:
            if not self.context.execute_async_v3(self.stream.handle):
                failure = self._messages.first_error(mark) or "the launch was refused"
        finally:
            try:
                graph = self.stream.end_capture()
            except BackendError as error:
                if self._cuda.lost is not None:
                    raise
                failure = failure or str(error)
            else:
                if failure:
                    release(graph.close)
                else:
                    self._graph = graph
        if failure:
            self._session._notes[
                f"its launch could not be recorded as a CUDA graph ({failure}), so it is launched kernel by kernel"
            ] = None


def choose_profile(profiles: Sequence[BatchRange], batch: int) -> int:
    """Return the profile for a batch size: one tuned for it, else the narrowest that has it."""
    fitting = [index for index, (low, _, high) in enumerate(profiles) if low <= batch <= high]
    if not fitting:
        return 0
    return min(fitting, key=lambda index: (profiles[index][1] != batch, profiles[index][2] - profiles[index][0]))


def describe_tensors(trt: Any, engine: Any) -> tuple[list[TensorSpec], list[TensorSpec], list[Ranges]]:
    """Return inputs, outputs, and for each profile the batch range of each input.

    A dimension that has the same one size in every profile is fixed.
    """
    inputs: list[TensorSpec] = []
    outputs: list[TensorSpec] = []
    profiles: list[Ranges] = [{} for _ in range(max(1, int(engine.num_optimization_profiles)))]
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        kind = engine.get_tensor_dtype(name).name
        if kind not in NUMPY_TYPES:
            raise BackendError(f"tensor {name!r} has type {kind!r}, which NumPy cannot hold")
        shape = tuple(map(int, engine.get_tensor_shape(name)))
        if engine.get_tensor_mode(name) != trt.TensorIOMode.INPUT:
            outputs.append(TensorSpec(name, np.dtype(NUMPY_TYPES[kind]), _open(shape)))
            continue
        for number, ranges in enumerate(profiles):
            ranges[name] = (shape[0], shape[0], shape[0])
            if shape[0] < 0:
                low, middle, high = engine.get_tensor_profile_shape(name, number)
                ranges[name] = (int(low[0]), int(middle[0]), int(high[0]))
        sizes = {size for ranges in profiles for size in ranges[name]}
        if len(sizes) == 1:
            shape = (sizes.pop(), *shape[1:])
        inputs.append(TensorSpec(name, np.dtype(NUMPY_TYPES[kind]), _open(shape)))
    return inputs, outputs, profiles


def size_of(shape: tuple[int, ...], spec: TensorSpec) -> int:
    """Return the bytes of a tensor."""
    return int(np.prod(shape, dtype=np.int64)) * spec.dtype.itemsize


def spec_shape(spec: TensorSpec, batch: int) -> tuple[int, ...]:
    """Return a tensor's shape at a batch size."""
    return tuple(batch if size is None else size for size in spec.shape)


def _open(shape: tuple[int, ...]) -> tuple[int | None, ...]:
    return tuple(None if size < 0 else size for size in shape)
