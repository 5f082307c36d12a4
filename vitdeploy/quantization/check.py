"""What ``quantize`` finds out about its own graph before it is written: against the FP32 graph, and inside."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy.artifacts import Golden
from vitdeploy.datasets import Dataset, batches
from vitdeploy.datasets.base import Subset
from vitdeploy.errors import BackendError, GateError, GraphError, warn
from vitdeploy.graph.values import collect_graphs_like, weight_bytes
from vitdeploy.measure.accuracy import collect_logits, run_batch
from vitdeploy.measure.heads import predicted_classes
from vitdeploy.measure.statistics import logits_sqnr_db
from vitdeploy.preprocess import to_input
from vitdeploy.progress import Progress
from vitdeploy.quantization.collector import batch_for
from vitdeploy.quantization.division import Division
from vitdeploy.quantization.error_profile import MOST_IMAGES, profile_errors
from vitdeploy.quantization.overflow import extended, find_overflows, keeping
from vitdeploy.quantization.prepared import Prepared
from vitdeploy.quantization.realize import Realized
from vitdeploy.quantization.request import QuantizeInputs
from vitdeploy.records import Check, ErrorProfile, NodePrecision, Preprocess
from vitdeploy.sessions import Opener, Session

EXPECTED_SQNR_DB: dict[NodePrecision, float] = {
    "fp32": 100.0,
    "fp16": 40.0,
    "int8": 20.0,
    "int8-weight-only": 25.0,
    "fp8": 15.0,
}
"""Logits SQNR below which the check fails: FP16 rounds at 2⁻¹¹; INT8 ViTs of good accuracy have 20 dB and more."""
CHECK_BATCH = 16
LARGE = 64 << 20
"""Bytes of weights from which the two graphs of a check run one after the other: the images are read twice, and never
are two sessions held."""
CHECKED_OF_BUDGET = 256
"""A search has run over all validation images already; the check is of the graph that is written."""


def without_overflows(
    realized: Realized,
    graph: ir.Model,
    division: Division | None,
    inputs: QuantizeInputs,
    open_graph: Opener,
    progress: Progress,
) -> Realized:
    """Return the plan with the nodes in FP32 that overflow in FP16 on the calibration images, else on golden samples.

    ONNX Runtime computes FP16 on a CPU in FP32 here and there, so its logits need not show what overflows on a GPU.
    """
    golden, preprocess = inputs.source.golden, inputs.source.manifest.preprocess
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
    return (to_input(golden.pixels[i : i + 1], preprocess) for i in range(len(golden.pixels)))


def _overflow_text(before: ir.Model, inputs: QuantizeInputs, open_graph: Opener) -> str:
    """Return which node overflows first on the golden samples, and the plan that keeps it in FP32; "" for none."""
    golden, preprocess = inputs.source.golden, inputs.source.manifest.preprocess
    if golden is None or preprocess is None:
        return ""
    found = find_overflows(before, _one_by_one(golden, preprocess), open_graph)
    if not found:
        return ""
    entry = keeping(found).model_dump_json(exclude_none=True)
    return (
        f": first, {found[0]}, and FP16 ends at 65504; calibration='DATA' finds such nodes, or plan='FILE' with the "
        f"entry {entry} keeps them in FP32"
    )


@dataclass(frozen=True)
class Judged:
    """What the check found, and the golden samples with the new graph's outputs."""

    checks: tuple[Check, ...]
    golden: Golden | None


def check_images(inputs: QuantizeInputs, division: Division | None) -> Dataset | None:
    """Return the images that the graph is checked on; None where there are none."""
    if inputs.validation is not None and inputs.options.max_drop is not None:
        return Subset(inputs.validation, np.arange(min(CHECKED_OF_BUDGET, len(inputs.validation))))
    if inputs.validation is not None:
        return inputs.validation
    return None if division is None else division.check


def judge(
    before: ir.Model,
    after: ir.Model,
    images: Dataset | None,
    inputs: QuantizeInputs,
    open_graph: Opener,
    open_after: Opener | None = None,
) -> Judged:
    """Compare both graphs on images, else on the golden samples.

    Args:
        before: The FP32 graph.
        after: The new one.
        images: What both run on.
        inputs: The request.
        open_graph: Runs graphs.
        open_after: Runs the new one in its place, as its runtime does.
    Raises:
        GraphError: The runtime refuses the new graph, or its logits are NaN or infinite.
    """
    golden, preprocess = inputs.source.golden, inputs.source.manifest.preprocess
    logits: dict[str, NDArray[np.float32]] = {}
    renewed, what = None, "nothing"
    for names in (("before", "after"),) if weight_bytes(before) < LARGE else (("before",), ("after",)):
        collect_graphs_like(before)  # the graphs that were tried, and the session before
        with ExitStack() as stack:
            sessions = {
                name: stack.enter_context(
                    open_graph(before) if name == "before" else _opened(open_after or open_graph, after)
                )
                for name in names
            }
            if golden is not None and preprocess is not None and "after" in sessions:
                try:
                    outputs = _logits_of(sessions["after"], golden, inputs)
                except GraphError as error:
                    raise GraphError(f"{error}{_overflow_text(before, inputs, open_graph)}") from error
                renewed = Golden(golden.pixels, golden.reference, outputs)
            if images is not None and preprocess is not None:
                found = collect_logits(sessions, images, preprocess, batch=_batch(before))
                if found.failures:
                    raise GraphError(f"the {inputs.precision} graph is unfit: {next(iter(found.failures.values()))}")
                logits |= found.logits
                what = f"{len(images)} images of {images.uri!r} that calibration has not seen"
            elif golden is not None and preprocess is not None:
                if "before" in sessions:
                    logits["before"] = _logits_of(sessions["before"], golden, inputs)
                if renewed is not None:
                    logits["after"] = renewed.outputs
                what = f"{len(golden.pixels)} golden samples"
    if logits:
        return Judged(_checks(logits["after"], logits["before"], what, inputs), renewed)
    reason = "there were no images: vd.quantize(..., options=vd.QuantizeOptions(validation='DATA')) compares on some"
    return Judged((Check(name="logits SQNR", status="unchecked", unit="dB", detail=reason),), renewed)


def error_profile(
    before: Prepared, realized: Realized, images: Dataset | None, inputs: QuantizeInputs, open_graph: Opener
) -> ErrorProfile | None:
    """Return where the error arises, on a few images of the check or on golden samples; None: none is in 8 bits."""
    collect_graphs_like(before.graph)
    golden, preprocess = inputs.source.golden, inputs.source.manifest.preprocess
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


def _batch(model: ir.Model) -> int:
    """Return how many images to compare at once: fewer the larger the tensors are, of which two sessions hold some."""
    read = [node.inputs[0] for node in model.graph if node.op_type in ("MatMul", "Gemm")]
    return min(CHECK_BATCH, 4 * batch_for(model, [str(value.name) for value in read if value is not None]))


def _logits_of(session: Session, golden: Golden, inputs: QuantizeInputs) -> NDArray[np.float32]:
    assert inputs.source.manifest.preprocess is not None
    logits = run_batch(session, to_input(golden.pixels, inputs.source.manifest.preprocess))
    if not np.isfinite(logits).all():
        raise GraphError(f"the {inputs.precision} graph gives NaN or infinite logits on the golden samples")
    return logits


def _checks(
    after: NDArray[np.float32], before: NDArray[np.float32], what: str, inputs: QuantizeInputs
) -> tuple[Check, ...]:
    sqnr = logits_sqnr_db(after, before)
    limit = inputs.options.min_sqnr_db
    limit = EXPECTED_SQNR_DB[inputs.precision] if limit is None else limit
    detail = f"against the FP32 graph on {what}"
    if math.isinf(sqnr):
        fidelity = Check(name="logits SQNR", status="passed", unit="dB", detail=f"{detail}: equal bit for bit")
    else:
        status = "passed" if sqnr >= limit else "failed"
        fidelity = Check(name="logits SQNR", status=status, value=sqnr, limit=limit, unit="dB", detail=detail)
    model = inputs.source.manifest.model
    ours, theirs = predicted_classes(after, model), predicted_classes(before, model)
    if ours is None or theirs is None:
        return (fidelity,)
    same = float(np.mean(ours == theirs))
    return fidelity, Check(
        name="agreement", status="passed", value=same, unit="of the images", detail=f"same first class, {detail}"
    )


def hold(judged: Judged, inputs: QuantizeInputs) -> None:
    """Warn of a failed check.

    Raises:
        GateError: The logits SQNR is below the limit that was set.
    """
    for check in judged.checks:
        if check.status != "failed" or check.value is None or check.limit is None:
            continue
        words = f"logits SQNR {check.value:.1f} dB is below {check.limit:g} dB, {check.detail}"
        if inputs.options.min_sqnr_db is not None:
            raise GateError(f"{words}: nothing was written; more calibration images or a plan may help")
        warn(f"{words}: bench it before it ships; more calibration images or a plan may help")
