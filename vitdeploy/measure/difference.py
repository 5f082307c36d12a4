"""How far two streams of arrays are apart, in constant memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass
class Difference:
    """Sums over all pairs of arrays seen: of a first stream, and of a second that should equal it.

    ``largest`` is max |second - first|, ``peak`` max |first|; ``non_finite`` counts the values that are NaN or infinite
    in the second stream only. Where either is not finite, a value counts in no sum.
    """

    signal: float = 0.0
    noise: float = 0.0
    largest: float = 0.0
    peak: float = 0.0
    non_finite: int = 0

    def update(self, first: NDArray[Any], second: NDArray[Any]) -> None:
        """Add two arrays of equal shape."""
        reference, found = first.astype(np.float64), second.astype(np.float64)
        usable = np.isfinite(reference)
        both = usable & np.isfinite(found)
        if not both.all():
            self.non_finite += int(np.sum(usable & ~both))
            if usable.any():
                self.peak = max(self.peak, float(np.abs(reference[usable]).max()))
            reference, found = reference[both], found[both]
        if not reference.size:
            return
        self.peak = max(self.peak, float(np.abs(reference).max()))
        self.signal += float(np.vdot(reference, reference))
        apart = found - reference
        self.noise += float(np.vdot(apart, apart))
        self.largest = max(self.largest, float(np.abs(apart).max()))

    @property
    def sqnr_db(self) -> float:
        """10·log10(Σ first² / Σ (second - first)²); infinite where all is equal, NaN where a value is not finite."""
        if self.non_finite:
            return math.nan
        if self.noise == 0:
            return math.inf
        return 10 * math.log10(self.signal / self.noise) if self.signal else -math.inf
