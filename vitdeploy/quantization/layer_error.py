"""How much error a treatment leaves in the outputs of one group of linears, expected from what was observed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitdeploy.graph.linear_groups import LinearGroup
from vitdeploy.quantization.activation import Activation
from vitdeploy.quantization.affine import Grid, pairwise_scale, scale_of
from vitdeploy.quantization.placement import Format, activation_grid
from vitdeploy.quantization.scaling import matrix, smoothing_factor, weight_amax
from vitdeploy.records import RangeMethod, Treatment

_VALUES = 1 << 17
"""So many sampled values tell the error of an activation to a few percent."""


@dataclass(frozen=True)
class Choices:
    """What a group may be treated with, simplest first.

    ``scaled_by``: where its factors can go, None: nowhere. ``shifted``: whether it may be shifted.
    """

    methods: tuple[RangeMethod, ...]
    percent: float = 99.99
    alphas: tuple[float, ...] = ()
    shifted: bool = False


class LayerError:
    """The expected squared error of a group's outputs, summed over outputs, for one row of its input.

    Errors of channels and of weights count as independent:

        Σ_j ‖w_j‖² · mean (x_j − q(x_j))²  +  Σ_j mean x_j² · Σ_n δ_n² / 12,

    with w_j the row of channel j in all weights, q the rounding of the activation over a sample of rows, and δ_n the
    step of output n's weights.
    """

    def __init__(self, group: LinearGroup, activation: Activation, form: Format) -> None:
        self.form = form
        self.activation = activation.first(max(1, _VALUES // max(1, activation.lo.size)))
        self.weights = [matrix(linear) for linear in group.linears]
        self.weight_amax = weight_amax(group)
        self.norms = np.sum([np.square(weight, dtype=np.float64).sum(axis=1) for weight in self.weights], axis=0)
        self._steps: dict[tuple[float | None, bool], float] = {}

    def best(self, choices: Choices, current: Treatment, *, least_gain_db: float) -> Treatment:
        """Return the treatment with the least error; one that comes later must gain ``least_gain_db``."""
        best, least = current, self.of(current)
        for shifted in (False, True) if choices.shifted else (current.shifted,):
            for alpha in (None, *choices.alphas) if choices.alphas else (current.scaling,):
                for method in choices.methods:
                    found = current.model_copy(
                        update={"ranges": method, "percent": choices.percent, "scaling": alpha, "shifted": shifted}
                    )
                    error = self.of(found)
                    if error < least * 10 ** (-least_gain_db / 10):
                        best, least = found, error
        return best

    def of(self, treatment: Treatment) -> float:
        """Return the error that a treatment leaves."""
        activation, norms, factor = self.activation, self.norms, None
        if treatment.shifted:
            activation = activation.shifted(activation.middle)
        if treatment.scaling is not None:
            factor = smoothing_factor(activation.channel_amax, self.weight_amax, treatment.scaling)
            activation = activation.scaled(factor)
            norms = norms * np.square(factor, dtype=np.float64)
        grid = activation_grid(activation.interval(treatment.ranges, treatment.percent), self.form)
        steps = self._weight_steps(treatment, factor)
        return float(norms @ rounding_error(activation, grid)) + float(activation.mean_square.sum()) * steps / 12

    def gain_db(self, before: Treatment, after: Treatment) -> float:
        """Return by how many dB one treatment leaves less error than another."""
        old, new = self.of(before), self.of(after)
        return 10 * float(np.log10(old / new)) if old > 0 and new > 0 else 0.0

    def _weight_steps(self, treatment: Treatment, factor: NDArray[np.float32] | None) -> float:
        """Return the sum of the squared steps of all outputs' weights."""
        key = (treatment.scaling, treatment.shifted)
        if key not in self._steps:
            total = 0.0
            for weight in self.weights:
                rows = weight if factor is None else weight * factor[:, None]
                step = pairwise_scale(rows) if self.form.clearance else scale_of(np.abs(rows).max(axis=0), steps=127)
                total += float(np.square(step, dtype=np.float64).sum())
            self._steps[key] = total
        return self._steps[key]


def rounding_error(activation: Activation, grid: Grid) -> NDArray[np.float64]:
    """Return the mean squared error per channel of rounding the sampled rows to a grid, [C]."""
    rows = activation.rows
    if not len(rows):
        return np.full(activation.lo.size, grid.scale**2 / 12)
    error = rows - grid.rounded(rows)
    return np.square(error, dtype=np.float64).mean(axis=0)
