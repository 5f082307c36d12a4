"""The whole way from an image's file to its class, as a call that can be timed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vitdeploy.backends.session import wall_clock_ms
from vitdeploy.datasets import Dataset
from vitdeploy.measure.accuracy import BatchLimits, run_batch
from vitdeploy.measure.heads import predicted_classes
from vitdeploy.preprocess import stacked, to_input, to_pixels
from vitdeploy.records import ModelSpec, Preprocess
from vitdeploy.sessions import Feed, Scope, Session


class ImageToLabel:
    """Decodes, resizes, normalises, runs and classifies one batch after the other, in one thread of Python.

    Each call takes the dataset's next images, so no decoded image is met twice in a row; the feed is ignored.
    """

    def __init__(
        self,
        session: Session,
        dataset: Dataset,
        preprocess: Preprocess,
        model: ModelSpec,
        batch: int,
        limits: BatchLimits | None = None,
    ) -> None:
        self._session, self._dataset, self._preprocess, self._model = session, dataset, preprocess, model
        self._batch, self._limits = batch, limits
        self._next = 0

    def time(self, feed: Feed, *, warmup: int, iterations: int, scope: Scope = "end_to_end") -> NDArray[np.float64]:
        """Return [iterations] milliseconds per batch, after ``warmup`` batches that are not counted."""
        return wall_clock_ms(self._classify, warmup, iterations)

    def _classify(self) -> NDArray[np.int64] | None:
        chosen = [(self._next + offset) % len(self._dataset) for offset in range(self._batch)]
        self._next = (chosen[-1] + 1) % len(self._dataset)
        pixels = (to_pixels(self._dataset.image(index), self._preprocess) for index in chosen)
        outputs = [
            run_batch(self._session, to_input(several, self._preprocess), self._limits)
            for several in stacked(pixels, self._batch)
        ]
        return predicted_classes(np.concatenate(outputs), self._model)
