"""The learning rate and the random numbers of each update: functions of its number, so that nothing need be saved."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then half a cosine (Loshchilov and Hutter 2017, arXiv:1608.03983) down to ``final``."""

    peak: float
    final: float
    warmup: float
    total: int

    def learning_rate(self, update: int) -> float:
        """Return the learning rate of update 0 … total − 1; the first is not 0, or it would be wasted."""
        if update < self.warmup:
            return self.peak * (update + 1) / (self.warmup + 1)
        progress = (update - self.warmup) / max(self.total - self.warmup, 1)
        return self.final + (self.peak - self.final) * 0.5 * (1 + math.cos(math.pi * progress))


def seed_of(*numbers: int | str) -> int:
    """Return a 63-bit seed that depends on every number and on their order."""
    digest = hashlib.sha256(repr(numbers).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
