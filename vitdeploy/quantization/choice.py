"""Choose how ranges are taken from observations, by measurement."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from vitdeploy.quantization.observers import RangeMethod

ALPHAS = (0.5, 0.75)
WORTHWHILE_DB = 0.25
"""A more elaborate choice must gain that much: less is noise of the samples that it was measured on."""
LEAST_GAIN_OF_MUL_DB = 6.0
"""A Mul in front of a linear must make the rounding error of its input that much smaller."""
WORTH_A_MUL_DB = 1.0
"""What all Muls together must gain in the logits."""


@dataclass(frozen=True)
class RangeChoice:
    """How clips are chosen: the method, its percentage, and the alpha of channel scaling (None: not scaled).

    ``mul``: groups whose factors no constant takes get a Mul of their own where that gains ``LEAST_GAIN_OF_MUL_DB``.
    """

    method: RangeMethod = "minmax"
    percent: float = 99.99
    alpha: float | None = None
    mul: bool = False

    def __str__(self) -> str:
        method = f"percentile {self.percent:g}" if self.method == "percentile" else self.method
        if self.alpha is None:
            return method
        return f"{method}, channels scaled with alpha {self.alpha:g}{' and Muls' if self.mul else ''}"


@dataclass(frozen=True)
class Trial:
    """A choice and the logits SQNR that it gave."""

    choice: RangeChoice
    sqnr_db: float


def choose(
    methods: Sequence[RangeChoice], alphas: Sequence[float], score: Callable[[RangeChoice], float]
) -> tuple[RangeChoice, tuple[Trial, ...]]:
    """Return the choice with the best score, and all trials.

    First come ``methods``, then ``alphas`` with the best of them where scaling is free, last Muls with the best of
    those (with the first alpha where none gained). ``score`` gives logits SQNR in dB. A later choice must gain 0.25 dB
    over the best before it, so ``methods`` come simplest first, and Muls, which cost time, 1 dB. A score of NaN never
    wins.
    """
    trials = [Trial(choice, score(choice)) for choice in methods]
    best = trials[0]
    for trial in trials[1:]:
        best = trial if _better(trial, best) else best
    for choice in [replace(best.choice, alpha=alpha) for alpha in alphas]:
        trials.append(Trial(choice, score(choice)))
        best = trials[-1] if _better(trials[-1], best) else best
    if alphas:
        alpha = alphas[0] if best.choice.alpha is None else best.choice.alpha
        with_muls = replace(best.choice, alpha=alpha, mul=True)
        trials.append(Trial(with_muls, score(with_muls)))
        best = trials[-1] if _better(trials[-1], best, WORTH_A_MUL_DB) else best
    return best.choice, tuple(trials)


def _better(trial: Trial, best: Trial, least: float = WORTHWHILE_DB) -> bool:
    return trial.sqnr_db >= best.sqnr_db + least or math.isnan(best.sqnr_db)
