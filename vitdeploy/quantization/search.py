"""Choose how a plan's groups are treated: each step is proposed by layer errors and kept where the logits gain."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, get_args

from vitdeploy.graph.channel_places import bias_places, channel_axis, rows_are_private
from vitdeploy.graph.linear_groups import LinearGroup
from vitdeploy.measure.pairs import Speeds, gains
from vitdeploy.progress import SILENT, Progress
from vitdeploy.quantization.layer_error import Choices, LayerError
from vitdeploy.quantization.observers import METHODS
from vitdeploy.quantization.placement import INTEGER_PRECISIONS
from vitdeploy.quantization.realize import (
    WITH_ACTIVATIONS,
    attention_tensors,
    can_be_rounded_for_outputs,
    free_places,
)
from vitdeploy.quantization.rotation import Bases, Basis
from vitdeploy.quantization.scaling import is_matrix
from vitdeploy.records import PlanEntry, PrecisionPlan, RangeMethod, Rotated, Rounding, Treatment, Trial

Effort = Literal["fast", "default", "best"]
StepName = Literal["ranges", "scaling", "shift", "mul", "streams", "rotation", "rounding", "bias"]
STEPS: tuple[StepName, ...] = get_args(StepName)
AUTOMATIC: tuple[StepName, ...] = tuple(step for step in STEPS if step != "streams")
"""What is tried unless steps are named. A turned residual stream also turns the features in front of the head."""
ALPHAS = (0.25, 0.5, 0.65, 0.8, 1.0)
FP8_ALPHA = 0.5
WHOLE_RANGE = Treatment(ranges="minmax")
"""How convolutions start, and stay: clipping their tensors cost PVT v2 B1 2 dB, by percentile as by least error."""
WORTHWHILE_DB = 0.25
"""A step must gain that much in the logits: less is noise of the images that it was measured on."""
MOST_LOSS_DB = 1.0
ENOUGH_DB = 35.0
"""A step that makes the graph faster may lose that much, or whatever leaves that many decibels."""
WORTH_A_NODE_DB = 1.0
"""A step that puts nodes into the graph, which cost time, must gain more."""
WORTH_A_ROTATION_DB = 1.0
"""A rotation rounds every weight and activation anew, which alone moves the logits by half a decibel or so."""
LEAST_GAIN_OF_MUL_DB = 6.0
"""A Mul in front of a linear must leave that much less error in the linear's outputs."""
_WITHIN_A_GROUP_DB = 0.2
MOST_WEIGHT_PRODUCTS = 3e10
"""Weights of larger graphs are rotated, and rounded together, with effort ``best`` only, for the time it takes."""


@dataclass(frozen=True)
class SearchOptions:
    """What may be tried.

    methods: Ranges to choose among; one: that one is taken.
    percent: For ``percentile``.
    scaling: ``auto`` chooses an alpha for each group, ``off`` does without, a number is the alpha of all.
    rounding: ``auto`` tries both ways, else the one to take.
    steps: Which steps may be tried beside those that the two before leave open.
    effort: ``fast`` trusts the layer errors and tries nothing on images, ``default`` tries each step once within a
        budget of multiplications, ``best`` tries all of them on more images. What is tried never depends on a clock.
    """

    methods: tuple[RangeMethod, ...] = METHODS
    percent: float = 99.99
    scaling: Literal["auto", "off"] | float = "auto"
    rounding: Literal["auto"] | Rounding = "auto"
    steps: frozenset[StepName] = frozenset(AUTOMATIC)
    effort: Effort = "default"

    @property
    def start(self) -> Treatment:
        """The treatment that everything else is compared with."""
        alpha = None if isinstance(self.scaling, str) else float(self.scaling)
        rounding: Rounding = "nearest" if self.rounding == "auto" else self.rounding
        return Treatment(ranges=self.methods[0], percent=self.percent, scaling=alpha, rounding=rounding)


@dataclass(frozen=True)
class Step:
    """A change to a plan. ``propose`` returns the changed plan, or None where there is nothing to change.

    ``by_layer_error``: the errors of layers alone can tell whether it is worth it. ``enough_db``: with that much it is
    kept whatever it loses. ``for_speed``: it must be faster too, where that can be timed.
    """

    name: str
    least_gain_db: float
    propose: Callable[[PrecisionPlan], PrecisionPlan | None]
    by_layer_error: bool = True
    enough_db: float = math.inf
    for_speed: bool = False


@dataclass(frozen=True)
class Wider:
    """A plan with more in 8 bits, of which a step takes over the groups that are named."""

    step: str
    plan: PrecisionPlan
    groups: frozenset[str]


@dataclass(frozen=True)
class Found:
    """The plan that was found, and what was tried on the way."""

    plan: PrecisionPlan
    trials: tuple[Trial, ...] = ()


@dataclass
class Proposals:
    """Proposes treatments for the groups of a plan that have none, from layer errors.

    Convolutions with a kernel or groups get the whole range of their tensors and nothing else, the patch embedding, and
    linears whose channels are spread over several axes, the ranges of least error of the tensor. ``wider``: plans with
    more in 8 bits, the last of the steps.
    """

    bases: Bases
    options: SearchOptions
    wider: Sequence[Wider] = ()
    _errors: dict[tuple[tuple[Rotated, ...], str], LayerError] = field(default_factory=dict)

    def start(self, plan: PrecisionPlan) -> PrecisionPlan:
        """Return the plan in which every group without a treatment has the first one."""
        self._open = {entry.group for entry in plan.entries if _needs_treatment(entry)}
        integers = {entry.group for entry in plan.entries if entry.precision in INTEGER_PRECISIONS}
        self._all_open = self._open == integers
        prepared = self.bases.plain.prepared
        self._convolve = {group.name for group in prepared.linears if group.convolves}
        self._fixed = attention_tensors(plan, {attention.name: attention for attention in prepared.attentions})
        self._take(self.bases.of(plan.rotated, self._fixed))
        return _changed(plan, self._open, self._start)

    def _start(self, entry: PlanEntry) -> Treatment:
        return WHOLE_RANGE if entry.group in self._convolve else self.options.start

    def _take(self, basis: Basis) -> None:
        """Go on with the groups of this basis."""
        self._basis, shapes = basis, basis.prepared.shapes
        self._groups = {
            group.name: group
            for group in basis.prepared.linears
            if channel_axis(group, shapes) is not None and all(map(is_matrix, group.linears))
        }
        # errors hold weights: those of a basis that was tried in vain go
        self._errors = {key: error for key, error in self._errors.items() if key[0] in ((), basis.rotated)}

    def steps(self) -> Iterator[Step]:
        """Yield the steps that the options leave open, cheapest first."""
        allowed, free_scaling = self.options.steps, self.options.scaling == "auto"
        if "ranges" in allowed and len(self.options.methods) > 1:
            yield self._step("ranges of least error", WORTHWHILE_DB, self._ranges)
        if "scaling" in allowed and free_scaling:
            yield self._step("channel scaling", WORTHWHILE_DB, self._scaling)
        if "shift" in allowed and self.options.scaling != "off":
            yield self._step("channel shift", WORTHWHILE_DB, self._shift)
        if "mul" in allowed and self.options.scaling != "off":
            yield self._step("scaling by Muls", WORTH_A_NODE_DB, self._muls)
        if self._all_open and self._weights_are_few():
            if "streams" in allowed:
                yield self._turn("rotation of residual streams", "stream")
            if "rotation" in allowed:
                yield self._turn("rotation of values", "values")
        if "rounding" in allowed and self.options.rounding == "auto" and self._weights_are_few():
            yield self._step("rounding by GPTQ", WORTHWHILE_DB, self._rounding, by_layer_error=False)
        if "bias" in allowed:
            yield self._step("bias correction", WORTHWHILE_DB, self._bias, by_layer_error=False)
        for wider in self.wider:
            widen = partial(self._more, wider)
            yield Step(wider.step, -MOST_LOSS_DB, widen, by_layer_error=False, enough_db=ENOUGH_DB, for_speed=True)

    def _more(self, wider: Wider, plan: PrecisionPlan) -> PrecisionPlan | None:
        """Return the plan with what of the wider one's groups it has not in 8 bits, with ranges of least error."""
        integers = {entry.group: entry for entry in wider.plan.entries if entry.precision in WITH_ACTIVATIONS}
        ranges: RangeMethod = "mse" if "mse" in self.options.methods else self.options.methods[0]
        least_error = self.options.start.model_copy(update={"ranges": ranges})

        def widened(entry: PlanEntry) -> PlanEntry:
            if entry.group not in wider.groups & integers.keys() or entry.precision in WITH_ACTIVATIONS:
                return entry
            treatment = WHOLE_RANGE if entry.group in self._convolve else least_error
            return integers[entry.group].model_copy(update={"treatment": treatment})

        entries = tuple(map(widened, plan.entries))
        whole = integers.keys() <= {entry.group for entry in entries if entry.precision in WITH_ACTIVATIONS}
        profile = wider.plan.profile if whole else f"{plan.profile} + {wider.step}"
        return None if entries == plan.entries else plan.model_copy(update={"entries": entries, "profile": profile})

    def _turn(self, name: str, what: Rotated) -> Step:
        return self._step(name, WORTH_A_ROTATION_DB, partial(self._rotation, what), by_layer_error=False)

    def _step(
        self,
        name: str,
        least_gain_db: float,
        propose: Callable[[PrecisionPlan], PrecisionPlan | None],
        *,
        by_layer_error: bool = True,
    ) -> Step:
        def on_its_basis(plan: PrecisionPlan) -> PrecisionPlan | None:
            self._take(self.bases.of(plan.rotated, self._fixed))
            return propose(plan)

        return Step(name, least_gain_db, on_its_basis, by_layer_error)

    def _ranges(self, plan: PrecisionPlan) -> PrecisionPlan | None:
        choices = Choices(self.options.methods, self.options.percent)

        def treat(entry: PlanEntry) -> Treatment:
            if entry.precision == "fp8":
                return _treatment(entry)
            if entry.group in self._convolve:
                return _treatment(entry)
            if entry.group not in self._groups:
                return _treatment(entry).model_copy(update={"ranges": "mse"})
            return self._best(entry, choices)

        return _proposal(plan, self._open, treat)

    def _scaling(self, plan: PrecisionPlan) -> PrecisionPlan | None:
        def treat(entry: PlanEntry) -> Treatment:
            if not self._takes(entry, "scale"):
                return _treatment(entry)
            if entry.precision == "fp8":
                return _scaled(_treatment(entry), FP8_ALPHA, "constants")
            found = self._best(entry, Choices(self._methods(entry), self.options.percent, ALPHAS))
            return _scaled(found, found.scaling, "constants")

        return _proposal(plan, self._open, treat)

    def _shift(self, plan: PrecisionPlan) -> PrecisionPlan | None:
        def treat(entry: PlanEntry) -> Treatment:
            group = self._groups.get(entry.group)
            if group is None or entry.precision == "fp8" or bias_places(group) is None:
                return _treatment(entry)
            if not self._takes(entry, "shift"):
                return _treatment(entry)
            alphas = ALPHAS if self.options.scaling == "auto" and self._takes(entry, "scale") else ()
            choices = Choices(self._methods(entry), self.options.percent, alphas, shifted=True)
            found = self._best(entry, choices)
            return _scaled(found, found.scaling, "constants") if found.shifted else _treatment(entry)

        return _proposal(plan, self._open, treat)

    def _muls(self, plan: PrecisionPlan) -> PrecisionPlan | None:
        def treat(entry: PlanEntry) -> Treatment:
            group, before = self._groups.get(entry.group), _treatment(entry)
            if group is None or entry.precision == "fp8" or self._takes(entry, "scale"):
                return before
            if not rows_are_private(group):
                return before
            alphas = ALPHAS if before.scaling is None else (before.scaling,)
            found = self._best(entry, Choices(self._methods(entry), self.options.percent, alphas))
            if self._error(group).gain_db(before.model_copy(update={"scaling": None}), found) < LEAST_GAIN_OF_MUL_DB:
                return before
            return _scaled(found, found.scaling, "mul")

        return _proposal(plan, self._open, treat)

    def _rotation(self, what: Rotated, plan: PrecisionPlan) -> PrecisionPlan | None:
        """Turn channels, and choose anew how the groups that read them are treated."""
        if what in plan.rotated:
            return None
        before = set(self._basis.turned)
        rotated = tuple(one for one in get_args(Rotated) if one in (*plan.rotated, what))
        self._take(self.bases.of(rotated, self._fixed))
        if what not in self._basis.rotated:
            return None
        fresh = self._basis.turned.keys() - before

        def treat(entry: PlanEntry) -> Treatment:
            group = self._groups.get(entry.group)
            if group is None or str(group.activation.name) not in fresh or entry.precision == "fp8":
                return _treatment(entry)
            allowed, scaling = self.options.steps, self.options.scaling
            alphas = ALPHAS if "scaling" in allowed and scaling == "auto" and self._takes(entry, "scale") else ()
            shifted = "shift" in allowed and scaling != "off" and bias_places(group) is not None
            methods = self.options.methods if "ranges" in allowed else self.options.methods[:1]
            shifted = shifted and self._takes(entry, "shift")
            choices = Choices(methods, self.options.percent, alphas, shifted=shifted)
            found = self._error(group).best(choices, self.options.start, least_gain_db=_WITHIN_A_GROUP_DB)
            return _scaled(found, found.scaling, "constants")

        changed = _changed(plan, self._open, treat)
        return changed.model_copy(update={"rotated": rotated})

    def _weights_are_few(self) -> bool:
        """Return whether work on all weights is quick or worth the effort: up to K³ + K²·N multiplications a linear."""
        linears = [linear for name in self._open & self._groups.keys() for linear in self._groups[name].linears]
        products = sum(float(one.in_features) ** 2 * (one.in_features + one.out_features) for one in linears)
        return self.options.effort == "best" or products <= MOST_WEIGHT_PRODUCTS

    def _rounding(self, plan: PrecisionPlan) -> PrecisionPlan | None:
        def treat(entry: PlanEntry) -> Treatment:
            group = self._groups.get(entry.group)
            possible = group is not None and entry.precision == "int8" and can_be_rounded_for_outputs(group)
            return _treatment(entry).model_copy(update={"rounding": "gptq" if possible else "nearest"})

        return _proposal(plan, self._open, treat)

    def _bias(self, plan: PrecisionPlan) -> PrecisionPlan | None:
        def treat(entry: PlanEntry) -> Treatment:
            group = self._groups.get(entry.group)
            possible = group is not None and entry.precision == "int8" and bias_places(group) is not None
            return _treatment(entry).model_copy(update={"bias_corrected": possible})

        return _proposal(plan, self._open, treat)

    def _takes(self, entry: PlanEntry, kind: Literal["scale", "shift"]) -> bool:
        group = self._groups.get(entry.group)
        return group is not None and free_places(group, self._basis.prepared.shapes, kind, self._fixed) is not None

    def _methods(self, entry: PlanEntry) -> tuple[RangeMethod, ...]:
        """Return the ranges to try with changed channels: those before, and the two that suit most."""
        if len(self.options.methods) == 1:
            return self.options.methods
        return tuple(dict.fromkeys((_treatment(entry).ranges, "minmax", "mse")))

    def _best(self, entry: PlanEntry, choices: Choices) -> Treatment:
        error = self._error(self._groups[entry.group])
        return error.best(choices, _treatment(entry), least_gain_db=_WITHIN_A_GROUP_DB)

    def _error(self, group: LinearGroup) -> LayerError:
        key = self._basis.rotated, group.name
        if key not in self._errors:
            self._errors[key] = LayerError(group, self._basis.activation(group), self.bases.form)
        return self._errors[key]


def propose(plan: PrecisionPlan, proposals: Proposals) -> PrecisionPlan:
    """Return the plan that the layer errors alone suggest; nothing is tried on images."""
    plan = proposals.start(plan)
    for step in proposals.steps():
        if step.by_layer_error:
            plan = step.propose(plan) or plan
    return plan


def search(
    plan: PrecisionPlan,
    proposals: Proposals,
    score: Callable[[PrecisionPlan], float],
    progress: Progress = SILENT,
    time_pair: Callable[[PrecisionPlan, PrecisionPlan], Speeds] | None = None,
) -> Found:
    """Return the plan after the steps that gained in ``score``, logits SQNR in dB, each tried on the plan before it.

    A step is kept where it gains its least gain, or leaves enough; a score of NaN never wins. A step for speed must
    also be faster by ``time_pair`` (before, after), which is asked where the logits allow the step; without it they
    decide alone.
    """
    plan = proposals.start(plan)
    steps = list(proposals.steps())
    with progress.task("trying steps of quantization", total=len(steps) + 1) as task:
        task.describe("as it is")
        best = score(plan)
        trials = [Trial(step=_start_name(proposals.options.start), sqnr_db=best, kept=True)]
        task.advance()
        for step in steps:
            task.describe(step.name)
            proposed = step.propose(plan)
            if proposed is not None:
                found = score(proposed)
                least = min(best + step.least_gain_db, step.enough_db)
                kept = found >= least or (math.isnan(best) and not math.isnan(found))
                speeds: Speeds = ()
                if kept and step.for_speed and time_pair is not None:
                    speeds = time_pair(plan, proposed)
                    kept = gains(speeds)
                trials.append(Trial(step=step.name, sqnr_db=found, kept=kept, speeds=speeds))
                plan, best = (proposed, found) if kept else (plan, best)
            task.advance()
    return Found(plan, tuple(trials))


def _start_name(treatment: Treatment) -> str:
    name = f"percentile {treatment.percent:g}" if treatment.ranges == "percentile" else treatment.ranges
    return name if treatment.scaling is None else f"{name}, channels scaled with alpha {treatment.scaling:g}"


def _needs_treatment(entry: PlanEntry) -> bool:
    return entry.treatment is None and entry.precision in WITH_ACTIVATIONS


def _treatment(entry: PlanEntry) -> Treatment:
    return entry.treatment or Treatment()


def _scaled(treatment: Treatment, alpha: float | None, by: Literal["constants", "mul"]) -> Treatment:
    return treatment.model_copy(update={"scaling": alpha, "scaled_by": None if alpha is None else by})


def _proposal(plan: PrecisionPlan, groups: set[str], treat: Callable[[PlanEntry], Treatment]) -> PrecisionPlan | None:
    changed = _changed(plan, groups, treat)
    return None if changed == plan else changed


def _changed(plan: PrecisionPlan, groups: set[str], treat: Callable[[PlanEntry], Treatment]) -> PrecisionPlan:
    entries = tuple(
        entry.model_copy(update={"treatment": treat(entry)}) if entry.group in groups else entry
        for entry in plan.entries
    )
    return plan.model_copy(update={"entries": entries})
