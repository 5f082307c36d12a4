"""Carry out a plan: from a float graph, a plan and observed ranges to a graph with integers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitdeploy.errors import CalibrationError, UsageError
from vitdeploy.graph.attentions import Attention
from vitdeploy.graph.fp16 import ConvertToFloat16
from vitdeploy.graph.insert_qdq import InsertQDQ
from vitdeploy.graph.linear_groups import LinearGroup, path_of
from vitdeploy.quantization.choice import RangeChoice
from vitdeploy.quantization.equalization import equalize, foldable_norm
from vitdeploy.quantization.observers import TensorObserver
from vitdeploy.quantization.placement import INTEGER_PRECISIONS, Format, QuantizedGroup, QuantizedTensors, place
from vitdeploy.quantization.prepared import Prepared
from vitdeploy.records import NodePrecision, PlanEntry, PrecisionPlan

_WITH_ACTIVATIONS = ("int8", "fp8")


@dataclass(frozen=True)
class Realized:
    """A graph with integers, and the plan as it was carried out (with the alpha of each group that was equalised)."""

    model: ir.Model
    plan: PrecisionPlan


def observed_tensors(prepared: Prepared, plan: PrecisionPlan) -> tuple[str, ...]:
    """Return the names of the tensors whose range the plan needs."""
    wanted = {entry.group for entry in plan.entries if entry.precision in _WITH_ACTIVATIONS}
    values = [group.activation for group in prepared.linears if group.name in wanted]
    for attention in prepared.attentions:
        if attention.name in wanted:
            values.extend(value for value, _ in _factors(attention) if value is not attention.softmax.outputs[0])
    return tuple(dict.fromkeys(str(value.name) for value in values))


def realize(
    prepared: Prepared,
    plan: PrecisionPlan,
    observers: Mapping[str, TensorObserver],
    choice: RangeChoice,
    form: Format,
) -> Realized:
    """Return a copy of a prepared graph in which the plan's groups are integers; the original is untouched.

    ``choice.alpha`` equalises every group that can be; an alpha in a plan's entry goes before it. Clips of equalised
    groups are the exact maxima of their scaled channels, because a histogram cannot be rescaled per channel.

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
    for entry in plan.entries:
        if entry.precision not in INTEGER_PRECISIONS:
            entries.append(entry)
            continue
        if entry.group in attentions:
            others.append(_quantized_attention(attentions[entry.group], entry.precision, observers, choice))
            entries.append(entry)
            continue
        group = groups[entry.group]
        alpha = entry.equalization if entry.equalization is not None else choice.alpha
        if entry.precision not in _WITH_ACTIVATIONS:
            quantized.append(QuantizedGroup(group, entry.precision))
            entries.append(entry.model_copy(update={"equalization": None}))
            continue
        observer = _observer(observers, group.activation, entry.group)
        clip, used = _clip(copy.graph.graph, group, observer, choice, alpha)
        quantized.append(QuantizedGroup(group, entry.precision, clip))
        entries.append(entry.model_copy(update={"equalization": used}))
    for placement in place(quantized, form, others):
        InsertQDQ(placement)(copy.graph)
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


def _clip(
    graph: ir.Graph, group: LinearGroup, observer: TensorObserver, choice: RangeChoice, alpha: float | None
) -> tuple[float, float | None]:
    """Return the clip of a group's activation and the alpha with which it was equalised, doing that."""
    channels = observer.channels.amax
    if alpha is not None and channels is not None and foldable_norm(group) is not None:
        factor = equalize(graph, group, channels, alpha)
        if factor is not None:
            return float(np.max(channels / factor)), alpha
    return observer.clip(choice.method, percent=choice.percent), None


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
