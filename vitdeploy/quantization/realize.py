"""Carry out a plan: from a float graph, a plan and observed ranges to a graph with integers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy.errors import UsageError
from vitdeploy.graph.attentions import Attention
from vitdeploy.graph.channel_places import (
    Kind,
    Places,
    Shapes,
    bias_places,
    channel_axis,
    find_places,
    rows_are_private,
)
from vitdeploy.graph.convolve_linears import ConvolveLinears
from vitdeploy.graph.fp16 import ConvertToFloat16
from vitdeploy.graph.insert_qdq import InsertQDQ, QuantizedTensor
from vitdeploy.graph.keep_integer_matmuls import KeepIntegerMatMuls
from vitdeploy.graph.linear_groups import Linear, LinearGroup, path_of
from vitdeploy.graph.quantize_before_moves import QuantizeBeforeMoves
from vitdeploy.graph.transpose_factors_last import TransposeFactorsLast
from vitdeploy.quantization.activation import Activation
from vitdeploy.quantization.bias_correction import correct_biases
from vitdeploy.quantization.layer_scale import fold_layer_scales
from vitdeploy.quantization.observers import TensorObserver
from vitdeploy.quantization.placement import (
    INTEGER_PRECISIONS,
    Format,
    QuantizedGroup,
    QuantizedTensors,
    activation_grid,
    place,
    quantize_weight,
)
from vitdeploy.quantization.prepared import Prepared
from vitdeploy.quantization.rotation import Bases, observed
from vitdeploy.quantization.rounding import round_for_outputs
from vitdeploy.quantization.scaling import (
    is_matrix,
    matrix,
    scale_by_constants,
    scale_by_mul,
    shift_by_constants,
    smoothing_factor,
    weight_amax,
)
from vitdeploy.records import NodePrecision, PlanEntry, PrecisionPlan, Treatment

WITH_ACTIVATIONS = ("int8", "fp8")


@dataclass(frozen=True)
class Realized:
    """A graph with integers, and the plan as it was carried out (what of each treatment was possible).

    ``before`` is the float graph in the same basis, so that its residual streams are those of ``model``.
    """

    model: ir.Model
    plan: PrecisionPlan
    before: Prepared


def observed_tensors(prepared: Prepared, plan: PrecisionPlan, form: Format | None = None) -> dict[str, int | None]:
    """Return the tensors whose range the plan needs, each with the axis of its channels where a linear reads it.

    Without a ``form``, what a plan for any runtime needs.
    """
    wanted = {entry.group for entry in plan.entries if entry.precision in WITH_ACTIVATIONS}
    values: list[ir.Value] = []
    axes: dict[str, int | None] = {}
    for group in prepared.linears:
        if group.name in wanted:
            axes[str(group.activation.name)] = channel_axis(group, prepared.shapes)
    for attention in prepared.attentions:
        if attention.name in wanted:
            if form is None or not form.openvino:
                p = attention.softmax.outputs[0]
                values.extend(value for value, _ in attention.factors if value is not p)
            if form is None or form.openvino:
                values.extend(value for value, _ in attention.computed())
    if form is None or form.rounds_convolved:
        values.extend(value for group in prepared.linears if group.name in wanted for value in convolved(group))
    return {**dict.fromkeys(str(value.name) for value in values), **axes}


class Realizer:
    """Carries out plans for one graph and what was observed of it; a weight of the plan before is not rounded again."""

    def __init__(self, prepared: Prepared, observers: Mapping[str, TensorObserver], form: Format) -> None:
        self.prepared, self.observers, self.form = prepared, observers, form
        self.bases = Bases(prepared, observers, form)
        self._rounded: dict[bytes, QuantizedTensor] = {}
        self._before = self._rounded

    def realize(self, plan: PrecisionPlan) -> Realized:
        """Return a copy of the prepared graph in which the plan's groups are integers; the original is untouched.

        A group whose entry has no treatment gets the default one. A rotation, scaling or shift that no constants of the
        graph take is left out, and the returned plan says so.

        Raises:
            CalibrationError: The range of a tensor was not observed.
            GraphError: A weight is not finite.
            UsageError: Attention, which has no weights, is to be quantized in weights only.
        """
        self._before, self._rounded = self._rounded, {}
        fixed = attention_tensors(plan, {attention.name: attention for attention in self.prepared.attentions})
        basis = self.bases.of(plan.rotated, fixed)
        copy = basis.prepared.clone()
        groups = {group.name: group for group in copy.linears}
        attentions = {attention.name: attention for attention in copy.attentions}
        changed: list[tuple[LinearGroup, NodePrecision, Activation | None, Treatment]] = []
        others: list[QuantizedTensors] = []
        entries: list[PlanEntry] = []
        for entry in plan.entries:
            treatment = entry.treatment or Treatment()
            if entry.precision not in INTEGER_PRECISIONS:
                entries.append(entry.model_copy(update={"treatment": None}))
            elif entry.group in attentions:
                others.append(self._attention(attentions[entry.group], entry.precision, treatment))
                entries.append(entry.model_copy(update={"treatment": ranges_only(treatment)}))
            else:
                group, activation = groups[entry.group], None
                if not all(map(is_matrix, group.linears)):
                    treatment = ranges_only(treatment)
                fold_layer_scales(copy.graph.graph, group, self.form)
                if entry.precision in WITH_ACTIVATIONS:
                    activation = basis.activation(group)
                    change = _Change(copy.graph.graph, self.prepared.shapes, fixed)
                    group, activation, treatment = change.apply(group, activation, treatment)
                    fits = entry.precision == "int8" and can_be_rounded_for_outputs(group) and activation.count
                    if not fits or activation.lo.size != group.linears[0].in_features:
                        treatment = treatment.model_copy(update={"rounding": "nearest"})
                    if self.form.rounds_convolved:
                        others += [self._convolved(value, entry, treatment) for value in convolved(group)]
                changed.append((group, entry.precision, activation, treatment))
                kept = treatment if activation is not None else None
                entries.append(entry.model_copy(update={"treatment": kept}))
        # only now are all weights final: scaling one group may go into the weights of another
        quantized = []
        while changed:  # the rows of one at a time are held
            quantized.append(self._group(copy.graph.graph, *changed.pop(0)))
        for placement in place(quantized, self.form, others):
            InsertQDQ(placement)(copy.graph)
        if self.form.rounds_convolved:
            ConvolveLinears()(copy.graph)
        if self.form.cpu:
            KeepIntegerMatMuls()(copy.graph)
        if self.form.openvino:
            TransposeFactorsLast()(copy.graph)
            integers = {entry.group for entry in plan.entries if entry.precision in WITH_ACTIVATIONS}
            in_floats = [found.context.outputs[0] for name, found in attentions.items() if name not in integers]
            QuantizeBeforeMoves(frozenset(in_floats))(copy.graph)
        done = {"entries": tuple(entries), "cpu": self.form.processor, "rotated": basis.rotated}
        return Realized(copy.graph, plan.model_copy(update=done), basis.prepared)

    def _group(
        self,
        graph: ir.Graph,
        group: LinearGroup,
        precision: NodePrecision,
        activation: Activation | None,
        treatment: Treatment,
    ) -> QuantizedGroup:
        """Round the weights of a group, and correct its biases where the treatment says so."""
        if activation is None:
            weights = {str(linear.weight.name): self._weight(linear, precision) for linear in group.linears}
            return QuantizedGroup(group, precision, weights)
        interval = activation.interval(treatment.ranges, treatment.percent)
        rows = None
        if treatment.rounding == "gptq":
            rows = activation_grid(interval, self.form).rounded(activation.rows)
        weights = {str(linear.weight.name): self._weight(linear, precision, rows) for linear in group.linears}
        if treatment.bias_corrected and precision == "int8":
            correct_biases(graph, group, activation, activation_grid(interval, self.form), weights)
        return QuantizedGroup(group, precision, weights, interval)

    def _weight(
        self, linear: Linear, precision: NodePrecision, rows: NDArray[np.float32] | None = None
    ) -> QuantizedTensor:
        """Round a weight, with ``rows`` [n, in_features] so that their products keep their values."""
        assert linear.weight.const_value is not None
        digest = hashlib.blake2b(np.ascontiguousarray(linear.weight.const_value.numpy()).data, digest_size=16)
        if rows is not None:
            digest.update(np.ascontiguousarray(rows).data)
        digest.update(f"{precision == 'fp8'} {linear.channel_axis} {linear.weight.name}".encode())
        key = digest.digest()
        found = self._rounded.get(key) or self._before.get(key)
        if found is None:
            nearest = quantize_weight(linear, self.form, fp8=precision == "fp8")
            found = nearest if rows is None else _rounded_for(linear, nearest, rows, self.form)
        self._rounded[key] = found
        return found

    def _convolved(self, value: ir.Value, entry: PlanEntry, treatment: Treatment) -> QuantizedTensors:
        """Return what a convolution gives, with its range."""
        interval = Activation.of(observed(self.observers, value, entry.group)).interval(
            treatment.ranges, treatment.percent
        )
        uses = tuple((use.node, use.idx) for use in value.uses())
        return QuantizedTensors(entry.precision, ((value, uses, interval),))

    def _attention(self, attention: Attention, precision: NodePrecision, treatment: Treatment) -> QuantizedTensors:
        """Return q, kᵀ, p and v with their ranges.

        p is a softmax, so TensorRT's range is 0 … 1; that of OpenVINO is what was observed, because over many tokens
        most of p lies within a few steps of 0 otherwise.
        """
        if precision == "int8-weight-only":
            raise UsageError(f"group {attention.name!r} holds no weights, so 'int8-weight-only' means nothing for it")
        tensors = []
        factors = attention.computed() if self.form.openvino else [(value, (use,)) for value, use in attention.factors]
        for value, uses in factors:
            if value is attention.softmax.outputs[0] and not self.form.openvino:
                interval = (0.0, 1.0)
            else:
                observer = observed(self.observers, value, attention.name)
                interval = Activation.of(observer).interval(treatment.ranges, treatment.percent)
            tensors.append((value, uses, interval))
        return QuantizedTensors(precision, tuple(tensors))


def convolved(group: LinearGroup) -> list[ir.Value]:
    """Return what the convolutions of a group give."""
    return [linear.node.outputs[0] for linear in group.linears if linear.node.op_type == "Conv"]


def can_be_rounded_for_outputs(group: LinearGroup) -> bool:
    """Return whether all weights of a group are matrices that nothing else reads."""
    return all(is_matrix(linear) and len(linear.weight.uses()) == 1 for linear in group.linears)


def _rounded_for(linear: Linear, nearest: QuantizedTensor, rows: NDArray[np.float32], form: Format) -> QuantizedTensor:
    found = round_for_outputs(matrix(linear), nearest.scale, rows, pairwise=form.clearance)
    values = found if linear.channel_axis == 1 else np.ascontiguousarray(found.T)
    return replace(nearest, values=values.reshape(nearest.values.shape))


def ranges_only(treatment: Treatment) -> Treatment:
    """Return a treatment that says how ranges are taken, and nothing else."""
    return Treatment(ranges=treatment.ranges, percent=treatment.percent)


@dataclass(frozen=True)
class _Change:
    """Scales and shifts groups of one graph; ``fixed`` are tensors whose ranges were taken as they are."""

    graph: ir.Graph
    shapes: Shapes
    fixed: frozenset[str]

    def apply(
        self, group: LinearGroup, activation: Activation, treatment: Treatment
    ) -> tuple[LinearGroup, Activation, Treatment]:
        """Change a group in place; return what reads the changed activation, that, and what of it was possible."""
        if treatment.shifted and bias_places(group) is not None and (places := self._places(group, "shift")):
            shift = activation.middle
            shift_by_constants(self.graph, group, shift, places)
            activation = activation.shifted(shift)
        else:
            treatment = treatment.model_copy(update={"shifted": False})
        if treatment.scaling is None:
            return group, activation, treatment.model_copy(update={"scaled_by": None})
        factor = smoothing_factor(activation.channel_amax, weight_amax(group), treatment.scaling)
        if treatment.scaled_by != "mul" and (places := self._places(group, "scale")):
            scale_by_constants(self.graph, group, factor, places)
            return group, activation.scaled(factor), treatment.model_copy(update={"scaled_by": "constants"})
        axis = channel_axis(group, self.shapes)
        if treatment.scaled_by == "mul" and axis is not None and rows_are_private(group):
            return scale_by_mul(self.graph, group, factor, axis), activation.scaled(factor), treatment
        return group, activation, treatment.model_copy(update={"scaling": None, "scaled_by": None})

    def _places(self, group: LinearGroup, kind: Kind) -> Places | None:
        return free_places(group, self.shapes, kind, self.fixed)


def free_places(group: LinearGroup, shapes: Shapes, kind: Kind, fixed: frozenset[str]) -> Places | None:
    """Return the constants that take a change of a group's channels, without changing a tensor of ``fixed``."""
    places = find_places(group, shapes, kind)
    return None if places is None or fixed & places.tensors.keys() else places


def attention_tensors(plan: PrecisionPlan, attentions: Mapping[str, Attention]) -> frozenset[str]:
    """Return the names of the factors of attentions that the plan quantizes."""
    chosen = [entry.group for entry in plan.entries if entry.precision in WITH_ACTIVATIONS]
    return frozenset(str(value.name) for name in chosen if name in attentions for value, _ in attentions[name].factors)


def finish(realized: Realized, float_model: ir.Model) -> Realized:
    """Convert the remainder to FP16 where the plan says so, in place; nodes left in FP32 become entries of the plan.

    ``float_model`` is the graph before quantization: an entry names its nodes, so that the plan can be replayed.
    """
    plan = realized.plan
    if plan.remainder != "fp16":
        return realized
    keep = {name for entry in plan.entries if entry.precision == "fp32" for name in entry.nodes}
    conversion = ConvertToFloat16(keep)
    conversion(realized.model)
    originals = {str(node.name): node for node in float_model.graph}
    islands = {name: reason for name, reason in conversion.islands.items() if name in originals and name not in keep}
    entries = [_as_island(entry, islands) for entry in plan.entries]
    named = {name for entry in entries for name in entry.nodes}
    by_place: dict[tuple[str, str], list[str]] = {}
    for name, reason in islands.items():
        if name not in named:
            by_place.setdefault((path_of(originals[name]) or name, reason), []).append(name)
    taken = {entry.group for entry in entries}
    for (path, reason), nodes in by_place.items():
        group = _free(f"{path} (FP32)", taken)
        entries.append(PlanEntry(group=group, nodes=tuple(nodes), precision="fp32", reason=reason))
    return replace(realized, plan=plan.model_copy(update={"entries": tuple(entries)}))


def _as_island(entry: PlanEntry, islands: Mapping[str, str]) -> PlanEntry:
    reasons = [islands[name] for name in entry.nodes if name in islands]
    if not reasons or entry.precision in INTEGER_PRECISIONS:
        return entry
    return entry.model_copy(update={"precision": "fp32", "reason": reasons[0]})


def _free(name: str, taken: set[str]) -> str:
    unique, number = name, 2
    while unique in taken:
        unique, number = f"{name} {number}", number + 1
    taken.add(unique)
    return unique
