"""Run a graph over calibration images and observe the tensors that will be quantized."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from types import TracebackType

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy.artifacts.calibration_table import SAMPLED_ROWS
from vitdeploy.errors import CalibrationError, GraphError
from vitdeploy.graph.linear_groups import shapes_at_batch_one
from vitdeploy.progress import SILENT, Progress
from vitdeploy.quantization.observers import TensorObserver
from vitdeploy.sessions import Opener

Observers = dict[str, TensorObserver]
MEMORY_BUDGET_BYTES = 64 << 20
"""Of the observed tensors of one batch, of which two are held: one that is observed, and one that is computed."""
LARGEST_BATCH = 32

Outputs = dict[str, NDArray[np.float32]]


class Collector:
    """An opened copy of a graph whose outputs are the tensors to observe; a context manager.

    Images stream through batch by batch; while one is observed the next is computed. What is kept does not grow with
    their number (``TensorObserver``, with a sample of up to ``most_rows`` rows of an image); what is held at once are
    the observed tensors of two batches, for which ``batch_for`` chooses a size.
    """

    def __init__(
        self, model: ir.Model, tensors: Mapping[str, int | None], open_graph: Opener, most_rows: int = SAMPLED_ROWS
    ) -> None:
        self.tensors, self.most_rows = dict(tensors), most_rows
        self._session = open_graph(with_outputs(model, tuple(self.tensors)))
        (self._input,) = self._session.inputs.values()

    def __enter__(self) -> Collector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session.close()

    def observe(
        self,
        batches: Iterable[NDArray[np.float32]],
        *,
        start: Observers | None = None,
        name_of: Callable[[int], str] | None = None,
        after: Callable[[Observers, int], None] | None = None,
        total: int | None = None,
        progress: Progress = SILENT,
    ) -> Observers:
        """Return an observer per tensor that has seen each image of ``batches`` ([b, C, H, W]) exactly once.

        Where the graph has a fixed batch, a smaller last batch is filled up with its last image and the filling is cut
        off again from every observed tensor, whose first axis must then run over the images.

        Args:
            batches: The images.
            start: Observers to go on with, in place of empty ones.
            name_of: What a person calls the image of that number, for errors.
            after: Is handed the observers and the number of images seen, after each batch.
            total: How many images there are, for ``progress``.
            progress: One bar over the images.

        Raises:
            CalibrationError: There is no image, or a tensor has NaN or infinite values.
        """
        observers = (
            {name: TensorObserver(name, axis, self.most_rows) for name, axis in self.tensors.items()}
            if start is None
            else start
        )
        seen = 0
        with progress.task("calibrating", total=total) as task, closing(self._computed(batches)) as computed:
            for images, outputs, is_last in computed:
                self._observe(images, outputs, observers, seen, name_of)
                del outputs  # two batches of them are held, not three
                seen += len(images)
                task.advance(len(images))
                if after is not None and is_last:
                    after(observers, seen)
        if not seen and start is None:
            raise CalibrationError("the calibration set has no images, expected at least one")
        return observers

    def _computed(
        self, batches: Iterable[NDArray[np.float32]]
    ) -> Generator[tuple[NDArray[np.float32], Outputs, bool], None, None]:
        """Yield the images of each run, what they gave, and whether they end a batch; one run ahead of the reader."""
        ahead: tuple[NDArray[np.float32], Future[Outputs], bool] | None = None
        with ThreadPoolExecutor(1) as worker:
            for batch in batches:
                parts = list(self._parts(batch))
                for images in parts:
                    before, ahead = ahead, (images, worker.submit(self._run, images), images is parts[-1])
                    if before is not None:
                        yield before[0], before[1].result(), before[2]
            if ahead is not None:
                yield ahead[0], ahead[1].result(), ahead[2]

    def _parts(self, images: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
        size = self._input.shape[0] or len(images)
        return (images[start : start + size] for start in range(0, len(images), size))

    def _run(self, images: NDArray[np.float32]) -> Outputs:
        """Return the observed tensors of some images; those of a fixed batch that is filled up are cut again."""
        fixed, count = self._input.shape[0], len(images)
        if fixed is None or count == fixed:
            return self._session.run({self._input.name: np.ascontiguousarray(images, self._input.dtype)})
        images = np.concatenate([images, np.repeat(images[-1:], fixed - count, axis=0)])
        found = self._session.run({self._input.name: np.ascontiguousarray(images, self._input.dtype)})
        for tensor, array in found.items():
            if not array.ndim or len(array) % fixed:
                raise GraphError(
                    f"tensor {tensor!r} of shape {array.shape} does not run over the images, so {count} do not "
                    f"fit a graph with the fixed batch {fixed}: export it with a dynamic batch"
                )
        return {tensor: array[: len(array) // fixed * count] for tensor, array in found.items()}

    def _observe(
        self,
        images: NDArray[np.float32],
        outputs: Outputs,
        observers: Observers,
        seen: int,
        name_of: Callable[[int], str] | None,
    ) -> None:
        keys = np.array([_key(image) for image in images], np.uint64)

        def name(index: int) -> str:
            return f"image {seen + index + 1}" if name_of is None else f"image {name_of(seen + index)!r}"

        for tensor, array in outputs.items():
            observers[tensor].update(array, keys, name)


def _key(image: NDArray[np.float32]) -> int:
    """Return a hash of an image's values."""
    return int.from_bytes(hashlib.blake2b(np.ascontiguousarray(image).tobytes(), digest_size=8).digest(), "little")


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


def batch_for(model: ir.Model, tensors: Iterable[str]) -> int:
    """Return how many images to run at once so that the observed tensors take about 64 MB, 1 to 32."""
    shapes = shapes_at_batch_one(model)
    elements = sum(math.prod(size or 1 for size in shapes.get(name, ())) for name in set(tensors))
    return max(1, min(LARGEST_BATCH, MEMORY_BUDGET_BYTES // max(4 * elements, 1)))


def merged(first: Mapping[str, TensorObserver], second: Mapping[str, TensorObserver]) -> Observers:
    """Return the observers of both parts of a stream; sampled rows are shared with them."""
    result: Observers = {}
    for name in first:
        result[name] = TensorObserver(name, first[name].axis)
        result[name].merge(first[name])
        if name in second:
            result[name].merge(second[name])
    return result
