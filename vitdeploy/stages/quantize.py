"""``quantize``: from an FP32 graph to one in FP16, INT8 or FP8, checked on images that it has not seen."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy import environment
from vitdeploy.artifacts import Artifact, Golden, OnnxModel, open_onnx, write_calibration_table, write_onnx
from vitdeploy.artifacts.calibration_table import arrays_of
from vitdeploy.artifacts.naming import output_beside
from vitdeploy.artifacts.outputs import refuse_unwritable, refuse_unwritable_folder
from vitdeploy.datasets import Dataset, match_labels
from vitdeploy.datasets.base import Subset
from vitdeploy.errors import (
    BackendError,
    BudgetError,
    DataError,
    GateError,
    GraphError,
    UsageError,
    VitdeployError,
    warn,
)
from vitdeploy.progress import SILENT, Progress
from vitdeploy.quantization.budget import Place, Validation
from vitdeploy.quantization.budget_journal import BudgetJournal
from vitdeploy.quantization.budget_run import FRONT, PAGE, BudgetRun, best_found_path, front_folder, write_front
from vitdeploy.quantization.calibrate import calibrate
from vitdeploy.quantization.calibration import Calibrated
from vitdeploy.quantization.division import Division
from vitdeploy.quantization.request import (
    DEFAULTS,
    CalibrationSource,
    QuantizeInputs,
    QuantizeOptions,
    open_inputs,
)
from vitdeploy.quantization.saved_observations import SavedObservations
from vitdeploy.quantization.table import ranges_of
from vitdeploy.records import (
    CalibrationInfo,
    Check,
    ErrorProfile,
    Kind,
    Manifest,
    NodePrecision,
    Precision,
    PrecisionPlan,
    Target,
)
from vitdeploy.terminal_progress import AUTO, shown

if TYPE_CHECKING:
    import onnx_ir as ir

    from vitdeploy.backends.timing_place import TimingPlace
    from vitdeploy.quantization.prepared import Prepared
    from vitdeploy.quantization.realize import Realized
    from vitdeploy.records import Preprocess
    from vitdeploy.sessions import Opener, Session

__all__ = ["QuantizeOptions", "QuantizeRequest", "quantize"]

EXPECTED_SQNR_DB: dict[NodePrecision, float] = {
    "fp32": 100.0,
    "fp16": 40.0,
    "int8": 20.0,
    "int8-weight-only": 25.0,
    "fp8": 15.0,
}
"""Logits SQNR below which the check fails: FP16 rounds at 2⁻¹¹; INT8 ViTs of good accuracy have 20 dB and more."""
CHECK_BATCH = 16
CHECKED_OF_BUDGET = 256
"""A search has run over all validation images already; the check is of the graph that is written."""
FP16_SCALES_OPSET = 19


def quantize(
    model: Artifact | Path | str,
    output: Path | str | None = None,
    *,
    precision: Precision,
    target: Target | None = None,
    calibration: CalibrationSource | None = None,
    options: QuantizeOptions = DEFAULTS,
    progress: Progress | None = AUTO,
) -> OnnxModel:
    """Write ``model`` in another precision for one runtime, and judge it on images kept out of calibration.

    A fifth of the calibration images (at least 16) is kept out for that, unless ``options.validation`` names others.
    The new graph is compared with the FP32 one, both under ONNX Runtime on the CPU: logits SQNR and agreement, kept in
    ``manifest.checks``. The golden samples get this graph's outputs and keep PyTorch's.

    Args:
        model: An FP32 OnnxModel, or the file of one.
        output: The ``.onnx`` to write; nothing is written when anything fails. None for one beside the model, called
            after precision and runtime, such as ``vit.int8.onnx`` or ``vit.int8.onnxruntime.onnx``.
        precision: ``fp16``, ``int8``, ``int8-weight-only`` or ``fp8`` (TensorRT only).
        target: The runtime that the graph is for; it decides the precision of the remainder, FP16 for ``tensorrt``
            and FP32 for the others. None: that of ``options.time_on``, else ``tensorrt``.
        calibration: DATA (labels are not needed) or a CalibrationTable; int8 and fp8 need it. Data without a split
            means its training split where it has one.
        options: See ``QuantizeOptions``. With ``max_drop``, ``precision`` is what groups may go to: some of them, or
            all, stay in FP16 or FP32 where the drop or the time asks for it. What was tried is written into a folder
            beside ``output``, ``NAME.budget``.
        progress: Shows calibration, comparisons and check.
    Raises:
        CalibrationError: There is no calibration data, it gives NaN, it is a test split, or a table does not fit.
        GraphError: The graph is quantized already, has nothing to quantize, or the plan names a group it has not.
        UsageError: Options contradict each other.
        GateError: The logits SQNR is below ``min_sqnr_db``; or nothing faster than FP32 is within ``max_drop``, and the
            best that was found is beside ``output`` as ``NAME.best-found.onnx``.
        BackendError: This machine cannot run what ``time_on`` names.
        ArtifactError: A file is missing or damaged, or ``output`` cannot be written.
        DataError: Images cannot be read.
    """
    request = QuantizeRequest.open(
        model, output, precision=precision, target=target, calibration=calibration, options=options
    )
    return request.run(shown(progress))


@dataclass(frozen=True, kw_only=True)
class QuantizeRequest(QuantizeInputs):
    """A quantization that is ready to run: every source opened and checked, and where the graph goes."""

    output: Path
    budget: Budget | None = None

    @classmethod
    def open(
        cls,
        model: Artifact | Path | str,
        output: Path | str | None = None,
        *,
        precision: Precision,
        target: Target | None = None,
        calibration: CalibrationSource | None = None,
        options: QuantizeOptions = DEFAULTS,
    ) -> QuantizeRequest:
        """Open model, plan, table and data; no runtime is loaded.

        Raises:
            VitdeployError: As ``quantize``, where sources or options are unfit or the output cannot be written.
        """
        source = open_onnx(model)
        target = target or _target_of(options)
        runtime = "" if target == "tensorrt" else f".{target}"
        output = Path(output) if output is not None else output_beside(source.path, f".{precision}{runtime}.onnx")
        read = (source, calibration, options.plan, options.validation)
        refuse_unwritable(output, "an ONNX file", inputs=read)
        if options.table is not None:
            refuse_unwritable(options.table, "a calibration table", inputs=read, beside=(arrays_of(options.table),))
        inputs = open_inputs(source, precision, target, calibration, options)
        budget = None
        if options.max_drop is not None:
            budget = Budget.open(inputs)
            refuse_unwritable_folder(front_folder(output), (FRONT, PAGE))
            refuse_unwritable(best_found_path(output), "an ONNX file", inputs=read)
        return cls(output=output, budget=budget, **{one.name: getattr(inputs, one.name) for one in fields(inputs)})

    @property
    def values(self) -> dict[str, Any]:
        """The options as JSON values, with what latencies depend on where they decide."""
        return super().values | ({} if self.budget is None else {"time_on": self.budget.place.identity})

    def data_notes(self) -> list[str]:
        """Return what should be said of the calibration images: which they are, and what is left out."""
        if self.data is None:
            return []
        return [f"calibration images: {len(self.data)} of {self.data.uri!r}", *self.data.notes]

    def run(self, progress: Progress = SILENT) -> OnnxModel:
        """Calibrate, quantize, check, and write the graph.

        Raises:
            VitdeployError: As ``quantize``.
        """
        from vitdeploy.backends.onnxruntime import cpu_opener
        from vitdeploy.quantization.prepared import Prepared
        from vitdeploy.quantization.realize import Realizer, finish

        for note in self.data_notes():
            progress.note(note)
        before = Prepared.of(self.source.load())
        plan = self.plan_of(before)
        _note_opset(before.graph, plan, progress)
        division = self.divide()
        open_graph = cpu_opener(self.options.threads)
        self.warn_of_images()
        saved = SavedObservations(self.output, self.key)
        try:
            calibrated, info = calibrate(before, plan, division, self, open_graph, progress, saved)
        except VitdeployError:
            saved.remove()
            raise
        final, chosen, plan = self, None, calibrated.found.plan
        if self.budget is not None and division is not None:
            journal = BudgetJournal(self.output, self.key)
            chosen = self.budget.run(self, open_graph, journal).run(before, calibrated, division, progress)
            final, plan = replace(self, precision=chosen.precision), chosen.plan
        realized = Realizer(before, calibrated.observers, self.form).realize(plan)
        if self.precision == "fp16":
            realized = _without_overflows(realized, before.graph, division, self, open_graph, progress)
        realized = finish(realized, before.graph)
        judged = _judge(before.graph, realized.model, _check_images(self, division), final, open_graph)
        _gate(judged, final)
        if self.options.table is not None and info is not None and self.table is None:
            _keep_table(self.options.table, calibrated, self, info)
        checks = judged.checks if chosen is None else (*judged.checks, chosen.check)
        profile = _error_profile(before, realized, _check_images(self, division), self, open_graph)
        manifest = _manifest(self, "onnx", info).model_copy(
            update={
                "plan": realized.plan,
                "checks": checks,
                "precision": final.precision,
                "error_profile": profile,
            }
        )
        output = self.output if chosen is None or chosen.is_within else best_found_path(self.output)
        written = write_onnx(output, realized.model, manifest, judged.golden)
        saved.remove()
        if chosen is not None:
            front = write_front(front_folder(self.output), chosen.front)
            journal.remove()
            if not chosen.is_within:
                raise BudgetError(
                    f"{chosen.front.verdict[0]}; only {str(output)!r} was written, {str(self.output)!r} was not", front
                )
        return written


@dataclass(frozen=True)
class Budget:
    """What a budget needs beside a quantization: where latency counts, and the labels of the validation images."""

    place: TimingPlace
    labels: NDArray[np.int64]

    @classmethod
    def open(cls, inputs: QuantizeInputs) -> Budget:
        """Check what a budget needs.

        Raises:
            UsageError: Precision, calibration or target do not suit a budget, or ``time_on`` is not known.
            DataError: There are no validation images, or their labels do not fit the model.
            BackendError: This machine cannot time there.
        """
        from vitdeploy.backends.timing_place import TimingPlace

        assert inputs.options.time_on is not None
        place = TimingPlace.parse(inputs.options.time_on)
        if inputs.precision not in ("int8", "fp8"):
            raise UsageError(f"max_drop chooses where {inputs.precision!r} is used, expected precision int8 or fp8")
        if place.target not in (None, inputs.target):
            raise UsageError(f"the target is {inputs.target!r} and latency is taken on {place.target!r}: name one")
        if inputs.table is not None:
            raise UsageError("max_drop ranks groups on calibration images, and a table holds none: --calibration DATA")
        model = inputs.source.manifest.model
        if inputs.validation is None:
            raise DataError("max_drop needs images with labels that calibration does not see: --validation DATA")
        if model.task not in ("single-label", "binary"):
            raise UsageError(f"max_drop is a drop of top-1, which a model with the task {model.task!r} has not")
        labels = match_labels(inputs.validation, model.classes, count=model.class_count)
        place.require()
        return cls(place, labels)

    def run(self, request: QuantizeRequest, open_on_cpu: Opener, journal: BudgetJournal) -> BudgetRun:
        """Return the search for an opened request."""
        from vitdeploy.benching.latency import GPU_WARM_S

        options, manifest = request.options, request.source.manifest
        assert request.validation is not None
        assert manifest.preprocess is not None
        batch, place = options.time_batch, self.place
        where = Place(
            place.opener(manifest, batch, options.threads),
            place.title,
            batch,
            limits=(batch, batch) if place.builds_engines else None,
            warm_s=GPU_WARM_S if place.device == "cuda" else 0.0,
        )
        validation = Validation(request.validation, self.labels, manifest.preprocess, manifest.model)
        return BudgetRun(request, where, validation, open_on_cpu, journal)


def _target_of(options: QuantizeOptions) -> Target:
    from vitdeploy.backends.timing_place import TimingPlace

    place = None if options.time_on is None else TimingPlace.parse(options.time_on)
    return (None if place is None else place.target) or "tensorrt"


def _without_overflows(
    realized: Realized,
    graph: ir.Model,
    division: Division | None,
    request: QuantizeRequest,
    open_graph: Opener,
    progress: Progress,
) -> Realized:
    """Return the plan with the nodes in FP32 that overflow in FP16 on the calibration images, else on golden samples.

    ONNX Runtime computes FP16 on a CPU in FP32 here and there, so its logits need not show what overflows on a GPU.
    """
    from vitdeploy.datasets import batches
    from vitdeploy.quantization.overflow import extended, find_overflows

    golden, preprocess = request.source.golden, request.source.manifest.preprocess
    if preprocess is None or (division is None and golden is None):
        return realized
    if division is not None:
        found = find_overflows(graph, batches(division.fit, preprocess, 1), open_graph)
    else:
        assert golden is not None
        found = find_overflows(graph, _one_by_one(golden, preprocess), open_graph)
    if found:
        progress.note(f"{len(found)} values leave the FP16 range, so their nodes stay in FP32: first, {found[0]}")
    return replace(realized, plan=extended(realized.plan, found))


def _one_by_one(golden: Golden, preprocess: Preprocess) -> Iterator[NDArray[np.float32]]:
    from vitdeploy.preprocess import to_input

    return (to_input(golden.pixels[i : i + 1], preprocess) for i in range(len(golden.pixels)))


def _overflow_text(before: ir.Model, request: QuantizeRequest, open_graph: Opener) -> str:
    """Return which node overflows first on the golden samples, and the plan that keeps it in FP32; "" for none."""
    from vitdeploy.quantization.overflow import find_overflows, keeping

    golden, preprocess = request.source.golden, request.source.manifest.preprocess
    if golden is None or preprocess is None:
        return ""
    found = find_overflows(before, _one_by_one(golden, preprocess), open_graph)
    if not found:
        return ""
    entry = keeping(found).model_dump_json(exclude_none=True)
    return (
        f": first, {found[0]}, and FP16 ends at 65504; --calibration DATA finds such nodes, or a --plan with the entry "
        f"{entry} keeps them in FP32"
    )


def _note_opset(graph: ir.Model, plan: PrecisionPlan, progress: Progress) -> None:
    opset = graph.opset_imports.get("", 0)
    integers = any(entry.precision.startswith("int8") for entry in plan.entries)
    if integers and plan.remainder == "fp16" and opset < FP16_SCALES_OPSET:
        progress.note(
            f"the graph has opset {opset}, where scales are FP32 and need casts around every pair: "
            f"'vitdeploy export … --opset {FP16_SCALES_OPSET}' or newer gives a faster engine"
        )


@dataclass(frozen=True)
class _Judged:
    """What the check found, and the golden samples with the new graph's outputs."""

    checks: tuple[Check, ...]
    golden: Golden | None


def _check_images(request: QuantizeRequest, division: Division | None) -> Dataset | None:
    if request.validation is not None and request.options.max_drop is not None:
        return Subset(request.validation, np.arange(min(CHECKED_OF_BUDGET, len(request.validation))))
    if request.validation is not None:
        return request.validation
    return None if division is None else division.check


def _judge(
    before: ir.Model, after: ir.Model, images: Dataset | None, request: QuantizeRequest, open_graph: Opener
) -> _Judged:
    """Compare both graphs on images, else on the golden samples.

    Raises:
        GraphError: ONNX Runtime refuses the new graph, or its logits are NaN or infinite.
    """
    from vitdeploy.measure.accuracy import collect_logits

    golden, preprocess = request.source.golden, request.source.manifest.preprocess
    with open_graph(before) as old, _opened(open_graph, after) as new:
        renewed = None
        if golden is not None and preprocess is not None:
            try:
                outputs = _logits_of(new, golden, request)
            except GraphError as error:
                raise GraphError(f"{error}{_overflow_text(before, request, open_graph)}") from error
            renewed = Golden(golden.pixels, golden.reference, outputs)
        if images is not None and preprocess is not None:
            found = collect_logits({"before": old, "after": new}, images, preprocess, batch=CHECK_BATCH)
            if found.failures:
                raise GraphError(f"the {request.precision} graph is unfit: {next(iter(found.failures.values()))}")
            what = f"{len(images)} images of {images.uri!r} that calibration has not seen"
            return _Judged(_checks(found.logits["after"], found.logits["before"], what, request), renewed)
        if golden is not None and renewed is not None:
            what = f"{len(golden.pixels)} golden samples"
            return _Judged(_checks(renewed.outputs, _logits_of(old, golden, request), what, request), renewed)
    reason = "there were no images: --validation DATA gives some"
    return _Judged((Check(name="logits SQNR", status="unchecked", unit="dB", detail=reason),), renewed)


def _error_profile(
    before: Prepared, realized: Realized, images: Dataset | None, request: QuantizeRequest, open_graph: Opener
) -> ErrorProfile | None:
    """Return where the error arises, on a few images of the check or on golden samples; None: none is in 8 bits."""
    from vitdeploy.datasets import batches
    from vitdeploy.quantization.error_profile import MOST_IMAGES, profile_errors

    golden, preprocess = request.source.golden, request.source.manifest.preprocess
    if preprocess is None or not any(entry.precision in ("int8", "fp8") for entry in realized.plan.entries):
        return None
    if images is not None:
        chosen = Subset(images, np.arange(min(MOST_IMAGES, len(images))))
        return profile_errors(before, realized.model, batches(chosen, preprocess, 1), open_graph)
    return (
        None if golden is None else profile_errors(before, realized.model, _one_by_one(golden, preprocess), open_graph)
    )


def _opened(open_graph: Opener, model: ir.Model) -> Session:
    try:
        return open_graph(model)
    except BackendError as error:
        raise GraphError(f"the quantized graph does not load: {error}") from error


def _logits_of(session: Session, golden: Golden, request: QuantizeRequest) -> NDArray[np.float32]:
    from vitdeploy.measure.accuracy import run_batch
    from vitdeploy.preprocess import to_input

    assert request.source.manifest.preprocess is not None
    logits = run_batch(session, to_input(golden.pixels, request.source.manifest.preprocess))
    if not np.isfinite(logits).all():
        raise GraphError(f"the {request.precision} graph gives NaN or infinite logits on the golden samples")
    return logits


def _checks(
    after: NDArray[np.float32], before: NDArray[np.float32], what: str, request: QuantizeRequest
) -> tuple[Check, ...]:
    from vitdeploy.measure.heads import predicted_classes
    from vitdeploy.measure.statistics import logits_sqnr_db

    sqnr = logits_sqnr_db(after, before)
    limit = request.options.min_sqnr_db
    limit = EXPECTED_SQNR_DB[request.precision] if limit is None else limit
    detail = f"against the FP32 graph on {what}"
    if math.isinf(sqnr):
        fidelity = Check(name="logits SQNR", status="passed", unit="dB", detail=f"{detail}: equal bit for bit")
    else:
        status = "passed" if sqnr >= limit else "failed"
        fidelity = Check(name="logits SQNR", status=status, value=sqnr, limit=limit, unit="dB", detail=detail)
    model = request.source.manifest.model
    ours, theirs = predicted_classes(after, model), predicted_classes(before, model)
    if ours is None or theirs is None:
        return (fidelity,)
    same = float(np.mean(ours == theirs))
    return fidelity, Check(name="agreement", status="passed", value=same, detail=f"same first class, {detail}")


def _gate(judged: _Judged, request: QuantizeRequest) -> None:
    for check in judged.checks:
        if check.status != "failed" or check.value is None or check.limit is None:
            continue
        words = f"logits SQNR {check.value:.1f} dB is below {check.limit:g} dB, {check.detail}"
        if request.options.min_sqnr_db is not None:
            raise GateError(f"{words}: nothing was written; more calibration images or a --plan may help")
        warn(f"{words}: bench it before it ships; more calibration images or a plan may help")


def _keep_table(path: Path, calibrated: Calibrated, request: QuantizeRequest, info: CalibrationInfo | None) -> None:
    manifest = _manifest(request, "calibration-table", info).model_copy(update={"plan": calibrated.found.plan})
    write_calibration_table(Path(path), ranges_of(calibrated.observers), manifest)


def _manifest(request: QuantizeRequest, kind: Kind, info: CalibrationInfo | None) -> Manifest:
    source, versions = request.source.manifest, environment.versions()
    return Manifest(
        kind=kind,
        key=request.key,
        model=source.model,
        preprocess=source.preprocess,
        trained_on=source.trained_on,
        precision=request.precision,
        target=request.target,
        calibration=info,
        parents=request.parents,
        options=request.values,
        producer=f"vitdeploy {versions.get('vitdeploy', '')}".strip(),
        versions=versions,
        environment=environment.current(),
    )
