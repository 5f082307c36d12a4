"""The precision plan: made by a profile, edited by hand, checked against the graph."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from vitdeploy.artifacts import OnnxModel, read_onnx
from vitdeploy.errors import ArtifactError, GraphError, UsageError
from vitdeploy.graph.attentions import ONE_QUERY, Attention
from vitdeploy.graph.linear_groups import PATCH_EMBEDDING, LinearGroup
from vitdeploy.reading import first_problem, read_json
from vitdeploy.records import NodePrecision, PlanEntry, PrecisionPlan, Target

Profile = Literal["auto", "linear", "mha", "full"]
Remainder = Literal["fp32", "fp16", "bf16"]
REMAINDERS: dict[Target, Remainder] = {"tensorrt": "fp16", "onnxruntime": "fp32", "openvino": "fp32"}
"""TensorRT is fastest with FP16 beside integers; on a CPU FP16 is emulated, which costs more than integers gain."""

_FP8_TARGETS: tuple[Target, ...] = ("tensorrt",)


@dataclass(frozen=True)
class Intent:
    """What a plan is for: the precision asked for, the runtime, and the profile that decides what gets it.

    ``bf16``: the runtime is to compute everything else in BF16. ``images``: the range of what the first layer reads is
    known, so that it can be in 8 bits as well.
    """

    precision: NodePrecision
    target: Target
    profile: Profile = "linear"
    bf16: bool = False
    images: bool = True

    @property
    def remainder(self) -> Remainder:
        """Precision of everything that the plan leaves alone."""
        if self.precision == "fp16":
            return "fp16"
        return "bf16" if self.bf16 else REMAINDERS[self.target]


def make_plan(groups: Sequence[LinearGroup], attentions: Sequence[Attention], intent: Intent) -> PrecisionPlan:
    """Return a plan with an entry for every group that can be quantized, each with the reason for its precision.

    Linears without an obstacle get the precision of ``intent``, all others the remainder; with FP16 that is the same.
    So does the convolution that embeds patches, in INT8 for OpenVINO. The products of attention get it with profile
    ``mha``, for TensorRT those that it fuses; with ``auto`` they do not yet. With ``full``, for a CPU, convolutions
    with a kernel or groups get it, and for OpenVINO the products of attention. Residual sums are no groups: quantizing
    them takes some checkpoints to chance level, because outliers of the residual stream set the range.

    Raises:
        UsageError: The target has no such precision, or the profile needs activations and only weights are quantized.
    """
    if intent.profile in ("mha", "full") and intent.precision not in ("int8", "fp8"):
        raise UsageError(
            f"profile {intent.profile!r} quantizes activations only, precision {intent.precision!r} quantizes none"
        )
    if intent.profile == "full" and intent.target == "tensorrt":
        raise UsageError("profile 'full' has what a CPU multiplies in integers, got target 'tensorrt': take 'mha'")
    _check_precision(intent.precision, intent.target, "precision")
    named: Profile = "linear" if intent.profile == "auto" else intent.profile
    attends = named == "mha" or (named == "full" and intent.target == "openvino")
    entries = []
    for group in groups:
        obstacle = "" if intent.precision == "fp16" else _obstacle(group, intent)
        precision = intent.remainder if obstacle else intent.precision
        embeds = group.obstacle == PATCH_EMBEDDING
        kind = "patch embedding" if embeds else "convolution" if group.convolves else "linear"
        reason = obstacle or f"{kind} that reads {_source(group)}"
        entries.append(PlanEntry(group=group.name, nodes=group.nodes, precision=precision, reason=reason))
    for attention in attentions if intent.precision in ("int8", "fp8") else ():
        fits = intent.target == "openvino" and attention.obstacle != ONE_QUERY
        obstacle = ("" if fits else attention.obstacle) or (
            "" if attends else f"attention stays in high precision in profile {named!r}"
        )
        precision = intent.remainder if obstacle else intent.precision
        reason = obstacle or "attention: q, k, v and the softmax in 8 bits"
        entries.append(PlanEntry(group=attention.name, nodes=attention.nodes, precision=precision, reason=reason))
    return PrecisionPlan(profile=named, remainder=intent.remainder, entries=tuple(entries))


@dataclass(frozen=True)
class Edits:
    """A plan that was read from somewhere: its entries take the place of a profile's."""

    plan: PrecisionPlan
    where: str

    def applied(self, plan: PrecisionPlan, target: Target, node_names: Collection[str]) -> PrecisionPlan:
        """Return ``plan`` with these entries in place of its own; groups that they omit stay as they are.

        The remainder that the edits were made for becomes that of ``plan``, so that a plan for one target can be
        replayed for another; ``fp32`` beside an FP16 remainder keeps a group in FP32. An entry for FP32 may also name
        nodes that hold no weights.

        Raises:
            GraphError: An entry names a group that is not in the graph, or other nodes than the group has.
            UsageError: An entry wants a precision that the target has not.
        """
        known = {entry.group: entry for entry in plan.entries}
        changes: dict[str, PlanEntry] = {}
        for edit in self.plan.entries:
            _check_precision(edit.precision, target, f"the plan {self.where}")
            entry = known.get(edit.group)
            if entry is None and not self._keeps_nodes(edit, node_names):
                near = get_close_matches(edit.group, known, n=1, cutoff=0.0)
                hint = f", the nearest is {near[0]!r}" if near else ""
                raise GraphError(
                    f"the plan {self.where} names the group {edit.group!r}, which is not in the graph{hint}"
                )
            if entry is not None and edit.nodes and edit.nodes != entry.nodes:
                raise GraphError(
                    f"the plan {self.where} gives the group {edit.group!r} the nodes {list(edit.nodes)}, the graph has "
                    f"{list(entry.nodes)}: it was made for another graph"
                )
            changes[edit.group] = self._changed(entry or edit, edit, plan)
        kept = [changes.pop(entry.group, entry) for entry in plan.entries]
        entries = (*kept, *changes.values())
        done = {"rotated": self.plan.rotated, "sampled_rows": self.plan.sampled_rows}
        return plan.model_copy(update={"entries": entries, **done})

    def _keeps_nodes(self, edit: PlanEntry, node_names: Collection[str]) -> bool:
        return edit.precision == "fp32" and bool(edit.nodes) and all(name in node_names for name in edit.nodes)

    def _changed(self, entry: PlanEntry, edit: PlanEntry, plan: PrecisionPlan) -> PlanEntry:
        precision = plan.remainder if edit.precision == self.plan.remainder else edit.precision
        if precision == "fp16" and plan.remainder == "fp32":
            raise UsageError(
                f"the plan {self.where} asks for 'fp16' in group {edit.group!r}, beside a remainder of 'fp32': "
                f"write 'fp32', or choose target 'tensorrt'"
            )
        if (
            "bf16" in (precision, plan.remainder)
            and precision in ("fp32", "fp16", "bf16")
            and precision != plan.remainder
        ):
            raise UsageError(
                f"the plan {self.where} asks for {precision!r} in group {edit.group!r}, beside a remainder of "
                f"{plan.remainder!r}: OpenVINO computes all in BF16 but 8-bit products, or none"
            )
        has_reason = bool(edit.reason) and (edit.reason != entry.reason or precision == entry.precision)
        reason = edit.reason if has_reason else entry.reason if precision == entry.precision else f"set by {self.where}"
        return entry.model_copy(update={"precision": precision, "reason": reason, "treatment": edit.treatment})


def with_treatments(plan: PrecisionPlan, other: PrecisionPlan | None) -> PrecisionPlan:
    """Return ``plan`` with the rotations of ``other`` and its treatments of groups of the same name and precision."""
    known = {} if other is None else {entry.group: entry for entry in other.entries}

    def treated(entry: PlanEntry) -> PlanEntry:
        found = known.get(entry.group)
        if entry.treatment is not None or found is None or found.precision != entry.precision:
            return entry
        return entry.model_copy(update={"treatment": found.treatment})

    entries = tuple(treated(entry) for entry in plan.entries)
    rotated = plan.rotated if other is None else other.rotated
    return plan.model_copy(update={"entries": entries, "rotated": rotated})


def read_plan(path: Path) -> PrecisionPlan:
    """Read a plan from JSON (``PrecisionPlan``, alone or as ``plan`` of a manifest), or out of a quantized ``.onnx``.

    Raises:
        ArtifactError: The file is missing, or is not a plan.
    """
    path = Path(path)
    if path.suffix == ".onnx":
        return plan_of_graph(read_onnx(path))
    raw = read_json(path, "a precision plan")
    if isinstance(raw, dict) and isinstance(raw.get("plan"), dict):
        raw = raw["plan"]
    try:
        return PrecisionPlan.model_validate(raw)
    except ValidationError as error:
        raise ArtifactError(f"{str(path)!r} is not a precision plan: {first_problem(error)}") from error


def plan_of_graph(model: OnnxModel) -> PrecisionPlan:
    """Return the plan by which a graph was quantized.

    Raises:
        ArtifactError: It was never quantized.
    """
    if model.manifest.plan is None:
        raise ArtifactError(f"{str(model.path)!r} has no precision plan: it was never quantized")
    return model.manifest.plan


def _check_precision(precision: NodePrecision, target: Target, where: str) -> None:
    if precision == "fp8" and target not in _FP8_TARGETS:
        raise UsageError(
            f"{where} asks for 'fp8', which target {target!r} does not have: take 'int8', or target 'tensorrt'"
        )


def _obstacle(group: LinearGroup, intent: Intent) -> str:
    convolutions = all(linear.node.op_type == "Conv" for linear in group.linears)
    embeds = group.obstacle == PATCH_EMBEDDING and intent.target == "openvino" and intent.precision == "int8"
    if embeds and convolutions and intent.images:
        return ""
    if group.obstacle and not (group.convolves and intent.profile == "full"):
        return group.obstacle
    if (
        intent.target == "onnxruntime"
        and intent.profile != "full"
        and any(linear.node.op_type == "Conv" for linear in group.linears)
    ):
        return "ONNX Runtime has no integer convolution with a float output"
    return ""


def _source(group: LinearGroup) -> str:
    producer = group.activation.producer()
    what = "the input" if producer is None else f"the output of {producer.op_type}"
    shared = f", shared by {len(group.linears)}" if len(group.linears) > 1 else ""
    return f"{what} {group.activation.name!r}{shared}"
