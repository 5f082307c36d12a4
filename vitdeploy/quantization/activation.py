"""What is known of the input of a group of linears, and what becomes of it when its channels are changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from vitdeploy.errors import CalibrationError
from vitdeploy.graph.rotation import Matrix, turn
from vitdeploy.quantization.observers import HistogramObserver, TensorObserver
from vitdeploy.records import RangeMethod

Vector = NDArray[np.float32]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Activation:
    """An activation [..., C] as it was observed, or after its channels were shifted or scaled.

    ``lo`` and ``hi`` [C] are exact; ``images`` [rows, C] are a sample, which was observed as it is: ``shift`` and
    ``factor`` [C] make it (x - shift) / factor. ``streamed`` is the histogram of the tensor as it was observed; after a
    change that of the rows takes its place.
    """

    lo: Vector
    hi: Vector
    images: Sequence[NDArray[np.float32]]
    streamed: HistogramObserver | None = None
    shift: Vector | None = None
    factor: Vector | None = None

    @classmethod
    def of(cls, observer: TensorObserver) -> Activation:
        """Return what an observer saw.

        Raises:
            CalibrationError: It saw nothing.
        """
        if observer.lo is None or observer.hi is None:
            raise CalibrationError(
                f"tensor {observer.name!r} was never seen during calibration: give at least one sample"
            )
        return cls(observer.lo, observer.hi, tuple(observer.sample.images), observer.histogram)

    @property
    def count(self) -> int:
        """How many rows the sample has."""
        return sum(map(len, self.images))

    @cached_property
    def rows(self) -> NDArray[np.float32]:
        """The sample, [n, C]; made when it is first asked for, because those of all groups of a graph are large."""
        rows = np.concatenate(self.images) if self.images else np.zeros((0, self.lo.size), np.float32)
        if self.shift is not None:
            rows = rows - self.shift
        return rows if self.factor is None else rows / self.factor

    @property
    def channel_amax(self) -> Vector:
        """Largest magnitude per channel, [C]."""
        return np.maximum(np.abs(self.lo), np.abs(self.hi))

    @property
    def amax(self) -> float:
        """Largest magnitude."""
        return float(self.channel_amax.max())

    @property
    def middle(self) -> Vector:
        """Middle of each channel's range, [C]."""
        return ((self.lo.astype(np.float64) + self.hi) / 2).astype(np.float32)

    @cached_property
    def mean_square(self) -> NDArray[np.float64]:
        """Mean of the squares per channel over the sample, [C]; a third of the squared range where there is none."""
        if not len(self.rows):
            return np.square(self.channel_amax, dtype=np.float64) / 3
        return np.square(self.rows, dtype=np.float64).mean(axis=0)

    @cached_property
    def histogram(self) -> HistogramObserver:
        """The histogram of magnitudes: over all images before, of the sample after a change."""
        if self.streamed is not None:
            return self.streamed
        found = HistogramObserver()
        found.update(np.abs(self.rows))
        return found

    def shifted(self, shift: Vector) -> Activation:
        """Return x - shift, of an activation that was not scaled."""
        assert self.factor is None
        together = shift if self.shift is None else self.shift + shift
        return Activation(self.lo - shift, self.hi - shift, self.images, shift=together)

    def scaled(self, factor: Vector) -> Activation:
        """Return x / factor."""
        together = factor if self.factor is None else self.factor * factor
        return Activation(self.lo / factor, self.hi / factor, self.images, shift=self.shift, factor=together)

    def turned(
        self, offset: NDArray[np.float64], divisor: NDArray[np.float64], positions: NDArray[np.intp], matrix: Matrix
    ) -> Activation:
        """Return ((x - offset) / divisor) with each block of channels multiplied by a matrix.

        The ranges are those of the sample: what a channel becomes depends on all of its row.
        """
        rows = turn((self.rows - offset) / divisor, positions, matrix).astype(np.float32)
        return Activation(rows.min(axis=0), rows.max(axis=0), (rows,))

    def first(self, count: int) -> Activation:
        """Return the same with at most ``count`` sampled rows."""
        kept, left = [], count
        for rows in self.images:
            kept.append(rows[:left])
            left -= len(kept[-1])
            if not left:
                break
        return Activation(self.lo, self.hi, tuple(kept), self.streamed, self.shift, self.factor)

    def interval(self, method: RangeMethod, percent: float) -> Interval:
        """Return the smallest and the largest value to represent.

        That is what was observed, cut at the largest magnitude that is worth it (``HistogramObserver.clip``).
        """
        clip = self.histogram.clip(method, self.amax, percent=percent)
        return max(float(self.lo.min()), -clip), min(float(self.hi.max()), clip)
