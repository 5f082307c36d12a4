"""Observers: what a stream of arrays says about a tensor, in constant memory and one pass.

The result depends on the multiset of images seen, not on their order or on how they were batched, and two observers of
disjoint parts of a stream merge into the observer of the whole. Ranges are exact, over all values. The histogram and
the sample of rows, which cost more, see up to ``HISTOGRAM_ROWS`` and ``SAMPLED_ROWS`` rows of each image, spread evenly
from a start that follows from the image's content; where weights are rounded together, which wants several rows for
each channel, ``MANY_ROWS``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.artifacts.calibration_table import SAMPLED_ROWS
from vitdeploy.errors import CalibrationError
from vitdeploy.records import RangeMethod

METHODS: tuple[RangeMethod, ...] = ("minmax", "mse", "percentile", "entropy")
BINS = 4096
HISTOGRAM_ROWS = 64
MANY_ROWS = 16
_SMALLEST_EXPONENT = -100
_MSE_CANDIDATES = 96
_ENTROPY_LEVELS = 128
_ENTROPY_STEP = 32
_SAMPLE_VALUES = 1 << 19
_MOST_SAMPLE_VALUES = 1 << 23
_ROWS_BY_CHANNEL = 4


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

    def clip(self, method: RangeMethod, amax: float, *, percent: float = 99.99, steps: int = 127) -> float:
        """Return the largest magnitude to represent by ±``steps``, at most ``amax``, the largest there is.

        ``minmax`` clips nothing, ``percentile`` the largest 100 − ``percent`` of the values, ``mse`` what makes the
        expected squared error least, ``entropy`` what loses the least information.
        """
        if method == "minmax" or amax == 0 or self.exponent is None or (method == "percentile" and percent >= 100):
            return amax
        if method == "percentile":
            return min(self.percentile(percent), amax) or amax
        if method == "mse":
            return self.least_square_error(amax, steps=steps)
        return min(self.least_divergence(), amax)

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

    def least_divergence(self) -> float:
        """Return the clip for which quantized magnitudes tell most about the real ones (Migacz 2017, GTC S7310).

        Among clips t, every 32 bins, the one with the least Σ_b P_b·log(P_b / Q_b). P is the histogram below t, with
        what lies above in its last bin; Q is the histogram below t in 128 levels, each spread evenly over its bins that
        are not empty. Larger t wins a tie.
        """
        if self.exponent is None:
            return 0.0
        used = int(np.flatnonzero(self.counts)[-1]) + 1
        ends = np.arange(used, min(_ENTROPY_LEVELS, used) - 1, -_ENTROPY_STEP)
        divergences = [_divergence(self.counts, int(end)) for end in ends]
        return float(ends[int(np.argmin(divergences))]) * self.width

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


def _divergence(counts: NDArray[np.int64], end: int) -> float:
    inside = counts[:end].astype(np.float64)
    reference = inside.copy()
    reference[-1] += counts[end:].sum()
    filled = reference > 0
    edges = np.linspace(0, end, _ENTROPY_LEVELS + 1)
    positions = np.arange(end + 1)
    mass = np.diff(np.interp(edges, positions, np.concatenate([[0.0], np.cumsum(inside)])))
    bins = np.diff(np.interp(edges, positions, np.concatenate([[0], np.cumsum(filled)])))
    level = np.minimum(((np.arange(end) + 0.5) * _ENTROPY_LEVELS / end).astype(np.int64), _ENTROPY_LEVELS - 1)
    spread = np.where(filled, mass[level] / np.maximum(bins[level], 1e-9), 0.0)
    if spread.sum() == 0:
        return float("inf")
    p, q = reference[filled] / reference.sum(), spread[filled] / spread.sum()
    return float(np.sum(p * np.log(p / np.maximum(q, 1e-12))))


@dataclass
class RowSample:
    """Rows [n, C] of the images whose keys are the smallest: a sample that does not depend on order or batches.

    ``keys`` [images] ascends; ``images`` has the rows [rows of each, C] of each. A key is a hash of the image's
    content, so an image that occurs twice is sampled once. Kept are 2 MB; with ``most_rows`` above ``SAMPLED_ROWS`` of
    each image four rows for each channel, but at most 32 MB.
    """

    keys: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    images: list[NDArray[np.float32]] = field(default_factory=list)
    most_rows: int = SAMPLED_ROWS

    def merge(self, keys: NDArray[np.uint64], images: Sequence[NDArray[np.float32]]) -> None:
        """Take in rows of further images; the arrays are kept, not copied."""
        if not len(keys):
            return
        shape = images[0].shape
        if self.images and shape != self.images[0].shape:
            raise CalibrationError(
                f"an image has rows of shape {shape}, those before had {self.images[0].shape}: calibrate with "
                f"images of one size"
            )
        capacity = max(1, self._most_values(shape[1]) // max(1, shape[0] * shape[1]))
        if len(self.keys) >= capacity and keys.min() > self.keys[-1]:
            return
        together, first = np.unique(np.concatenate([self.keys, keys]), return_index=True)
        known = [*self.images, *images]
        self.images = [known[index] for index in first[:capacity]]
        self.keys = together[:capacity]

    @property
    def rows(self) -> NDArray[np.float32]:
        """The rows by image, [images, rows of each, C]."""
        return np.stack(self.images) if self.images else np.zeros((0, 0, 0), np.float32)

    def _most_values(self, channels: int) -> int:
        wanted = 0 if self.most_rows <= SAMPLED_ROWS else _ROWS_BY_CHANNEL * channels**2
        return max(_SAMPLE_VALUES, min(wanted, _MOST_SAMPLE_VALUES))


class TensorObserver:
    """All that is kept of one tensor.

    ``lo`` and ``hi``: exact smallest and largest value per index of ``axis`` [C], or [1] where ``axis`` is None (the
    tensor is no input of a linear). ``count``: how many values there were. ``histogram``: of the magnitudes of all
    channels together. ``sample``: up to ``most_rows`` rows [C] of an image, for whatever looks at channels together;
    empty where ``axis`` is None.
    """

    def __init__(self, name: str, axis: int | None = -1, most_rows: int = SAMPLED_ROWS) -> None:
        self.name = name
        self.axis = axis
        self.lo: NDArray[np.float32] | None = None
        self.hi: NDArray[np.float32] | None = None
        self.count = 0
        self.histogram = HistogramObserver()
        self.sample = RowSample(most_rows=most_rows)

    def update(
        self, x: NDArray[Any], keys: NDArray[np.uint64] | None = None, name_of: Callable[[int], str] | None = None
    ) -> None:
        """Add one array; ``keys`` [images] are those of the images that its first axis runs over.

        Raises:
            CalibrationError: A value is NaN or infinite; the message names the tensor, and the image by ``name_of``.
        """
        x = np.asarray(x, np.float32)
        if not x.size:
            return
        rows = self._rows(x)
        lo, hi = rows.min(axis=0), rows.max(axis=0)  # NumPy's min and max hand NaN on
        if not (np.isfinite(lo).all() and np.isfinite(hi).all()):
            raise CalibrationError(self._broken(x, 1 if keys is None else len(keys), name_of))
        self.lo = lo if self.lo is None else np.minimum(self.lo, lo)
        self.hi = hi if self.hi is None else np.maximum(self.hi, hi)
        self.count += int(x.size)
        if keys is None or len(x) % len(keys) or (len(rows) // len(keys)) * len(keys) != len(rows):
            self.histogram.update(np.abs(rows))
            return
        images = rows.reshape(len(keys), -1, rows.shape[-1])
        self.histogram.update(np.abs(_spread(images, keys, HISTOGRAM_ROWS)))
        if self.axis is not None:
            chosen = _spread(images, keys, self.sample.most_rows)
            self.sample.merge(keys, [rows.copy() for rows in chosen])

    def merge(self, other: TensorObserver) -> None:
        """Take in what ``other`` has seen; afterwards this is the observer of both streams.

        Raises:
            CalibrationError: The two saw tensors of different widths.
        """
        if other.lo is None or other.hi is None:
            return
        if self.lo is None or self.hi is None:
            self.lo, self.hi, self.axis = other.lo.copy(), other.hi.copy(), other.axis
            self.sample.most_rows = other.sample.most_rows
        elif self.lo.shape != other.lo.shape:
            raise CalibrationError(
                f"tensor {self.name!r} has {self.lo.size} channels in one part and {other.lo.size} in the other"
            )
        else:
            self.lo, self.hi = np.minimum(self.lo, other.lo), np.maximum(self.hi, other.hi)
        self.count += other.count
        self.histogram.merge(other.histogram)
        self.sample.merge(other.sample.keys, other.sample.images)

    @property
    def amax(self) -> float:
        """Largest magnitude seen; 0 where nothing was."""
        return 0.0 if self.lo is None else float(self.channel_amax.max())

    @property
    def channel_amax(self) -> NDArray[np.float32]:
        """Largest magnitude per channel, [C].

        Raises:
            CalibrationError: Nothing was seen.
        """
        if self.lo is None or self.hi is None:
            raise CalibrationError(f"tensor {self.name!r} was never seen during calibration: give at least one sample")
        return np.maximum(np.abs(self.lo), np.abs(self.hi))

    def clip(self, method: RangeMethod, *, percent: float = 99.99) -> float:
        """Return the largest magnitude to represent, by ``method`` (``HistogramObserver.clip``).

        Raises:
            CalibrationError: Nothing was seen.
        """
        return self.histogram.clip(method, float(self.channel_amax.max()), percent=percent)

    def _rows(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the array as [rows, C]; [values, 1] where channels mean nothing."""
        if self.axis is None or not x.ndim:
            return x.reshape(-1, 1)
        moved = x if self.axis in (-1, x.ndim - 1) else np.moveaxis(x, self.axis, -1)
        return moved.reshape(-1, moved.shape[-1])

    def _broken(self, x: NDArray[np.float32], images: int, name_of: Callable[[int], str] | None) -> str:
        what = "NaN" if np.isnan(x).any() else "an infinite value"
        where = ""
        if name_of is not None and len(x) % images == 0:
            bad = ~np.isfinite(x.reshape(images, -1)).all(axis=1)
            where = f" for {name_of(int(np.flatnonzero(bad)[0]))}"
        return (
            f"tensor {self.name!r} has {what} during calibration{where}, expected finite activations: "
            "check the model with vd.verify() and the images"
        )


def _spread(images: NDArray[np.float32], keys: NDArray[np.uint64], most: int) -> NDArray[np.float32]:
    """Return up to ``most`` rows of each image [b, rows, C], evenly spaced from a start that its key decides."""
    rows = images.shape[1]
    if rows <= most:
        return images
    steps = np.arange(most) * rows // most
    chosen = (steps + (keys % np.uint64(rows)).astype(np.int64)[:, None]) % rows
    return images[np.arange(len(images))[:, None], chosen]
