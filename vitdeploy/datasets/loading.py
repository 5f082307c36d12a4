"""From a dataset to arrays: all pixels at once, or network inputs batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.datasets.base import Dataset
from vitdeploy.errors import DataError
from vitdeploy.preprocess import stacked, to_input, to_pixels
from vitdeploy.preprocess.ahead import map_ahead, thread_count
from vitdeploy.progress import SILENT, Progress
from vitdeploy.records import Preprocess

_LISTED = 5


def load_pixels(dataset: Dataset, spec: Preprocess, progress: Progress = SILENT) -> NDArray[np.uint8]:
    """Return every image resized and cropped, [n, H, W, C] in 0…255, owned by the caller.

    Raises:
        DataError: Images cannot be read; all are tried and the first few are named, so that one run finds them all.
    """
    height, width = spec.size
    pixels = np.empty((len(dataset), height, width, spec.channels), np.uint8)
    failures: list[DataError] = []
    with progress.task(f"reading {len(dataset)} images", total=len(dataset)) as task:
        for index, outcome in enumerate(_outcomes(dataset, spec)):
            if isinstance(outcome, DataError):
                failures.append(outcome)
            else:
                pixels[index] = outcome
            task.advance()
    if len(failures) == 1:
        raise failures[0]
    if failures:
        listed = "; ".join(str(failure) for failure in failures[:_LISTED])
        more = f"; and {len(failures) - _LISTED} more" if len(failures) > _LISTED else ""
        raise DataError(f"{len(failures)} of {len(dataset)} images cannot be read: {listed}{more}") from failures[0]
    return pixels


def batches(dataset: Dataset, spec: Preprocess, batch: int) -> Iterator[NDArray[Any]]:
    """Yield network inputs in the dataset's order, [b, C, H, W] or as ``spec.input`` says; the last may be smaller.

    A graph that takes images of any size gets those together that follow each other and have one size. Memory does not
    grow with the dataset.

    Raises:
        DataError: An image cannot be read, or ``batch`` is less than 1.
    """
    if batch < 1:
        raise DataError(f"a batch of {batch} images was asked for, expected at least 1")
    for pixels in stacked(_readable(_outcomes(dataset, spec)), batch):
        yield to_input(pixels, spec)


def _readable(outcomes: Iterator[NDArray[np.uint8] | DataError]) -> Iterator[NDArray[np.uint8]]:
    for outcome in outcomes:
        if isinstance(outcome, DataError):
            raise outcome
        yield outcome


def _outcomes(dataset: Dataset, spec: Preprocess) -> Iterator[NDArray[np.uint8] | DataError]:
    """Return pixels [H, W, C] or the error of each image, in order; files are decoded in threads."""

    def load(index: int) -> NDArray[np.uint8] | DataError:
        try:
            image = dataset.image(index)
        except DataError as error:
            return error
        try:
            return to_pixels(image, spec)
        except DataError as error:
            return DataError(f"'{dataset.name(index)}': {error}")

    if thread_count() == 1 or not len(dataset) or dataset.file(0) is None:
        return map(load, range(len(dataset)))
    return map_ahead(load, range(len(dataset)), ahead=4 * thread_count())
