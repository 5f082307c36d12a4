"""Calibrate what a request asks for: from its table or its images, with a plan whose groups all have a treatment."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vitdeploy.measure.pairs import TimePair, speeds_text
from vitdeploy.progress import Progress
from vitdeploy.quantization.calibration import Calibrated, Calibration
from vitdeploy.quantization.division import Division
from vitdeploy.quantization.plan import with_treatments
from vitdeploy.quantization.prepared import Prepared
from vitdeploy.quantization.request import QuantizeInputs, QuantizeOptions
from vitdeploy.quantization.rotation import Bases
from vitdeploy.quantization.saved_observations import SavedObservations
from vitdeploy.quantization.search import Found, Proposals, Wider, propose
from vitdeploy.quantization.table import observers_of
from vitdeploy.records import CalibrationInfo, PrecisionPlan, SampleSet
from vitdeploy.sessions import Opener


def calibrate(
    prepared: Prepared,
    plan: PrecisionPlan,
    division: Division | None,
    inputs: QuantizeInputs,
    open_graph: Opener,
    progress: Progress,
    saved: SavedObservations | None = None,
    also: PrecisionPlan | None = None,
    wider: Sequence[Wider] = (),
    time_pair: TimePair | None = None,
) -> tuple[Calibrated, CalibrationInfo | None]:
    """Take ranges from the table or the images, as the request has them; none where only weights are quantized.

    Args:
        prepared: The graph.
        plan: Its groups and their precision.
        division: Of the request's images; None where it has none.
        inputs: The request.
        open_graph: Runs graphs.
        progress: Shows the pass, and says what was tried.
        saved: Keeps what was observed, so that a calibration that was killed goes on.
        also: A wider plan, whose tensors are observed as well.
        wider: Plans with more in 8 bits, which are taken where the logits hardly lose by them.
        time_pair: Times graphs where the result is to run: a wider plan must be faster there too.
    Raises:
        CalibrationError: An activation is NaN or infinite.
    """
    if not inputs.needs_ranges:
        return Calibrated({}, Found(plan)), None
    preprocess, options = inputs.source.manifest.preprocess, inputs.search_options()
    if inputs.table is not None:
        observers = observers_of(inputs.table.ranges)
        info = inputs.table.manifest.calibration
        found = Found(with_treatments(plan, inputs.table.manifest.plan) if _leaves_all_open(inputs.options) else plan)
        found = Found(propose(found.plan, Proposals(Bases(prepared, observers, inputs.form), options)))
        return Calibrated(observers, found), None if info is None else info.model_copy(update={"held_out": 0})
    assert inputs.data is not None
    assert division is not None
    assert preprocess is not None
    calibration = Calibration(prepared, plan, preprocess, open_graph, inputs.form, also, wider, time_pair)
    calibrated = calibration.run(division, options, progress, saved)
    for line in trial_lines(calibrated.found, calibrated.compared):
        progress.note(line)
    return calibrated, CalibrationInfo(
        data=inputs.data.uri,
        graph_sha256=inputs.source.manifest.payload_sha256,
        set_sha256=inputs.data.digest,
        samples=division.calibrated,
        method=" + ".join(trial.step for trial in calibrated.found.trials if trial.kept) or "least layer error",
        held_out=0 if division.check is None else len(division.check),
        images=SampleSet.of(identity for part in division.calibration_parts for identity in part.sample_ids),
        compared=calibrated.compared,
        trials=calibrated.found.trials,
    )


def _leaves_all_open(options: QuantizeOptions) -> bool:
    """Return whether no option decides how groups are treated, so that a table's own plan counts."""
    return (options.method, options.equalization, options.rounding, options.steps) == ("auto",) * 4


def trial_lines(found: Found, images: int) -> list[str]:
    """Return in words what was tried and what each step gave."""
    lines, best = [], math.nan
    for trial in found.trials:
        times = f", {speeds_text(trial.speeds)}" if trial.speeds else ""
        verdict = f"{times}, {'kept' if trial.kept else 'not kept'}"
        gain = "" if math.isnan(best) else f" ({trial.sqnr_db - best:+.1f}){verdict}"
        lines.append(f"{trial.step} {trial.sqnr_db:.1f} dB{gain}")
        best = trial.sqnr_db if trial.kept else best
    return [f"tried on {images} images: {'; '.join(lines)}"] if lines else []
