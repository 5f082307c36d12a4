"""Find the fastest precision of every group whose paired top-1 drop stays within a budget with 95 % confidence.

Groups go back to high precision one after another, those first whose quantization costs the most error for the time
that it saves; so the plans are nested, from the fastest to the safest. Some of them are run on the validation images
and timed in turns. They are tested from the safest on, and the first that fails ends the test: a sequence that is fixed
before the images are looked at keeps the error of all tests together at that of one (Angelopoulos et al. 2021, "Learn
then Test", arXiv 2110.01052, on fixed-sequence testing).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vitdeploy.datasets import Dataset
from vitdeploy.graph.part_kinds import kind_of
from vitdeploy.measure import statistics
from vitdeploy.measure.accuracy import BatchLimits, collect_logits, judge, only_input
from vitdeploy.measure.certainty import drop_is_within, least_samples, samples_needed
from vitdeploy.measure.heads import predicted_classes
from vitdeploy.measure.timing import Contestant, TurnOptions, time_in_turns
from vitdeploy.progress import SILENT, Progress
from vitdeploy.quantization.budget_choice import beside_one_base, with_front
from vitdeploy.quantization.budget_journal import BudgetJournal
from vitdeploy.quantization.budget_plans import FP32, BudgetPlans, Option, levels
from vitdeploy.quantization.sensitivity import TrialImages, effect_of, in_high_precision, noise_of
from vitdeploy.records import FrontCandidate, ModelSpec, Preprocess
from vitdeploy.sessions import Opener
from vitdeploy.wording import duration_text

TOGETHER = 4
"""So many candidates are open at once, beside the FP32 graph that each is compared with."""


@dataclass(frozen=True)
class Place:
    """Where latency counts, and what is counted.

    open_graph: Opens a graph there.
    title: In words.
    batch: Images per call.
    limits: Of engines, which take no other batch.
    warm_s: See ``Contestant``.
    turns: How turns are taken.
    """

    open_graph: Opener
    title: str
    batch: int = 1
    limits: BatchLimits | None = None
    warm_s: float = 0.0
    turns: TurnOptions = field(default_factory=TurnOptions)


@dataclass(frozen=True)
class Validation:
    """Images that decide whether a drop is within the budget, with labels as indices of the model's classes [n]."""

    dataset: Dataset
    labels: NDArray[np.int64]
    preprocess: Preprocess
    model: ModelSpec


@dataclass
class BudgetSearch:
    """One search. ``ranking`` are the images that groups are ranked on, ``open_on_cpu`` runs them."""

    plans: BudgetPlans
    place: Place
    validation: Validation
    ranking: TrialImages
    open_on_cpu: Opener
    max_drop_pp: float
    journal: BudgetJournal
    progress: Progress = SILENT
    found: dict[str, FrontCandidate] = field(default_factory=dict)

    def run(self) -> list[FrontCandidate]:
        """Return the candidates, the safest first: FP32, FP16, then ever more groups in 8 bits.

        Raises:
            BackendError: The FP32 graph does not run where latency counts.
        """
        plans, count = self.plans, len(self.plans.quantized)
        classes = self.speed_classes()
        images = len(self.validation.dataset)
        self.progress.note(
            f"budget: {count} groups ranked on {len(self.ranking)} images, {3 + len(classes)} to "
            f"{3 + len(classes) + len(levels(count))} graphs timed on {self.place.title}, up to "
            f"{2 + len(levels(count))} run on {images} validation images"
        )
        if self.journal.restored:
            self.progress.note(f"the search resumes after {self.journal.restored} measurements")
        full = plans.without(())
        parted = {name: plans.without(groups, f"without {name}") for name, groups in classes.items()}
        first = [plans.fp16, full, *parted.values()]
        self._say_how_long(self.time(first[:TOGETHER]), max(len(first) - TOGETHER, 0) + len(levels(count)) + TOGETHER)
        self.time(first)
        slow, savings = self._savings(full, parted, classes)
        if slow:
            self.progress.note(f"faster in {plans.full.remainder} than in {plans.precision} here: {', '.join(slow)}")
        start = [name for part in slow for name in classes[part]]
        order = self.order({name: saving for name, saving in savings.items() if name not in start})
        chain = [plans.without((*start, *order[:reverted])) for reverted in reversed(levels(len(order)))]
        chain = [plans.fp16, *chain, *([full] if start else [])]
        self.judge([plans.fp32, *chain])
        self.time(chain)
        self.certify(chain)
        self.decide(chain)
        ranked = [self.found[option.name] for option in (plans.fp32, *chain)]
        return with_front(beside_one_base(ranked))

    def _say_how_long(self, seconds: float, left: int) -> None:
        """Say about how long the search will take, by the first graphs: ``seconds`` for each, ``left`` are to come."""
        base, count = self.found[FP32].p50_ms, len(self.plans.quantized)
        if not seconds or base is None:
            return  # it resumes after these
        per_image = base / 1000 / self.place.batch
        images = (2 + len(levels(count))) * len(self.validation.dataset) + (count + 1) * len(self.ranking)
        self.progress.note(
            f"the search takes about {duration_text(seconds * left + per_image * images)} more, as the first graphs "
            "did; one that is interrupted goes on where it was"
        )

    @property
    def least_images(self) -> int:
        """How many images the budget needs where no prediction changes."""
        return least_samples(self.max_drop_pp / 100)

    def speed_classes(self) -> dict[str, tuple[str, ...]]:
        """Return groups that take the same time: of one kind, with weights and activations of the same shapes."""
        prepared = self.plans.realizer.prepared
        kinds: dict[tuple[object, ...], list[str]] = {}
        wanted = set(self.plans.quantized)
        for group in prepared.linears:
            if group.name in wanted:
                sizes = "+".join(f"{linear.in_features}→{linear.out_features}" for linear in group.linears)
                shape = prepared.shapes.get(str(group.activation.name))
                kinds.setdefault((f"{kind_of(group, prepared.attentions)} {sizes}", shape), []).append(group.name)
        for attention in prepared.attentions:
            if attention.name in wanted:
                value = attention.softmax.outputs[0]
                kinds.setdefault(("attention", prepared.shapes.get(str(value.name))), []).append(attention.name)
        named: dict[str, tuple[str, ...]] = {}
        for (kind, _), groups in kinds.items():
            name, number = str(kind), 2
            while name in named:
                name, number = f"{kind} #{number}", number + 1
            named[name] = tuple(groups)
        return named

    def _savings(
        self, full: Option, parted: Mapping[str, Option], classes: Mapping[str, Sequence[str]]
    ) -> tuple[list[str], dict[str, float]]:
        """Return the classes that integers slow down, and for each group the share of FP32's time that they save."""
        slow: list[str] = []
        savings: dict[str, float] = {}
        whole = self.found[full.name]
        for name, option in parted.items():
            without = self.found[option.name]
            saved = _time(without) - _time(whole)
            if not math.isfinite(saved):
                saved = 0.0
            if saved < 0 and _apart(without, whole):
                slow.append(name)
            savings |= dict.fromkeys(classes[name], saved / len(classes[name]))
        return slow, savings

    def order(self, savings: Mapping[str, float]) -> list[str]:
        """Return groups in the order in which they go back to high precision: most error for the time saved first."""
        errors = self.errors(list(savings))
        least = max(1e-4 * max(savings.values(), default=0.0), 1e-9)
        return sorted(savings, key=lambda name: -errors[name] / max(savings[name], least))

    def errors(self, groups: Sequence[str]) -> dict[str, float]:
        """Return the error of the logits, as a share of their power, where one group alone is quantized."""
        plans, missing = self.plans, [name for name in groups if self.journal.get("error", name) is None]
        if missing:
            with self.progress.task("ranking groups", total=len(missing) + 1) as task:
                graph = plans.realizer.prepared.graph
                reference = self.ranking.logits(graph, self.open_on_cpu)
                task.advance()
                for name in missing:
                    task.describe(name)
                    others = [other for other in plans.quantized if other != name]
                    model = plans.realizer.realize(in_high_precision(plans.full, others)).model
                    effect = effect_of(self.ranking.logits(model, self.open_on_cpu), reference, None, None)
                    self.journal.put("error", name, noise_of(effect))
                    task.advance()
        return {name: float(self.journal.get("error", name)) for name in groups}

    def time(self, options: Sequence[Option]) -> float:
        """Time candidates in turns, a few at once, each beside the FP32 graph; what was timed before is taken over.

        Returns:
            How many seconds one of them took, 0 where all were timed before.
        """
        began = time.monotonic()
        waiting = [option for option in options if self._restored("time", option) is None]
        for start in range(0, len(waiting), TOGETHER):
            self._time_some(waiting[start : start + TOGETHER])
        for option in (self.plans.fp32, *options):
            measured = self._restored("time", option)
            if measured is not None:
                self._note(option, **measured)
        return (time.monotonic() - began) / len(waiting) if waiting else 0.0

    def _time_some(self, options: Sequence[Option], what: str = "time") -> None:
        contestants, opened, failures = {}, [], {}
        try:
            for option in (self.plans.fp32, *options):
                try:
                    session = self.place.open_graph(self.plans.graph(option).model)
                except Exception as error:  # any runtime's own exception type; the candidate fails, the search goes on
                    if option.name == FP32:
                        raise
                    failures[option.name] = f"{self.place.title} refuses it: {error}"
                    continue
                opened.append(session)
                spec = only_input(session)
                shape = (self.place.batch, *(size or 1 for size in spec.shape[1:]))
                images = np.random.default_rng(0).standard_normal(shape).astype(spec.dtype)
                contestants[option.name] = Contestant(session, {spec.name: images}, warm_s=self.place.warm_s)
            turns = time_in_turns(contestants, self.place.turns, progress=self.progress)
        finally:
            for session in opened:
                session.close()
        failures |= turns.failures
        base = turns.blocks.get(FP32)
        for option in (self.plans.fp32, *options):
            blocks = turns.blocks.get(option.name)
            value: dict[str, object] = {"failure": failures.get(option.name, "FP32 could not be timed")}
            if blocks is not None and base is not None:
                ratio, interval = statistics.speedup(blocks, base)
                p50 = float(np.median(np.concatenate(blocks)))
                value = {"p50_ms": p50, "speedup": ratio, "speedup_ci95": interval}
                if option.name == FP32:
                    value = {"p50_ms": p50, "speedup": 1.0}
            self.journal.put(what, option.identity, value)

    def judge(self, options: Sequence[Option]) -> None:
        """Run candidates over the validation images where latency counts, and compare them with the FP32 graph."""
        waiting = [option for option in options if self._restored("accuracy", option) is None]
        reference: NDArray[np.float32] | None = None
        if waiting and waiting[0].name != FP32:
            waiting.insert(0, self.plans.fp32)
        for start in range(0, len(waiting), TOGETHER):
            reference = self._judge_some(waiting[start : start + TOGETHER], reference)
        for option in options:
            self._note(option, **(self._restored("accuracy", option) or {}))

    def _judge_some(
        self, options: Sequence[Option], reference: NDArray[np.float32] | None
    ) -> NDArray[np.float32] | None:
        data, opened, failures = self.validation, {}, {}
        try:
            for option in options:
                try:
                    opened[option.name] = self.place.open_graph(self.plans.graph(option).model)
                except Exception as error:  # any runtime's own exception type; the candidate fails, the search goes on
                    if option.name == FP32:
                        raise
                    failures[option.name] = f"{self.place.title} refuses it: {error}"
            limits = dict.fromkeys(opened, self.place.limits)
            outputs = collect_logits(opened, data.dataset, data.preprocess, limits=limits, progress=self.progress)
        finally:
            for session in opened.values():
                session.close()
        failures |= outputs.failures
        reference = outputs.logits.get(FP32, reference)
        for option in options:
            logits = outputs.logits.get(option.name)
            if logits is None or reference is None:
                self.journal.put("accuracy", option.identity, {"failure": failures.get(option.name, "FP32 failed")})
                continue
            self.journal.put("accuracy", option.identity, self._accuracy(logits, reference))
        return reference

    def _accuracy(self, logits: NDArray[np.float32], reference: NDArray[np.float32]) -> dict[str, object]:
        data = self.validation
        found = judge(logits, data.labels, reference, data.model)
        ours, theirs = predicted_classes(logits, data.model), predicted_classes(reference, data.model)
        assert ours is not None
        assert theirs is not None
        right, base = ours == data.labels, theirs == data.labels
        return {
            "top1": found.top1,
            "delta_top1_pp": found.delta_top1_pp,
            "delta_ci95_pp": found.delta_ci95_pp,
            "gained": int(np.sum(right & ~base)),
            "lost": int(np.sum(base & ~right)),
            "agreement": found.agreement,
            "logits_sqnr_db": found.logits_sqnr_db,
            "logits_identical": bool(found.logits_identical),
        }

    def certify(self, chain: Sequence[Option]) -> None:
        """Test the candidates from the safest on; the first whose drop may be beyond the budget ends the test."""
        images, limit, certified = len(self.validation.dataset), self.max_drop_pp / 100, True
        for option in chain:
            found = self.found[option.name]
            if found.failure:
                continue
            passes = drop_is_within(found.gained, found.lost, images, limit)
            certified = certified and passes
            needed = None if passes else samples_needed(found.gained, found.lost, images, limit)
            self._note(option, certified=certified, images_needed=needed)

    def decide(self, chain: Sequence[Option]) -> None:
        """Time the fastest of the certified candidates once more, all in the same turns: that decides."""
        certified = [option for option in chain if self.found[option.name].certified]
        fast = [option for option in certified if (self.found[option.name].speedup or 0.0) > 1.0]
        finalists = sorted(fast, key=lambda option: -_fastest_likely(self.found[option.name]))[:TOGETHER]
        if len(finalists) > 1 and any(self._restored("final", option) is None for option in finalists):
            self._time_some(finalists, "final")
        for option in finalists:
            self._note(option, finalist=True, **(self._restored("final", option) or {}))

    def _restored(self, what: str, option: Option) -> dict[str, object] | None:
        value = self.journal.get(what, option.identity)
        return value if isinstance(value, dict) else None

    def _note(self, option: Option, **values: object) -> None:
        known = self.found.get(option.name)
        fields = {} if known is None else known.model_dump()
        fields |= {"name": option.name, "precision": option.precision, "high": option.high, "plan": option.plan}
        self.found[option.name] = FrontCandidate.model_validate({**fields, **values})


def _time(candidate: FrontCandidate) -> float:
    """Return its time as a share of FP32's."""
    return math.inf if not candidate.speedup else 1 / candidate.speedup


def _fastest_likely(candidate: FrontCandidate) -> float:
    """Return the faster end of its interval."""
    return (candidate.speedup or 0.0) if candidate.speedup_ci95 is None else candidate.speedup_ci95[1]


def _apart(one: FrontCandidate, other: FrontCandidate) -> bool:
    """Return whether the first is faster, beyond both intervals."""
    low = one.speedup if one.speedup_ci95 is None else one.speedup_ci95[0]
    high = other.speedup if other.speedup_ci95 is None else other.speedup_ci95[1]
    return (low or 0.0) > (high or 0.0)
