"""Affine quantization: scales, zero points, and the arithmetic of QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitdeploy.errors import CalibrationError

ScaleType = Literal["float32", "float16"]
FP8_MAX = 448.0
_SMALLEST_FP16 = 2.0**-24


@dataclass(frozen=True)
class Grid:
    """The values that 8 bits stand for in one tensor: real = scale * (q - zero_point).

    ``zero_point`` None: q is int8 and the zero point 0, the only one that TensorRT accepts. Else q is uint8 and the
    range need not be symmetric.
    """

    scale: float
    zero_point: int | None = None

    def rounded(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return x after QuantizeLinear and DequantizeLinear."""
        low, high = (-128, 127) if self.zero_point is None else (-self.zero_point, 255 - self.zero_point)
        scale = np.float32(self.scale)
        return scale * np.clip(np.rint(x / scale), low, high)


def unsigned_grid(low: float, high: float) -> Grid:
    """Return the uint8 grid from ``low`` to ``high``, both finite; 0 is always on it, exactly.

    >>> unsigned_grid(-0.5, 2.05)
    Grid(scale=0.009999999776482582, zero_point=50)
    """
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(scale_of(high - low, steps=255))
    return Grid(scale, int(np.clip(np.rint(-low / scale), 0, 255)))


def symmetric_scale(lo: ArrayLike, hi: ArrayLike, *, bits: int = 8) -> NDArray[np.float32]:
    """Return the step between two integers, one per channel, for zero point 0.

    scale = max(|lo|, |hi|) / (2**(bits - 1) - 1), ONNX convention: real = scale * q.
    Wu et al. 2020 (arXiv:2004.09602, section 3.1.2) write s for its reciprocal.
    Zero point is 0 because TensorRT accepts no other.

    Args:
        lo: Smallest value observed, [C] or scalar, in the tensor's real units.
        hi: Largest value observed, likewise; lo <= hi.
        bits: Width of the integers.

    Returns:
        [C] or scalar, > 0; a constant-zero channel gets 1.0, so it round-trips exactly.

    Raises:
        CalibrationError: A range is NaN, infinite or upside down; the message names the channel.

    >>> symmetric_scale([-1.27, 0.0], [0.5, 0.0])
    array([0.01, 1.  ], dtype=float32)
    """
    low, high = np.asarray(lo, np.float64), np.asarray(hi, np.float64)
    bad = ~(np.isfinite(low) & np.isfinite(high)) | (low > high)
    if bad.any():
        channel = int(np.flatnonzero(bad.reshape(-1))[0])
        values = float(low.reshape(-1)[channel]), float(high.reshape(-1)[channel])
        where = f"the range of channel {channel}" if low.ndim else "the range"
        raise CalibrationError(f"{where} is {values!r}, expected two finite numbers, the lower one first")
    return scale_of(np.maximum(np.abs(low), np.abs(high)), steps=2 ** (bits - 1) - 1)


def scale_of(amax: ArrayLike, *, steps: float) -> NDArray[np.float32]:
    """Return ``amax / steps`` as a normal float32 > 0, and 1.0 where ``amax`` is 0."""
    amax = np.asarray(amax, np.float64)
    scale = np.maximum(amax / steps, np.finfo(np.float32).tiny)
    return np.where(amax == 0, 1.0, scale).astype(np.float32)


def pairwise_scale(weight: NDArray[Any]) -> NDArray[np.float32]:
    """Return a scale per column of a MatMul weight [K, N] with which no x86 CPU overflows.

    AVX2 and AVX-512 without VNNI multiply unsigned activations with weights by ``vpmaddubsw``, where the sum of two
    neighbouring products saturates at 16 bits. With activations up to 255 it does not where two neighbours along K of
    the same sign sum up to at most 128, since 255 · 128 < 2**15. So

        scale = max(max_k |w_k| / 127, max_k (neighbours of one sign, summed) / 127.5),

    which costs a Gaussian weight of 64 to 1024 rows 2 to 3 dB, where a range of 7 bits for all would cost 6. Pairs
    start at even k, as the kernels of ONNX Runtime and oneDNN take four rows at a time.
    """
    rows = np.asarray(weight, np.float32)
    even, odd = rows[0::2], rows[1::2]
    # neighbours of unlike signs sum up to less than the larger of them, which the first term has
    sums = even[: len(odd)] + odd
    return scale_of(np.maximum(_amax(rows), _amax(sums) * (127 / 127.5)), steps=127)


def convolution_scale(weight: NDArray[Any]) -> NDArray[np.float32]:
    """Return a scale per output of a convolution's weight [O, I, ...] with which no x86 CPU overflows.

    Neighbours are the input channels of one point of the kernel. Where their number is odd, oneDNN starts each point
    anew, and ONNX Runtime goes on with the next: neither may overflow. Products of one channel are added in 32 bits.
    """
    points = np.moveaxis(np.asarray(weight, np.float32), (1, 0), (-2, -1))
    outputs = points.shape[-1]
    if points.shape[-2] == 1:
        return scale_of(_amax(points.reshape(-1, outputs)), steps=127)
    scale = pairwise_scale(points.reshape(-1, outputs))
    if points.shape[-2] % 2:
        alone = np.pad(points, [(0, 0)] * (points.ndim - 2) + [(0, 1), (0, 0)])
        scale = np.maximum(scale, pairwise_scale(alone.reshape(-1, outputs)))
    return scale


def _amax(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the largest magnitude of each column; 0 where there are no rows."""
    return np.maximum(rows.max(axis=0, initial=0), -rows.min(axis=0, initial=0)).astype(np.float64)


def storable(scale: ArrayLike, dtype: ScaleType) -> NDArray[np.float32]:
    """Return the smallest number >= ``scale`` that ``dtype`` holds, as float32.

    Rounded up, so that the largest value still fits into the integers; a scale that is stored as it was used loses
    nothing when the graph around it becomes FP16. Scales beyond FP16's largest number stay there.
    """
    exact = np.asarray(scale, np.float32)
    if dtype == "float32":
        return exact
    with np.errstate(over="ignore"):
        half = exact.astype(np.float16)
    half = np.where(half.astype(np.float32) < exact, np.nextafter(half, np.float16(np.inf)), half)
    limit = np.finfo(np.float16).max
    return np.clip(half.astype(np.float32), np.float32(_SMALLEST_FP16), np.float32(limit))


def quantize_affine(
    x: NDArray[Any], scale: ArrayLike, *, axis: int | None = None, narrow: bool = False
) -> NDArray[np.int8]:
    """Return q = saturate(round_half_even(x / scale)), int8, as ONNX QuantizeLinear with zero point 0.

    ``scale`` is a scalar, or with ``axis`` one number per index of that axis of ``x``: for a MatMul weight [K, N] and
    ``axis=1`` a scale [N]; for a Conv weight [O, I, k, k] and ``axis=0`` a scale [O]. ``narrow`` saturates at −127
    instead of −128, as weights do, so that q and −q are both there.
    """
    steps = np.asarray(x, np.float32) / _along(scale, axis, np.ndim(x))
    return np.clip(np.rint(steps), -127 if narrow else -128, 127).astype(np.int8)


def dequantize_affine(q: NDArray[Any], scale: ArrayLike, *, axis: int | None = None) -> NDArray[np.float32]:
    """Return scale * q in float32, as ONNX DequantizeLinear with zero point 0; ``axis`` as in ``quantize_affine``."""
    return np.asarray(q, np.float32) * _along(scale, axis, np.ndim(q))


def quantize_fp8(x: NDArray[Any], scale: ArrayLike, *, axis: int | None = None) -> NDArray[Any]:
    """Return x / scale as E4M3 (Micikevicius et al. 2022, arXiv:2209.05433), saturated at ±448."""
    import ml_dtypes

    steps = np.asarray(x, np.float32) / _along(scale, axis, np.ndim(x))
    result: NDArray[Any] = np.clip(steps, -FP8_MAX, FP8_MAX).astype(ml_dtypes.float8_e4m3fn)
    return result


def _along(scale: ArrayLike, axis: int | None, rank: int) -> NDArray[np.float32]:
    """Shape ``scale`` so that it broadcasts along ``axis`` of an array of ``rank`` dimensions."""
    scale = np.asarray(scale, np.float32)
    if axis is None:
        return scale
    shape = [1] * rank
    shape[axis] = -1
    return scale.reshape(shape)
