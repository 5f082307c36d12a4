"""Run a graph over calibration images and observe the tensors that will be quantized."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy.errors import CalibrationError, GraphError
from vitdeploy.graph.linear_groups import shapes_at_batch_one
from vitdeploy.progress import SILENT, Progress
from vitdeploy.quantization.observers import TensorObserver
from vitdeploy.sessions import Opener

Observers = dict[str, TensorObserver]
MEMORY_BUDGET_BYTES = 256 << 20
LARGEST_BATCH = 32


class Collector:
    """An opened copy of a graph whose outputs are the tensors to observe; a context manager.

    Images stream through batch by batch. What is kept does not grow with their number (``TensorObserver``); what is
    held at once are the observed tensors of one batch, for which ``batch_for`` chooses a size.
    """

    def __init__(self, model: ir.Model, tensors: Sequence[str], open_graph: Opener) -> None:
        self.tensors = tuple(dict.fromkeys(tensors))
        self._session = open_graph(with_outputs(model, self.tensors))
        (self._input,) = self._session.inputs.values()

    def __enter__(self) -> Collector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session.close()

    def observe(
        self, batches: Iterable[NDArray[np.float32]], *, total: int | None = None, progress: Progress = SILENT
    ) -> Observers:
        """Return an observer per tensor that has seen each image of ``batches`` ([b, C, H, W]) exactly once.

        Where the graph has a fixed batch, a smaller last batch is filled up with its last image and the filling is cut
        off again from every observed tensor, whose first axis must then run over the images.

        Raises:
            CalibrationError: There is no image, or a tensor has NaN or infinite values.
        """
        observers = {name: TensorObserver(name) for name in self.tensors}
        seen = 0
        with progress.task("calibrating", total=total) as task:
            for images in batches:
                for part in self._parts(images):
                    self._observe(part, observers)
                seen += len(images)
                task.advance(len(images))
        if not seen:
            raise CalibrationError("the calibration set has no images, expected at least one: --calibration DATA")
        return observers

    def _parts(self, images: NDArray[np.float32]) -> Iterable[NDArray[np.float32]]:
        size = self._input.shape[0] or len(images)
        return (images[start : start + size] for start in range(0, len(images), size))

    def _observe(self, images: NDArray[np.float32], observers: Observers) -> None:
        fixed, count = self._input.shape[0], len(images)
        if fixed is not None and count < fixed:
            images = np.concatenate([images, np.repeat(images[-1:], fixed - count, axis=0)])
        feed = np.ascontiguousarray(images, self._input.dtype)
        for name, array in self._session.run({self._input.name: feed}).items():
            if fixed is not None and count < fixed:
                if not array.ndim or len(array) % fixed:
                    raise GraphError(
                        f"tensor {name!r} of shape {array.shape} does not run over the images, so {count} do not "
                        f"fit a graph with the fixed batch {fixed}: export it with a dynamic batch"
                    )
                array = array[: len(array) // fixed * count]
            observers[name].update(array)


def with_outputs(model: ir.Model, tensors: Sequence[str]) -> ir.Model:
    """Return a copy of the graph whose outputs are ``tensors``; weights are shared with the original.

    Raises:
        GraphError: The graph has no tensor of that name.
    """
    copy = model.clone()
    values = {str(value.name): value for node in copy.graph for value in node.outputs}
    values.update((str(value.name), value) for value in copy.graph.inputs)
    missing = [name for name in tensors if name not in values]
    if missing:
        raise GraphError(f"the graph has no tensor {missing[0]!r} to calibrate")
    copy.graph.outputs[:] = []
    for name in tensors:
        value = values[name]
        if value.type is None:
            value.type = ir.TensorType(ir.DataType.FLOAT)
        copy.graph.outputs.append(value)
    return copy


def batch_for(model: ir.Model, tensors: Sequence[str]) -> int:
    """Return how many images to run at once so that the observed tensors take about 256 MB, 1 to 32."""
    shapes = shapes_at_batch_one(model)
    elements = sum(math.prod(size or 1 for size in shapes.get(name, ())) for name in set(tensors))
    return max(1, min(LARGEST_BATCH, MEMORY_BUDGET_BYTES // max(4 * elements, 1)))


def merged(first: Mapping[str, TensorObserver], second: Mapping[str, TensorObserver]) -> Observers:
    """Return the observers of both parts of a stream."""
    result: Observers = {}
    for name in first:
        result[name] = TensorObserver(name)
        result[name].merge(first[name])
        if name in second:
            result[name].merge(second[name])
    return result
