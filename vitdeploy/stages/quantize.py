"""``quantize``: from an FP32 graph to one in FP16, INT8 or FP8, checked on images that it has not seen."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from vitdeploy import environment
from vitdeploy.artifacts import Artifact, OnnxModel, open_onnx, write_onnx
from vitdeploy.artifacts.calibration_table import arrays_of, calibration_table_beside
from vitdeploy.artifacts.naming import output_beside
from vitdeploy.artifacts.outputs import refuse_unwritable, refuse_unwritable_folder
from vitdeploy.backends.lowered import lowered_path
from vitdeploy.datasets import match_labels
from vitdeploy.errors import (
    BackendError,
    BudgetError,
    DataError,
    GraphError,
    UsageError,
    VitdeployError,
    warn,
)
from vitdeploy.measure.pairs import Speeds, TimePair, gains, loses, pair_timer, speeds_text
from vitdeploy.progress import SILENT, Progress
from vitdeploy.quantization.budget import Place, Validation
from vitdeploy.quantization.budget_choice import too_few_images
from vitdeploy.quantization.budget_journal import BudgetJournal
from vitdeploy.quantization.budget_run import PAGE, BudgetRun, FrontPage, best_found_path, front_beside, front_folder
from vitdeploy.quantization.calibrate import calibrate
from vitdeploy.quantization.calibration import Calibrated
from vitdeploy.quantization.check import (
    CHECK_BATCH,
    check_images,
    error_profile,
    hold,
    judge,
    without_overflows,
)
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
    Kind,
    Manifest,
    Precision,
    PrecisionPlan,
    Target,
)
from vitdeploy.records.budget import FRONT
from vitdeploy.terminal_progress import AUTO, shown

if TYPE_CHECKING:
    import onnx_ir as ir

    from vitdeploy.backends.timing_place import TimingPlace
    from vitdeploy.quantization.prepared import Prepared
    from vitdeploy.sessions import Opener

__all__ = ["QuantizeOptions", "QuantizeRequest", "quantize"]

FP16_SCALES_OPSET = 19


def quantize(
    model: Artifact | Path | str,
    output: Path | str | None = None,
    *,
    precision: Precision,
    target: Target | None = None,
    calibration: CalibrationSource | None = None,
    options: QuantizeOptions = DEFAULTS,
    front_page: FrontPage | None = None,
    progress: Progress | None = AUTO,
) -> OnnxModel:
    """Write ``model`` in another precision for one runtime, and judge it on images kept out of calibration.

    A fifth of the calibration images (at least 16) is kept out for that, unless ``options.validation`` names others.
    The new graph is compared with the FP32 one, both under ONNX Runtime on the CPU: logits SQNR and agreement, kept in
    ``manifest.checks``. The golden samples get this graph's outputs and keep PyTorch's.

    Args:
        model: An FP32 OnnxModel, or the file of one.
        output: The ``.onnx`` to write; nothing is written when anything fails. None for one beside the model, called
            after precision and runtime, such as ``vit.int8.onnx`` or ``vit.int8.onnxruntime.onnx``. With
            ``options.lower`` a second graph is written beside it.
        precision: ``fp16``, ``int8``, ``int8-weight-only`` or ``fp8`` (TensorRT only).
        target: The runtime that the graph is for; it decides the precision of the remainder, FP16 for ``tensorrt``
            and FP32 for the others; ``options.remainder`` has BF16 for ``openvino``. None: that of
            ``options.time_on``, else ``tensorrt``.
        calibration: DATA (labels are not needed) or a CalibrationTable; int8 and fp8 need it. Data without a split
            means its training split where it has one.
        options: See ``QuantizeOptions``. With ``max_drop``, ``precision`` is what groups may go to: some of them, or
            all, stay in FP16 or FP32 where the drop or the time asks for it. What was tried is written into a folder
            beside ``output``, ``NAME.budget``.
        front_page: With ``max_drop``, renders the page of what was tried, which takes its place with the rest; None
            writes none (``vd.write_front_page`` does, later).
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
    progress = shown(progress)
    if target is None and request.target == "tensorrt" and precision == "int8" and environment.reason_without_gpu():
        progress.note(
            "the graph is for TensorRT, as none is named; for a CPU: target='onnxruntime' or target='openvino'"
        )
    return replace(request, front_page=front_page).run(progress)


@dataclass(frozen=True, kw_only=True)
class QuantizeRequest(QuantizeInputs):
    """A quantization that is ready to run: every source opened and checked, and where the graph goes."""

    output: Path
    budget: Budget | None = None
    front_page: FrontPage | None = None

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
        if options.lower:
            refuse_unwritable(lowered_path(output), "an ONNX file", inputs=read)
        budget = None
        if options.max_drop is not None:
            budget = Budget.open(inputs)
            refuse_unwritable_folder(front_folder(output), (FRONT, PAGE))
            refuse_unwritable(best_found_path(output), "an ONNX file", inputs=read)
        return cls(output=output, budget=budget, **{one.name: getattr(inputs, one.name) for one in fields(inputs)})

    @property
    def values(self) -> dict[str, Any]:
        """The options as JSON values, with what latencies depend on where they decide."""
        found = super().values | ({} if self.budget is None else {"time_on": self.budget.place.identity})
        if not self.is_for_this_machine:
            return found
        timed_on = {"version": environment.versions().get(self.target), "cpu": environment.cpu_name()}
        return found | {"timed_on": timed_on}

    def data_notes(self) -> list[str]:
        """Return what should be said of the calibration images: which they are, and what is left out."""
        if self.data is None:
            return []
        division = self.divide()
        used = "" if division is None or not self.needs_ranges else f": {division.words}"
        return [f"calibration images: {len(self.data)} of {self.data.uri!r}{used}", *self.data.notes]

    def budget_notes(self) -> list[str]:
        """Return what is known of a search for a budget before any work: that too few images can certify nothing."""
        if self.budget is None or self.validation is None or self.options.max_drop is None:
            return []
        few = too_few_images(len(self.validation), self.options.max_drop)
        best = repr(str(best_found_path(self.output)))
        return [
            f"{few}: candidates are ranked by the error of their logits instead, and unless FP32 is the fastest the "
            f"best of them is written as {best}, with exit code 3"
        ] * bool(few)

    def run(self, progress: Progress = SILENT) -> OnnxModel:
        """Calibrate, quantize, check, and write the graph.

        Raises:
            VitdeployError: As ``quantize``.
        """
        from vitdeploy.backends.lowering import lower
        from vitdeploy.backends.onnxruntime import cpu_opener
        from vitdeploy.graph.linear_groups import products_left_out
        from vitdeploy.quantization.prepared import Prepared
        from vitdeploy.quantization.realize import Realizer, finish

        for note in (*self.data_notes(), *self.budget_notes()):
            progress.note(note)
        before = Prepared.of(self.source.load())
        plan = self.plan_of(before)
        _note_opset(before.graph, plan, progress)
        if left := products_left_out(before.graph):
            progress.note(f"{len(left)} product(s) with weights are no linears and stay in high precision: {left[0]}")
        division = self.divide()
        open_graph = cpu_opener(self.options.threads, self.form.judged_as)
        self.warn_of_images()
        saved = SavedObservations(self.output, self.key)
        time_pair = self._timer(progress)
        if time_pair is None:
            self._note_convolutions(before, plan, progress)
        try:
            wider = self.wider_plans_of(before, time_pair is not None)
            calibrated, info = calibrate(
                before, plan, division, self, open_graph, progress, saved, wider=wider, time_pair=time_pair
            )
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
            realized = without_overflows(realized, before.graph, division, self, open_graph, progress)
        realized = finish(realized, before.graph)
        judged = judge(before.graph, realized.model, check_images(self, division), final, open_graph)
        if realized.plan.remainder == "bf16":
            judged = replace(judged, checks=(*judged.checks, *self._in_bf16(before.graph, realized.model, division)))
        hold(judged, final)
        checks = judged.checks if chosen is None else (*judged.checks, chosen.check)
        if time_pair is not None:
            checks = (*checks, self._beside_fp32(time_pair(self.source.load(), realized.model)))
        profile = error_profile(realized.before, realized, check_images(self, division), self, open_graph)
        manifest = _manifest(self, "onnx", info).model_copy(
            update={
                "plan": realized.plan,
                "checks": checks,
                "precision": final.precision,
                "error_profile": profile,
            }
        )
        output = self.output if chosen is None or chosen.is_within else best_found_path(self.output)
        kept: AbstractContextManager[object] = nullcontext()
        if self.options.table is not None and info is not None and self.table is None:
            kept = _table_beside(self.options.table, calibrated, self, info)
        beside: AbstractContextManager[Path | None] = nullcontext()
        if chosen is not None:
            beside = front_beside(front_folder(self.output), chosen.front, self.front_page)
        with kept, beside as front:  # a disk without room for them has none for the graph
            written = write_onnx(output, realized.model, manifest, judged.golden)
        saved.remove()
        if self.options.lower:
            lower(written, progress, threads=self.options.threads)
        if chosen is not None and front is not None:
            journal.remove()
            if not chosen.is_within:
                raise BudgetError(
                    f"{chosen.front.verdict[0]}; only {str(output)!r} was written, {str(self.output)!r} was not", front
                )
        return written

    @property
    def _place(self) -> TimingPlace | None:
        """Where a graph for this machine is timed; None: its options ask for no time."""
        from vitdeploy.backends.timing_place import TimingPlace

        return TimingPlace(self.target, "bf16" if self._bf16 else None) if self.is_for_this_machine else None

    def _timer(self, progress: Progress) -> TimePair | None:
        """Return what times two graphs on this machine; None, with a note, where the target is not installed."""
        from vitdeploy.backends.lowering import pixels_of
        from vitdeploy.preprocess import to_input

        place, preprocess = self._place, self.source.manifest.preprocess
        if place is None or preprocess is None:
            return None
        try:
            place.require()
        except BackendError as error:
            progress.note(str(error))
            return None
        progress.note("graphs are timed beside each other on this machine: minutes in which nothing else should run")
        images = to_input(pixels_of(self.source), preprocess)
        opener = place.opener(self.source.manifest, 1, self.options.threads, self.form.judged_as)
        return pair_timer(opener, images, progress)

    def _note_convolutions(self, before: Prepared, plan: PrecisionPlan, progress: Progress) -> None:
        """Say that convolutions stay in high precision, where nobody chose that, and what tries and what takes them."""
        options, count = self.options, self.convolutions_of(before)
        if options.profile != "auto" or not count:
            return
        tried = self.data is not None and options.effort != "fast" and options.max_drop is None and self._place is None
        tries = "cpu='auto' tries them in 8 bits and times that on this machine, " if tried else ""
        takes = f"{tries}profile='full' has them in 8 bits{' untried' if tried else ''}"
        progress.note(f"{count} convolution(s) stay in {plan.remainder.upper()}: {takes}")

    def _beside_fp32(self, speeds: Speeds) -> Check:
        """Return how fast the graph is here beside the one that it was made of, with a warning where it is slower."""
        assert self._place is not None
        where, slower = f"the FP32 graph in {self._place.title} of this machine", loses(speeds)
        words = speeds_text(speeds)
        if slower:
            other = "onnxruntime" if self.target == "openvino" else "openvino"
            warn(
                f"{str(self.output)!r} is slower than {where}: that one is to be preferred here, unless a graph made "
                f"with target={other!r} is faster ({words})"
            )
        uncertain = "" if slower or gains(speeds) else "no certain difference: "
        status: Literal["passed", "failed", "unchecked"] = "failed" if slower else "passed" if speeds else "unchecked"
        return Check(name="speed", status=status, detail=f"{uncertain}{words}, beside {where}")

    def _in_bf16(self, before: ir.Model, after: ir.Model, division: Division | None) -> tuple[Check, ...]:
        """Compare both graphs once more, with OpenVINO computing the new one, where this machine has it and BF16."""
        from vitdeploy.backends.onnxruntime import cpu_opener
        from vitdeploy.backends.timing_place import TimingPlace

        place, threads = TimingPlace("openvino", "bf16"), self.options.threads
        images, in_openvino = check_images(self, division), place.opener(self.source.manifest, CHECK_BATCH, threads)
        try:
            place.require()
            on_cpu = cpu_opener(threads, self.form.judged_as)
            found = judge(before, after, images, self, on_cpu, in_openvino).checks
        except (BackendError, GraphError) as error:
            return (Check(name="logits SQNR beside BF16", status="unchecked", unit="dB", detail=str(error)),)
        return tuple(check.model_copy(update={"name": f"{check.name} beside BF16"}) for check in found)


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
            raise UsageError(f"max_drop= chooses where {inputs.precision!r} is used, expected precision int8 or fp8")
        if place.target not in (None, inputs.target):
            raise UsageError(f"the target is {inputs.target!r} and latency is taken on {place.target!r}: name one")
        if inputs.table is not None:
            raise UsageError("max_drop= ranks groups on calibration images, and a table holds none: calibration='DATA'")
        model = inputs.source.manifest.model
        if inputs.validation is None:
            raise DataError("max_drop= needs images with labels that calibration does not see: validation='DATA'")
        if model.task not in ("single-label", "binary"):
            raise UsageError(f"max_drop= is a drop of top-1, which a model with the task {model.task!r} has not")
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
            place.opener(manifest, batch, options.threads, request.form.judged_as),
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


def _note_opset(graph: ir.Model, plan: PrecisionPlan, progress: Progress) -> None:
    opset = graph.opset_imports.get("", 0)
    integers = any(entry.precision.startswith("int8") for entry in plan.entries)
    if integers and plan.remainder == "fp16" and opset < FP16_SCALES_OPSET:
        progress.note(
            f"the graph has opset {opset}, where scales are FP32 and need casts around every pair: "
            f"vd.export(..., options=vd.ExportOptions(opset={FP16_SCALES_OPSET})) or newer gives a faster engine"
        )


def _table_beside(
    path: Path, calibrated: Calibrated, request: QuantizeRequest, info: CalibrationInfo | None
) -> AbstractContextManager[object]:
    manifest = _manifest(request, "calibration-table", info).model_copy(update={"plan": calibrated.found.plan})
    return calibration_table_beside(Path(path), ranges_of(calibrated.observers), manifest)


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
