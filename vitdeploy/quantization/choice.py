"""Choose how ranges are taken from observations, by measurement."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vitdeploy.quantization.observers import RangeMethod

ALPHAS = (0.5, 0.75)
WORTHWHILE_DB = 0.25
"""A more elaborate choice must gain that much: less is noise of the samples that it was measured on."""


@dataclass(frozen=True)
class RangeChoice:
    """How clips are chosen: the method, its percentage, and the alpha of equalisation (None: not equalised)."""

    method: RangeMethod = "minmax"
    percent: float = 99.99
    alpha: float | None = None

    def __str__(self) -> str:
        method = f"percentile {self.percent:g}" if self.method == "percentile" else self.method
        return method if self.alpha is None else f"{method}, equalised with alpha {self.alpha:g}"


@dataclass(frozen=True)
class Trial:
    """A choice and the logits SQNR that it gave."""

    choice: RangeChoice
    sqnr_db: float


def choose(
    methods: Sequence[RangeChoice], alphas: Sequence[float], score: Callable[[RangeChoice], float]
) -> tuple[RangeChoice, tuple[Trial, ...]]:
    """Return the choice with the best score, and all trials: first ``methods``, then ``alphas`` on the best of them.

    ``score`` gives logits SQNR in dB. A later choice must gain 0.25 dB over the best before it, so ``methods`` come
    simplest first. A score of NaN never wins.
    """
    trials = [Trial(choice, score(choice)) for choice in methods]
    best = trials[0]
    for trial in trials[1:]:
        best = trial if _better(trial, best) else best
    for choice in [RangeChoice(best.choice.method, best.choice.percent, alpha) for alpha in alphas]:
        trials.append(Trial(choice, score(choice)))
        best = trials[-1] if _better(trials[-1], best) else best
    return best.choice, tuple(trials)


def _better(trial: Trial, best: Trial) -> bool:
    return trial.sqnr_db >= best.sqnr_db + WORTHWHILE_DB or math.isnan(best.sqnr_db)
