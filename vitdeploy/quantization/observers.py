"""Observers: what a stream of arrays says about a tensor's range, in constant memory and one pass.

Every observer is fed array by array; the result depends on the multiset of values seen, not on their order or on how
they were batched, and two observers of disjoint parts of a stream merge into the observer of the whole.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vitdeploy.errors import CalibrationError

RangeMethod = Literal["minmax", "percentile", "mse"]
BINS = 4096
_SMALLEST_EXPONENT = -100
_MSE_CANDIDATES = 96


@dataclass
class RangeObserver:
    """Exact smallest and largest value, and how many values there were."""

    lo: float = float("inf")
    hi: float = float("-inf")
    count: int = 0

    def update(self, x: NDArray[Any]) -> None:
        if x.size:
            self.lo = min(self.lo, float(x.min()))
            self.hi = max(self.hi, float(x.max()))
            self.count += int(x.size)

    def merge(self, other: RangeObserver) -> None:
        self.lo, self.hi = min(self.lo, other.lo), max(self.hi, other.hi)
        self.count += other.count

    @property
    def amax(self) -> float:
        """Largest magnitude seen; 0 where nothing was."""
        return max(abs(self.lo), abs(self.hi)) if self.count else 0.0


@dataclass
class HistogramObserver:
    """Counts of |x| in 4096 equal bins over [0, 2**exponent).

    The range doubles when a larger value comes: pairs of bins are added, which is exact because their edges are
    multiples of a power of two. The final exponent is that of the largest magnitude, so at least half of the bins cover
    values that occurred, and order does not matter. ``exponent`` is None while only zeros were seen.
    """

    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    exponent: int | None = None

    def update(self, magnitudes: NDArray[np.float32]) -> None:
        """Add |x|, of any shape, finite and not negative."""
        if not magnitudes.size:
            return
        largest = float(magnitudes.max())
        if largest > 0:
            self._grow(max(int(np.frexp(largest)[1]), _SMALLEST_EXPONENT))
        if self.exponent is None:
            self.counts[0] += magnitudes.size
            return
        bins = (magnitudes.reshape(-1) * np.float32(BINS * 2.0**-self.exponent)).astype(np.int32)
        self.counts += np.bincount(bins, minlength=BINS)

    def merge(self, other: HistogramObserver) -> None:
        if other.exponent is not None:
            self._grow(other.exponent)
        theirs = HistogramObserver(other.counts.copy(), other.exponent)
        if self.exponent is not None:
            theirs._grow(self.exponent)
        self.counts += theirs.counts

    def percentile(self, percent: float) -> float:
        """Return the magnitude that ``percent`` of the values do not exceed, interpolated within its bin."""
        total = int(self.counts.sum())
        if self.exponent is None or not total:
            return 0.0
        cumulative = np.cumsum(self.counts)
        wanted = total * percent / 100
        index = min(int(np.searchsorted(cumulative, wanted)), BINS - 1)
        before = float(cumulative[index - 1]) if index else 0.0
        within = (wanted - before) / max(float(self.counts[index]), 1.0)
        return (index + min(max(within, 0.0), 1.0)) * self.width

    def least_square_error(self, amax: float, *, steps: int = 127) -> float:
        """Return the clip in (0, amax] whose quantization to ±``steps`` has the least expected squared error.

        E(t) = Σ_b n_b (c_b − s·min(rint(c_b / s), steps))², s = t / steps, over bin centres c_b; 96 clips from amax
        down to a twentieth of it, in equal ratios. Larger t wins a tie.
        """
        used = np.flatnonzero(self.counts)
        if self.exponent is None or not used.size:
            return 0.0
        centres = (used + 0.5) * self.width
        weights = self.counts[used].astype(np.float64)
        clips = amax * np.geomspace(1.0, 0.05, _MSE_CANDIDATES)
        scale = clips[:, None] / steps
        error = centres - scale * np.minimum(np.rint(centres / scale), steps)
        return float(clips[int(np.argmin((error * error) @ weights))])

    @property
    def width(self) -> float:
        """Width of a bin."""
        return 0.0 if self.exponent is None else 2.0**self.exponent / BINS

    def _grow(self, exponent: int) -> None:
        if self.exponent is None or exponent <= self.exponent:
            self.exponent = exponent if self.exponent is None else self.exponent
            return
        merged = 2 ** min(exponent - self.exponent, 12)
        sums = self.counts.reshape(-1, merged).sum(axis=1)
        self.counts = np.zeros(BINS, np.int64)
        self.counts[: sums.size] = sums
        self.exponent = exponent


@dataclass
class ChannelObserver:
    """Largest magnitude of each index of the last axis; None before the first array."""

    amax: NDArray[np.float32] | None = None

    def update(self, magnitudes: NDArray[np.float32]) -> None:
        """Add |x|, [..., C]."""
        if magnitudes.size:
            largest = magnitudes.reshape(-1, magnitudes.shape[-1]).max(axis=0)
            self.amax = largest if self.amax is None else np.maximum(self.amax, largest)

    def merge(self, other: ChannelObserver) -> None:
        if other.amax is not None:
            self.amax = other.amax.copy() if self.amax is None else np.maximum(self.amax, other.amax)


class TensorObserver:
    """All that is kept of one tensor: exact range, histogram of magnitudes, largest magnitude per channel."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.range = RangeObserver()
        self.histogram = HistogramObserver()
        self.channels = ChannelObserver()

    def update(self, x: NDArray[Any]) -> None:
        """Add one array, [..., C].

        Raises:
            CalibrationError: A value is NaN or infinite; the message names the tensor.
        """
        x = np.asarray(x, np.float32)
        if not x.size:
            return
        seen = RangeObserver(float(x.min()), float(x.max()), int(x.size))  # NumPy's min and max hand NaN on
        if not (np.isfinite(seen.lo) and np.isfinite(seen.hi)):
            bad = "NaN" if np.isnan(seen.lo) or np.isnan(seen.hi) else "an infinite value"
            raise CalibrationError(
                f"tensor {self.name!r} has {bad} during calibration, expected finite activations: "
                f"check the model with 'vitdeploy verify' and the images"
            )
        magnitudes = np.abs(x)
        self.range.merge(seen)
        self.histogram.update(magnitudes)
        if x.ndim:
            self.channels.update(magnitudes)

    def merge(self, other: TensorObserver) -> None:
        """Take in what ``other`` has seen; afterwards this is the observer of both streams."""
        self.range.merge(other.range)
        self.histogram.merge(other.histogram)
        self.channels.merge(other.channels)

    def clip(self, method: RangeMethod, *, percent: float = 99.99) -> float:
        """Return the largest magnitude to represent, by ``method``.

        ``minmax`` clips nothing, ``percentile`` the largest 100 − ``percent`` of the values, ``mse`` what makes the
        expected squared error least.

        Raises:
            CalibrationError: Nothing was seen.
        """
        if not self.range.count:
            raise CalibrationError(f"tensor {self.name!r} was never seen during calibration: give at least one sample")
        amax = self.range.amax
        if method == "minmax" or amax == 0:
            return amax
        if method == "percentile":
            return min(self.histogram.percentile(percent), amax) or amax
        return self.histogram.least_square_error(amax)
