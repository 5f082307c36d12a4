"""What quantizing each part of a graph costs: each group, and all groups of a kind, quantized alone and left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy.errors import VitdeployError
from vitdeploy.graph.part_kinds import Kind, kind_of
from vitdeploy.measure.accuracy import judge, run_batch
from vitdeploy.measure.heads import probabilities
from vitdeploy.measure.statistics import kl_divergence
from vitdeploy.progress import SILENT, Progress
from vitdeploy.quantization.placement import INTEGER_PRECISIONS
from vitdeploy.quantization.prepared import Prepared
from vitdeploy.quantization.realize import WITH_ACTIVATIONS, Realizer, observed_tensors
from vitdeploy.quantization.search import Proposals, propose
from vitdeploy.records import Effect, ModelSpec, NodePrecision, PartSensitivity, PlanEntry, PrecisionPlan
from vitdeploy.sessions import Opener
from vitdeploy.text import one_line


@dataclass(frozen=True)
class TrialImages:
    """What trials run on: network inputs [b, C, H, W] in batches, and labels as indices of the model's classes [n]."""

    batches: Sequence[NDArray[np.float32]]
    labels: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return sum(map(len, self.batches))

    def logits(self, model: ir.Model, open_graph: Opener) -> NDArray[np.float32]:
        """Return the logits of a graph, [n, outputs].

        Raises:
            BackendError: The runtime refuses the graph.
        """
        with open_graph(model) as session:
            return np.concatenate([run_batch(session, batch) for batch in self.batches])


@dataclass(frozen=True)
class Part:
    """Entries of a plan that are tried together."""

    name: str
    kind: Kind
    entries: tuple[PlanEntry, ...]
    quantized: bool


class SensitivityTrials:
    """Runs the trials: one graph after another on the same images, with an FP32 remainder.

    ``plan`` is the plan whose error is explained, with a treatment for every group; ``wide`` is the same with all other
    groups quantized too, which ``alone`` is tried of.
    """

    def __init__(
        self, realizer: Realizer, plan: PrecisionPlan, wide: PrecisionPlan, images: TrialImages, open_graph: Opener
    ) -> None:
        self.realizer, self.plan, self.wide = realizer, plan, wide
        self.images, self.open_graph = images, open_graph

    def parts(self) -> tuple[list[Part], list[Part]]:
        """Return the groups, and the kinds that hold more than one."""
        prepared = self.realizer.prepared
        kinds: dict[str, Kind] = {group.name: kind_of(group, prepared.attentions) for group in prepared.linears}
        kinds |= {attention.name: "attention" for attention in prepared.attentions}
        integers = {entry.group for entry in self.plan.entries if entry.precision in INTEGER_PRECISIONS}
        groups = [
            Part(entry.group, kinds[entry.group], (entry,), entry.group in integers)
            for entry in self.wide.entries
            if entry.precision in INTEGER_PRECISIONS
        ]
        together: dict[tuple[Kind, bool], list[Part]] = {}
        for part in groups:
            together.setdefault((part.kind, part.quantized), []).append(part)
        mixed = {kind for kind, quantized in together if (kind, not quantized) in together}
        return groups, [
            Part(
                f"{kind} (left in high precision)" if kind in mixed and not quantized else kind,
                kind,
                tuple(entry for part in found for entry in part.entries),
                quantized,
            )
            for (kind, quantized), found in together.items()
            if len(found) > 1
        ]

    def run(
        self, parts: Sequence[Part], model: ModelSpec | None = None, progress: Progress = SILENT
    ) -> tuple[Effect, list[PartSensitivity]]:
        """Return the effect of the whole plan, and what each part does, in the order given."""
        total = 2 + sum(1 + part.quantized for part in parts)
        with progress.task("sensitivity", total=total) as task:
            task.describe("FP32")
            reference = self.images.logits(self.realizer.prepared.graph, self.open_graph)
            task.advance()

            def effect(plan: PrecisionPlan) -> Effect:
                try:
                    logits = self.images.logits(self.realizer.realize(plan).model, self.open_graph)
                except VitdeployError as error:
                    found = Effect(failure=one_line(error))
                else:
                    found = effect_of(logits, reference, self.images.labels, model)
                task.advance()
                return found

            task.describe("all")
            whole = effect(self.plan)
            results = [self._part(part, whole, effect, task.describe) for part in parts]
        return whole, results

    def _part(
        self,
        part: Part,
        whole: Effect,
        effect: Callable[[PrecisionPlan], Effect],
        describe: Callable[[str], None],
    ) -> PartSensitivity:
        names = {entry.group for entry in part.entries}
        describe(f"{part.name} alone")
        alone = effect(self._changed(self.wide, lambda entry: entry.group in names))
        left_out = None
        if part.quantized:
            describe(f"without {part.name}")
            left_out = effect(self._changed(self.plan, lambda entry: entry.group not in names))
        gain = None
        if left_out is not None and left_out.logits_sqnr_db is not None and whole.logits_sqnr_db is not None:
            gain = left_out.logits_sqnr_db - whole.logits_sqnr_db
        return PartSensitivity(
            name=part.name,
            kind=part.kind,
            groups=tuple(entry.group for entry in part.entries),
            nodes=tuple(name for entry in part.entries for name in entry.nodes),
            quantized=part.quantized,
            reason=part.entries[0].reason,
            alone=alone,
            left_out=left_out,
            gain_db=gain,
        )

    def _changed(self, plan: PrecisionPlan, keeps: Callable[[PlanEntry], bool]) -> PrecisionPlan:
        return in_high_precision(plan, (entry.group for entry in plan.entries if not keeps(entry)))


def in_high_precision(plan: PrecisionPlan, groups: Iterable[str]) -> PrecisionPlan:
    """Return the plan with these groups in the remainder's precision."""
    names = set(groups)
    entries = tuple(
        entry.model_copy(update={"precision": plan.remainder, "treatment": None})
        if entry.group in names and entry.precision in INTEGER_PRECISIONS
        else entry
        for entry in plan.entries
    )
    return plan.model_copy(update={"entries": entries})


def widened(plan: PrecisionPlan, prepared: Prepared, precision: NodePrecision) -> PrecisionPlan:
    """Return the plan with every group that it leaves in high precision quantized as well, without a treatment.

    The products of attention hold no weights, so weight-only precision leaves them out.
    """
    products = {attention.name for attention in prepared.attentions}
    known = {group.name for group in prepared.linears} | products
    entries = {entry.group: entry for entry in plan.entries if entry.group in known}
    for attention in prepared.attentions:
        entries.setdefault(
            attention.name, PlanEntry(group=attention.name, nodes=attention.nodes, precision=plan.remainder)
        )
    skipped = products if precision == "int8-weight-only" else set()
    return plan.model_copy(
        update={
            "entries": tuple(
                entry
                if entry.precision in INTEGER_PRECISIONS or entry.group in skipped
                else entry.model_copy(update={"precision": precision, "treatment": None})
                for entry in entries.values()
            )
        }
    )


def treated(wide: PrecisionPlan, plan: PrecisionPlan, proposals: Proposals) -> PrecisionPlan:
    """Return the wide plan with the treatments of ``plan``, and those that layer errors suggest for all others.

    Groups whose tensors were not observed go back to high precision.
    """
    unknown = [
        entry.group
        for entry in wide.entries
        if observed_tensors(proposals.bases.plain.prepared, _only(wide, entry), proposals.bases.form).keys()
        - proposals.bases.plain.observers.keys()
    ]
    known = {entry.group: entry for entry in plan.entries if entry.precision in INTEGER_PRECISIONS}
    entries = tuple(known.get(entry.group, entry) for entry in wide.entries)
    wide = wide.model_copy(update={"entries": entries, "rotated": plan.rotated})
    if any(entry.precision in WITH_ACTIVATIONS for entry in wide.entries):
        wide = propose(in_high_precision(wide, (name for name in unknown if name not in known)), proposals)
    return wide


def _only(plan: PrecisionPlan, entry: PlanEntry) -> PrecisionPlan:
    return plan.model_copy(update={"entries": (entry,)})


def effect_of(
    logits: NDArray[np.float32],
    reference: NDArray[np.float32],
    labels: NDArray[np.int64] | None,
    model: ModelSpec | None,
) -> Effect:
    """Return what logits [n, outputs] lost against those of the FP32 graph."""
    if not np.isfinite(logits).all():
        broken = int(np.sum(~np.isfinite(logits).all(axis=1)))
        return Effect(failure=f"NaN or infinite logits for {broken} of {len(logits)} images")
    accuracy = judge(logits, labels, reference, model)
    kl = None
    if model is None or model.task in ("single-label", "binary"):
        ours, theirs = (probabilities(values, model or ModelSpec(family="", name="")) for values in (logits, reference))
        assert ours is not None
        assert theirs is not None
        kl = kl_divergence(ours, theirs)
    return Effect(
        logits_sqnr_db=accuracy.logits_sqnr_db,
        logits_identical=bool(accuracy.logits_identical),
        kl=kl,
        agreement=accuracy.agreement,
        delta_top1_pp=accuracy.delta_top1_pp,
        delta_ci95_pp=accuracy.delta_ci95_pp,
    )


def ranked(parts: Sequence[PartSensitivity]) -> tuple[PartSensitivity, ...]:
    """Return the parts with their share of the error: those that are quantized first, the worst first."""
    noises = {part.name: noise_of(part.alone) for part in parts}
    total = sum(noises[part.name] for part in parts if part.quantized)
    shared = [
        part.model_copy(update={"share": noises[part.name] / total})
        if part.quantized and 0 < total < math.inf
        else part
        for part in parts
    ]
    return tuple(sorted(shared, key=lambda part: (not part.quantized, -noises[part.name])))


def noise_of(effect: Effect) -> float:
    """Return the error of the logits as a fraction of their power; infinite where there are no logits."""
    if effect.logits_sqnr_db is not None:
        return 10 ** (-effect.logits_sqnr_db / 10)
    return 0.0 if effect.logits_identical else math.inf
