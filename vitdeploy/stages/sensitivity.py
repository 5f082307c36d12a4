"""``sensitivity``: where the error of a quantized graph comes from, group by group."""

from __future__ import annotations

import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from vitdeploy import environment
from vitdeploy.artifacts import Artifact, open_onnx
from vitdeploy.datasets import Dataset, DataSource, batches, match_labels, open_dataset
from vitdeploy.datasets.base import Subset
from vitdeploy.datasets.partition import choose
from vitdeploy.errors import CalibrationError, DataError, UsageError, require_one_of
from vitdeploy.progress import SILENT, Progress
from vitdeploy.quantization.calibrate import calibrate
from vitdeploy.quantization.request import DEFAULTS, CalibrationSource, QuantizeInputs, QuantizeOptions, open_inputs
from vitdeploy.quantization.search import Proposals
from vitdeploy.records import NodePrecision, Sensitivity, Target
from vitdeploy.terminal_progress import AUTO, shown

if TYPE_CHECKING:
    from vitdeploy.quantization.sensitivity import TrialImages

__all__ = ["SensitivityRequest", "sensitivity"]

Level = Literal["groups", "kinds"]
PRECISIONS = ("int8", "int8-weight-only", "fp8")
BATCH = 16


def sensitivity(
    model: Artifact | Path | str,
    *,
    calibration: CalibrationSource | None,
    data: DataSource | None = None,
    precision: NodePrecision = "int8",
    target: Target = "tensorrt",
    level: Level = "groups",
    images: int = 128,
    options: QuantizeOptions = DEFAULTS,
    progress: Progress | None = AUTO,
) -> Sensitivity:
    """Quantize every group of ``model`` alone, and leave every group out alone, and say what that does to the logits.

    Calibration and choice of ranges happen once, as ``quantize`` does them; each trial then is one graph, run under
    ONNX Runtime on the CPU with an FP32 remainder and compared with the FP32 graph. Groups that the profile leaves in
    high precision (patch embedding, head, products of attention) are tried too, alone. Nothing is written.

    Args:
        model: An FP32 OnnxModel, or the file of one.
        calibration: DATA or a CalibrationTable.
        data: Images that trials run on; with labels the change of top-1 is known too. None for those that ``quantize``
            keeps out of calibration for its check.
        precision: ``int8``, ``int8-weight-only`` or ``fp8``.
        target: The runtime that the graph is for.
        level: ``kinds`` tries only all groups of a kind together, which is quick; ``groups`` each group as well.
        images: At most so many of ``data``, each class in proportion to its share.
        options: As of ``quantize``; ``validation``, ``table`` and ``min_sqnr_db`` belong to ``quantize`` alone.
        progress: Shows calibration and trials.
    Raises:
        CalibrationError: There is no calibration data, it gives NaN, or it leaves no images for the trials.
        GraphError: The graph is quantized already, has nothing to quantize, or the plan does not fit it.
        UsageError: Options contradict each other.
        ArtifactError, DataError: A file cannot be read.
    """
    request = SensitivityRequest.open(
        model,
        calibration=calibration,
        data=data,
        precision=precision,
        target=target,
        level=level,
        images=images,
        options=options,
    )
    return request.run(shown(progress))


@dataclass(frozen=True, kw_only=True)
class SensitivityRequest(QuantizeInputs):
    """A sensitivity analysis that is ready to run: every source opened and checked."""

    level: Level
    images: int

    @classmethod
    def open(
        cls,
        model: Artifact | Path | str,
        *,
        calibration: CalibrationSource | None,
        data: DataSource | None = None,
        precision: NodePrecision = "int8",
        target: Target = "tensorrt",
        level: Level = "groups",
        images: int = 128,
        options: QuantizeOptions = DEFAULTS,
    ) -> SensitivityRequest:
        """Open model, plan, table and data; no runtime is loaded.

        Raises:
            VitdeployError: As ``sensitivity``, where sources or options are unfit.
        """
        require_one_of("precision", precision, PRECISIONS)
        require_one_of("level", level, ("groups", "kinds"))
        if images < 1:
            raise UsageError(f"images is {images}, expected at least 1")
        for name in ("validation", "table", "min_sqnr_db"):
            if getattr(options, name) is not None:
                raise UsageError(f"{name} belongs to quantize: sensitivity writes no graph, its images are data")
        checked = None if data is None else open_dataset(data)
        inputs = open_inputs(open_onnx(model), precision, target, calibration, options, validation=checked)
        if inputs.data is None and inputs.validation is None:
            raise CalibrationError(
                "there are no images to run the trials on, a calibration table holds none: data='DATA' gives some"
            )
        return cls(level=level, images=images, **{one.name: getattr(inputs, one.name) for one in fields(inputs)})

    def run(self, progress: Progress = SILENT) -> Sensitivity:
        """Calibrate, and try the parts.

        Raises:
            VitdeployError: As ``sensitivity``.
        """
        from vitdeploy.backends.onnxruntime import cpu_opener
        from vitdeploy.quantization.prepared import Prepared
        from vitdeploy.quantization.realize import Realizer
        from vitdeploy.quantization.sensitivity import SensitivityTrials, ranked, treated, widened

        start = time.monotonic()
        prepared = Prepared.of(self.source.load())
        plan = self.plan_of(prepared)
        wide = widened(plan, prepared, self.precision)
        division = self.divide()
        dataset = self._trial_images(None if division is None else division.check)
        open_graph = cpu_opener(self.options.threads, self.form.judged_as)
        self.warn_of_images()
        calibrated, info = calibrate(prepared, plan, division, self, open_graph, progress, also=wide)
        plan = calibrated.found.plan
        realizer = Realizer(prepared, calibrated.observers, self.form)
        wide = treated(wide, plan, Proposals(realizer.bases, self.search_options()))
        images = self._loaded(dataset, progress)
        trials = SensitivityTrials(realizer, plan, wide, images, open_graph)
        groups, kinds = trials.parts()
        parts = [*(groups if self.level == "groups" else ()), *kinds]
        count = 2 + sum(1 + part.quantized for part in parts)
        progress.note(f"{count} graphs on {len(images)} images each: {count * len(images)} images in all")
        whole, found = trials.run(parts, self.source.manifest.model, progress)
        tried = len(found) - len(kinds)
        versions = environment.versions()
        return Sensitivity(
            model=self.source.path.name,
            model_sha256=self.source.digest,
            precision=self.precision,
            target=self.target,
            calibration="" if info is None else info.data,
            calibration_images=0 if info is None else info.samples,
            data=dataset.uri,
            data_sha256=dataset.digest,
            images=len(images),
            labelled=images.labels is not None,
            trials=count,
            seconds=time.monotonic() - start,
            all=whole,
            groups=ranked(found[:tried]),
            kinds=ranked(found[tried:]),
            plan=plan,
            producer=f"vitdeploy {versions.get('vitdeploy', '')}".strip(),
            versions=versions,
            environment=environment.current(),
        )

    def _trial_images(self, held_out: Dataset | None) -> Dataset:
        dataset = self.validation or held_out
        assert dataset is not None
        if len(dataset) <= self.images:
            return dataset
        names = [dataset.name(index) for index in range(len(dataset))]
        return Subset(dataset, choose(names, dataset.labels, self.images, self.options.seed))

    def _loaded(self, dataset: Dataset, progress: Progress) -> TrialImages:
        """Return the images as network inputs, with labels where they fit the model's classes."""
        from vitdeploy.quantization.sensitivity import TrialImages

        manifest = self.source.manifest
        assert manifest.preprocess is not None
        labels = None
        if dataset.labels is not None and manifest.model.task in ("single-label", "binary"):
            try:
                labels = match_labels(dataset, manifest.model.classes, count=manifest.model.class_count)
            except DataError as error:
                progress.note(f"top-1 is left out: {error}")
        loaded = [np.array(batch) for batch in batches(dataset, manifest.preprocess, BATCH)]
        return TrialImages(loaded, labels)
