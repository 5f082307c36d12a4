"""Axes of a plot: where values lie in the picture, and which ticks a person expects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

LOG_FROM_RATIO = 8.0


@dataclass(frozen=True)
class Axis:
    """Maps values from ``low`` … ``high`` to pixels ``start`` … ``end``, linearly or by logarithm."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """Return the pixel of a value; values outside are set on the border."""
        value = min(max(value, self.low), self.high)
        if self.logarithmic:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 2)

    def ticks(self, count: int = 6) -> list[float]:
        """Return about ``count`` round values within the axis."""
        if not self.logarithmic:
            return linear_ticks(self.low, self.high, count)
        ticks = [
            digit * 10.0**power
            for power in range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for digit in (1, 2, 5)
        ]
        return [tick for tick in ticks if self.low * (1 - 1e-9) <= tick <= self.high * (1 + 1e-9)]


def latency_axis(values: Sequence[float], start: float, end: float) -> Axis:
    """Return an axis for durations: from zero, or logarithmic where the largest is eight times the smallest."""
    low, high = min(values), max(values)
    if high / low >= LOG_FROM_RATIO:
        return Axis(low / 1.25, high * 1.35, start, end, logarithmic=True)
    return Axis(0.0, high * 1.15, start, end)


def percent_axis(values: Sequence[float], start: float, end: float) -> Axis:
    """Return an axis for percentages: what the values need and a margin, at least one point wide, within 0 … 100."""
    low, high = min(values), max(values)
    margin = max(0.08 * (high - low), (1 - (high - low)) / 2, 0.1)
    low, high = low - margin, high + margin
    if high > 100:
        low, high = max(low - (high - 100) * 0.5, 0), 100.0
    return Axis(max(low, 0.0), high, start, end)


def plain_axis(values: Sequence[float], start: float, end: float) -> Axis:
    """Return an axis for any numbers: what they need and a margin."""
    low, high = min(values), max(values)
    margin = 0.08 * (high - low) or 1.0
    return Axis(low - margin, high + margin, start, end)


def size_axis(values: Sequence[float], start: float, end: float) -> Axis:
    """Return an axis from zero, or from the least value where that is below; one without length has room for 1."""
    low, high = min(0.0, *values), max(0.0, *values)
    margin = 0.02 * ((high - low) or 1.0)
    return Axis(low - margin if low < 0 else 0.0, (high or (0.0 if low < 0 else 1.0)) + margin, start, end)


def linear_ticks(low: float, high: float, count: int) -> list[float]:
    """Return multiples of 1, 2 or 5 times a power of ten within ``low`` … ``high``, about ``count`` of them."""
    raw = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]
