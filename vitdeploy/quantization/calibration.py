"""Calibrate: observe what a plan needs, and choose by measurement how its groups are treated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy.artifacts.calibration_table import SAMPLED_ROWS
from vitdeploy.datasets import Dataset, batches
from vitdeploy.datasets.base import Subset
from vitdeploy.graph.values import collect_graphs_like
from vitdeploy.measure.accuracy import run_batch
from vitdeploy.measure.pairs import Speeds, TimePair
from vitdeploy.measure.statistics import logits_sqnr_db
from vitdeploy.progress import SILENT, Progress
from vitdeploy.quantization.collector import Collector, Observers, batch_for, merged
from vitdeploy.quantization.division import Division
from vitdeploy.quantization.placement import Format
from vitdeploy.quantization.prepared import Prepared
from vitdeploy.quantization.realize import Realizer, observed_tensors
from vitdeploy.quantization.rotation import Bases
from vitdeploy.quantization.saved_observations import SavedObservations
from vitdeploy.quantization.search import Found, Proposals, SearchOptions, Wider, propose, search
from vitdeploy.records import PrecisionPlan, Preprocess
from vitdeploy.sessions import Opener

LEAST_COMPARED, MOST_COMPARED = 16, 64
"""How many images the steps are tried on."""
_FULLY_COMPARED_MACS = 2e9
"""Multiplications of a graph that is tried on all of them; larger graphs are tried on fewer."""


@dataclass(frozen=True)
class Calibrated:
    """Observations of all calibration images, and the plan with a treatment for every group.

    ``compared`` is the number of images that ``found.trials`` were scored on.
    """

    observers: Observers
    found: Found
    compared: int = 0


class Calibration:
    """Calibrates one prepared graph for one plan; of a wider plan ``also`` the tensors are observed too.

    Without a ``form``, whatever a graph for any runtime needs is observed. ``wider`` plans have more in 8 bits, taken
    where the logits hardly lose by it and where it is faster by ``time_pair``, if there is one. The plan says how many
    rows of an image are sampled.
    """

    def __init__(
        self,
        prepared: Prepared,
        plan: PrecisionPlan,
        preprocess: Preprocess,
        open_graph: Opener,
        form: Format | None,
        also: PrecisionPlan | None = None,
        wider: Sequence[Wider] = (),
        time_pair: TimePair | None = None,
    ) -> None:
        self.prepared, self.plan, self.preprocess = prepared, plan, preprocess
        self.open_graph, self.form = open_graph, form or Format()
        self.wider, self.time_pair = wider, time_pair
        self.most_rows = plan.sampled_rows or SAMPLED_ROWS
        self.tensors = {
            name: axis
            for wanted in (also or plan, *(one.plan for one in wider))
            for name, axis in observed_tensors(prepared, wanted, form).items()
        }
        self.batch = batch_for(prepared.graph, self.tensors)

    def run(
        self,
        division: Division,
        options: SearchOptions,
        progress: Progress = SILENT,
        saved: SavedObservations | None = None,
    ) -> Calibrated:
        """Observe ``fit``, try steps on ``compare``, and return the observations of both with the plan that won.

        Steps are judged by the logits SQNR against this graph, with an FP32 remainder, on images whose ranges were not
        taken. Where there are none, or the effort is ``fast``, the layer errors decide. With ``saved`` it goes on where
        a calibration was killed.

        Raises:
            CalibrationError: There are no images, or an activation is NaN or infinite.
        """
        with self.collector() as collector:
            everything = observers = self.observe(collector, "fit", division.fit, progress, saved)
            if division.compare is not None:
                everything = merged(observers, self.observe(collector, "compare", division.compare, progress, saved))
        collect_graphs_like(self.prepared.graph)
        if division.compare is None or options.effort == "fast":
            return Calibrated(everything, self.propose(everything, options))
        images = Subset(division.compare, np.arange(min(self._compared(options), len(division.compare))))
        found = self._search(images, observers, options, progress)
        return Calibrated(everything, found, len(images))

    def propose(self, observers: Observers, options: SearchOptions) -> Found:
        """Return the plan that the layer errors alone suggest."""
        return Found(propose(self.plan, Proposals(Bases(self.prepared, observers, self.form), options)))

    def collector(self) -> Collector:
        """Open the graph with the tensors to observe as outputs."""
        return Collector(self.prepared.graph, self.tensors, self.open_graph, self.most_rows)

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
            progress.note(f"calibration resumes after {seen} of {len(dataset)} images")
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

    def _search(self, dataset: Dataset, observers: Observers, options: SearchOptions, progress: Progress) -> Found:
        images = [batch.copy() for batch in batches(dataset, self.preprocess, self.batch)]
        reference = self._logits(self.prepared.graph, images)
        realizer = Realizer(self.prepared, observers, self.form)

        def score(plan: PrecisionPlan) -> float:
            logits = self._logits(realizer.realize(plan).model, images)
            collect_graphs_like(self.prepared.graph)  # the graph that was just tried
            return logits_sqnr_db(logits, reference)

        def timed(before: PrecisionPlan, after: PrecisionPlan) -> Speeds:
            assert self.time_pair is not None
            return self.time_pair(realizer.realize(before).model, realizer.realize(after).model)

        proposals = Proposals(realizer.bases, options, self.wider)
        return search(self.plan, proposals, score, progress, None if self.time_pair is None else timed)

    def _compared(self, options: SearchOptions) -> int:
        """Return on how many images a step is tried: fewer the more the graph computes, all with effort ``best``."""
        shapes = self.prepared.shapes
        rows = [
            math.prod(size or 1 for size in shapes.get(str(group.activation.name), ()))
            for group in self.prepared.linears
        ]
        outputs = [sum(linear.out_features for linear in group.linears) for group in self.prepared.linears]
        macs = sum(values * columns for values, columns in zip(rows, outputs, strict=True)) / 2
        if options.effort == "best":
            return MOST_COMPARED
        return round(min(max(MOST_COMPARED * _FULLY_COMPARED_MACS / max(macs, 1.0), LEAST_COMPARED), MOST_COMPARED))

    def _logits(self, model: ir.Model, images: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        with self.open_graph(model) as session:
            return np.concatenate([run_batch(session, batch) for batch in images])
