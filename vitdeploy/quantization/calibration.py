"""Calibrate: observe what a plan needs, and choose by measurement how ranges follow from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy.datasets import Dataset, batches
from vitdeploy.datasets.base import Subset
from vitdeploy.measure.accuracy import run_batch
from vitdeploy.measure.statistics import logits_sqnr_db
from vitdeploy.progress import SILENT, Progress
from vitdeploy.quantization.choice import RangeChoice, Trial, choose
from vitdeploy.quantization.collector import Collector, Observers, batch_for, merged
from vitdeploy.quantization.division import Division
from vitdeploy.quantization.placement import Format
from vitdeploy.quantization.prepared import Prepared
from vitdeploy.quantization.realize import observed_tensors, realize
from vitdeploy.quantization.saved_observations import SavedObservations
from vitdeploy.records import PrecisionPlan, Preprocess
from vitdeploy.sessions import Opener


@dataclass(frozen=True)
class Candidates:
    """Choices to compare: range methods, simplest first, and alphas of channel scaling to try on the best of them."""

    methods: tuple[RangeChoice, ...]
    alphas: tuple[float, ...] = ()

    @property
    def several(self) -> bool:
        """Whether there is anything to compare."""
        return len(self.methods) + len(self.alphas) > 1


@dataclass(frozen=True)
class Calibrated:
    """Observations of all calibration images, the choice made, and what each candidate gave."""

    observers: Observers
    choice: RangeChoice
    trials: tuple[Trial, ...] = ()


class Calibration:
    """Calibrates one prepared graph for one plan."""

    def __init__(
        self, prepared: Prepared, plan: PrecisionPlan, preprocess: Preprocess, open_graph: Opener, form: Format
    ) -> None:
        self.prepared, self.plan, self.preprocess = prepared, plan, preprocess
        self.open_graph, self.form = open_graph, form
        self.tensors = observed_tensors(prepared, plan)
        self.batch = batch_for(prepared.graph, self.tensors)

    def run(
        self,
        division: Division,
        candidates: Candidates,
        progress: Progress = SILENT,
        saved: SavedObservations | None = None,
    ) -> Calibrated:
        """Observe ``fit``, compare the candidates on ``compare``, and return the observations of both.

        Candidates are judged by the logits SQNR against this graph, with an FP32 remainder, on images whose ranges were
        not taken. Where there is nothing to compare, or nothing to compare with, the first candidate is taken. With
        ``saved`` it goes on where a calibration was killed.

        Raises:
            CalibrationError: There are no images, or an activation is NaN or infinite.
        """
        with self.collector() as collector:
            observers = self.observe(collector, "fit", division.fit, progress, saved)
            if division.compare is None:
                return Calibrated(observers, candidates.methods[0])
            also = self.observe(collector, "compare", division.compare, progress, saved)
        everything = merged(observers, also)
        if not candidates.several:
            return Calibrated(everything, candidates.methods[0])
        choice, trials = self._compare(division.compare, candidates, observers, progress)
        return Calibrated(everything, choice, trials)

    def collector(self) -> Collector:
        """Open the graph with the tensors to observe as outputs."""
        return Collector(self.prepared.graph, self.tensors, self.open_graph)

    def observe(
        self,
        collector: Collector,
        part: str,
        dataset: Dataset,
        progress: Progress = SILENT,
        saved: SavedObservations | None = None,
    ) -> Observers:
        """Return observers of all images of ``dataset``, going on with what was saved of ``part``.

        Raises:
            CalibrationError: There are no images, or an activation is NaN or infinite.
        """
        start, seen = (None, 0) if saved is None else saved.restore(part)
        if seen:
            progress.note(f"calibration goes on after {seen} of {len(dataset)} images")
        rest = Subset(dataset, np.arange(seen, len(dataset)))

        def keep(observers: Observers, further: int) -> None:
            if saved is not None:
                saved.save(part, observers, seen + further)

        return collector.observe(
            batches(rest, self.preprocess, self.batch),
            start=start,
            name_of=rest.name,
            after=keep,
            total=len(rest),
            progress=progress,
        )

    def _compare(
        self, dataset: Dataset, candidates: Candidates, observers: Observers, progress: Progress
    ) -> tuple[RangeChoice, tuple[Trial, ...]]:
        images = [batch.copy() for batch in batches(dataset, self.preprocess, self.batch)]
        reference = self._logits(self.prepared.graph, images)
        total = len(candidates.methods) + len(candidates.alphas) + bool(candidates.alphas)
        with progress.task("comparing ranges", total=total) as task:

            def score(choice: RangeChoice) -> float:
                task.describe(str(choice))
                graph = realize(self.prepared, self.plan, observers, choice, self.form).model
                value = logits_sqnr_db(self._logits(graph, images), reference)
                task.advance()
                return value

            return choose(candidates.methods, candidates.alphas, score)

    def _logits(self, model: ir.Model, images: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        with self.open_graph(model) as session:
            return np.concatenate([run_batch(session, batch) for batch in images])
