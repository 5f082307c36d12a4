"""Carry out a plan: from a float graph, a plan and observed ranges to a graph with integers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitdeploy.errors import CalibrationError, UsageError
from vitdeploy.graph.attentions import Attention
from vitdeploy.graph.channel_places import Shapes, channel_axis, find_places, rows_are_private
from vitdeploy.graph.fp16 import ConvertToFloat16
from vitdeploy.graph.insert_qdq import InsertQDQ
from vitdeploy.graph.keep_integer_matmuls import KeepIntegerMatMuls
from vitdeploy.graph.linear_groups import LinearGroup, path_of, shapes_at_batch
from vitdeploy.quantization.choice import LEAST_GAIN_OF_MUL_DB, RangeChoice
from vitdeploy.quantization.equalization import (
    Scaled,
    gain_db,
    scale_by_mul,
    scale_freely,
    smoothing_factor,
    weight_amax,
)
from vitdeploy.quantization.observers import TensorObserver
from vitdeploy.quantization.placement import INTEGER_PRECISIONS, Format, QuantizedGroup, QuantizedTensors, place
from vitdeploy.quantization.prepared import Prepared
from vitdeploy.records import NodePrecision, PlanEntry, PrecisionPlan

_WITH_ACTIVATIONS = ("int8", "fp8")


@dataclass(frozen=True)
class Realized:
    """A graph with integers, and the plan as it was carried out (with the alpha of each group that was scaled)."""

    model: ir.Model
    plan: PrecisionPlan


def observed_tensors(prepared: Prepared, plan: PrecisionPlan) -> dict[str, int | None]:
    """Return the tensors whose range the plan needs, each with the axis of its channels where a linear reads it."""
    wanted = {entry.group for entry in plan.entries if entry.precision in _WITH_ACTIVATIONS}
    shapes = shapes_at_batch(prepared.graph, 2)
    values: list[ir.Value] = []
    axes: dict[str, int | None] = {}
    for group in prepared.linears:
        if group.name in wanted:
            axes[str(group.activation.name)] = channel_axis(group, shapes)
    for attention in prepared.attentions:
        if attention.name in wanted:
            values.extend(value for value, _ in _factors(attention) if value is not attention.softmax.outputs[0])
    return {**dict.fromkeys(str(value.name) for value in values), **axes}


def realize(
    prepared: Prepared,
    plan: PrecisionPlan,
    observers: Mapping[str, TensorObserver],
    choice: RangeChoice,
    form: Format,
) -> Realized:
    """Return a copy of a prepared graph in which the plan's groups are integers; the original is untouched.

    ``choice.alpha`` scales the channels of every group that can be; what a plan's entry says of it goes before that.
    Clips of scaled groups are the exact maxima of their scaled channels, because a histogram cannot be rescaled per
    channel.

    Raises:
        CalibrationError: The range of a tensor was not observed.
        GraphError: A weight is not finite.
        UsageError: Attention, which has no weights, is to be quantized in weights only.
    """
    copy = prepared.clone()
    groups = {group.name: group for group in copy.linears}
    attentions = {attention.name: attention for attention in copy.attentions}
    quantized: list[QuantizedGroup] = []
    others: list[QuantizedTensors] = []
    entries: list[PlanEntry] = []
    scaling = _Scaling(copy.graph.graph, shapes_at_batch(copy.graph, 2), _attention_tensors(plan, attentions))
    for entry in plan.entries:
        if entry.precision not in INTEGER_PRECISIONS:
            entries.append(entry)
            continue
        if entry.group in attentions:
            others.append(_quantized_attention(attentions[entry.group], entry.precision, observers, choice))
            entries.append(entry)
            continue
        group = groups[entry.group]
        if entry.precision not in _WITH_ACTIVATIONS:
            quantized.append(QuantizedGroup(group, entry.precision))
            entries.append(entry.model_copy(update={"equalization": None, "scaled_by": None}))
            continue
        observer = _observer(observers, group.activation, entry.group)
        clip = observer.clip(choice.method, percent=choice.percent)
        wanted = _wanted_scaling(entry, choice)
        scaled = scaling.apply(group, observer, clip, wanted) if wanted.alpha is not None else None
        if scaled is not None:
            group, clip = scaled.group, float(np.max(observer.channel_amax / scaled.factor))
        by = None if scaled is None else "constants" if scaled.tensors else "mul"
        quantized.append(QuantizedGroup(group, entry.precision, clip))
        used = None if scaled is None else wanted.alpha
        entries.append(entry.model_copy(update={"equalization": used, "scaled_by": by}))
    for placement in place(quantized, form, others):
        InsertQDQ(placement)(copy.graph)
    if form.cpu:
        KeepIntegerMatMuls()(copy.graph)
    return Realized(copy.graph, plan.model_copy(update={"entries": tuple(entries)}))


def _quantized_attention(
    attention: Attention, precision: NodePrecision, observers: Mapping[str, TensorObserver], choice: RangeChoice
) -> QuantizedTensors:
    """Return q, kᵀ, p and v with their clips; p is a softmax, whose range is known to be 0 … 1."""
    if precision == "int8-weight-only":
        raise UsageError(f"group {attention.name!r} holds no weights, so 'int8-weight-only' means nothing for it")
    tensors = []
    for value, use in _factors(attention):
        if value is attention.softmax.outputs[0]:
            clip = 1.0
        else:
            clip = _observer(observers, value, attention.name).clip(choice.method, percent=choice.percent)
        tensors.append((value, (use,), clip))
    return QuantizedTensors(precision, tuple(tensors))


def _factors(attention: Attention) -> Iterator[tuple[ir.Value, tuple[ir.Node, int]]]:
    for node in (attention.scores, attention.context):
        for index in (0, 1):
            value = node.inputs[index]
            assert value is not None
            yield value, (node, index)


def _observer(observers: Mapping[str, TensorObserver], value: ir.Value, group: str) -> TensorObserver:
    if str(value.name) not in observers:
        raise CalibrationError(f"the range of {value.name!r} (group {group!r}) was not calibrated: calibrate again")
    return observers[str(value.name)]


@dataclass(frozen=True)
class _WantedScaling:
    """The alpha of a group, and from which gain on a Mul of its own is worth it (infinite: never)."""

    alpha: float | None
    least_gain_of_mul_db: float = math.inf


def _wanted_scaling(entry: PlanEntry, choice: RangeChoice) -> _WantedScaling:
    if entry.equalization is not None:
        return _WantedScaling(entry.equalization, -math.inf if entry.scaled_by == "mul" else math.inf)
    return _WantedScaling(choice.alpha, LEAST_GAIN_OF_MUL_DB if choice.mul else math.inf)


@dataclass(frozen=True)
class _Scaling:
    """Scales the groups of one graph; ``fixed`` are tensors whose ranges were taken as they are."""

    graph: ir.Graph
    shapes: Shapes
    fixed: frozenset[str]

    def apply(self, group: LinearGroup, observer: TensorObserver, clip: float, wanted: _WantedScaling) -> Scaled | None:
        """Scale a group's channels in place; None where no constant takes the factor and a Mul gains too little."""
        channels, axis = observer.channel_amax, observer.axis
        if wanted.alpha is None or axis is None:
            return None
        factor = smoothing_factor(channels, weight_amax(group), wanted.alpha)
        places = find_places(group, self.shapes)
        if places is not None and not self.fixed & places.tensors.keys():
            return scale_freely(self.graph, group, factor, places)
        if rows_are_private(group) and gain_db(group, channels, factor, clip) >= wanted.least_gain_of_mul_db:
            return scale_by_mul(self.graph, group, factor, axis)
        return None


def _attention_tensors(plan: PrecisionPlan, attentions: Mapping[str, Attention]) -> frozenset[str]:
    """Return the names of the factors of attentions that the plan quantizes."""
    chosen = [entry.group for entry in plan.entries if entry.precision in _WITH_ACTIVATIONS]
    return frozenset(
        str(value.name) for name in chosen if name in attentions for value, _ in _factors(attentions[name])
    )


def finish(realized: Realized, float_model: ir.Model) -> Realized:
    """Convert the remainder to FP16 where the plan says so, in place; nodes left in FP32 become entries of the plan.

    ``float_model`` is the graph before quantization: an entry names its nodes, so that the plan can be replayed.
    """
    plan = realized.plan
    if plan.remainder == "fp32":
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
    return Realized(realized.model, plan.model_copy(update={"entries": tuple(entries)}))


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
