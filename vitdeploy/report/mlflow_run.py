"""A report as a run of MLflow: its numbers as metrics, its conditions as parameters, its files as artifacts."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from vitdeploy.errors import ArtifactError
from vitdeploy.records import Report, Row, printable_record
from vitdeploy.report.files import write_report
from vitdeploy.text import one_line

NOT_IN_A_NAME = re.compile(r"[^\w.\- /]+")
LONGEST_VALUE = 500
OF_A_ROW = (
    "top1", "delta_top1_pp", "agreement", "logits_sqnr_db", "load_ms", "first_inference_ms", "size_bytes",
    "peak_memory_bytes", "energy_mj_per_image",
)  # fmt: skip
OF_A_TIMING = ("p50_ms", "p90_ms", "p99_ms", "images_per_s", "speedup")


def require_mlflow() -> None:
    """Raise where MLflow is not installed: before anything is measured.

    Raises:
        ModuleNotFoundError: There is neither mlflow nor mlflow-skinny.
    """
    import mlflow  # noqa: F401


def log_to_mlflow(report: Report, folder: Path | str | None = None) -> str:
    """Log a report as a run of MLflow and return the run's id.

    The tracking server and the experiment are MLflow's own settings (``MLFLOW_TRACKING_URI``,
    ``MLFLOW_EXPERIMENT_NAME``). What was not measured has no metric.

    Args:
        report: What a bench gave.
        folder: Its files as ``write_report`` wrote them; None writes them into a folder that is removed again.
    Raises:
        ModuleNotFoundError: MLflow is not installed (extra ``mlflow``).
        ArtifactError: MLflow refuses: the server cannot be reached, or is of another version.
    """
    import mlflow

    report = printable_record(report)
    try:
        with mlflow.start_run(run_name=f"{report.model} on {report.conditions.data}", nested=True) as run:
            mlflow.log_params(params_of(report))
            mlflow.log_metrics(metrics_of(report))
            mlflow.set_tags({"vitdeploy.producer": report.producer, "vitdeploy.key": report.key})
            mlflow.set_tag("mlflow.note.content", "\n".join(report.verdict))
            if folder is not None:
                mlflow.log_artifacts(str(folder), "report")
            else:
                with tempfile.TemporaryDirectory(prefix="vitdeploy-") as temporary:
                    write_report(report, temporary)
                    mlflow.log_artifacts(temporary, "report")
            return str(run.info.run_id)
    except mlflow.exceptions.MlflowException as error:
        raise ArtifactError(f"MLflow did not take the report: {one_line(error)}") from error


def metrics_of(report: Report) -> dict[str, float]:
    """Return name → number: of each row what was measured, ``ROW/top1``, and ``ROW/batch 1/end_to_end/p50_ms``."""
    return {name: value for row in report.rows for name, value in _metrics(row).items()}


def params_of(report: Report) -> dict[str, str]:
    """Return what the numbers depend on, as MLflow's parameters: conditions, machine and library versions."""
    conditions, machine = report.conditions, report.environment
    found = {
        "model": report.model,
        "data": conditions.data,
        "data_sha256": conditions.data_sha256,
        "images": str(conditions.n_samples),
        "batches": ", ".join(map(str, conditions.batches)),
        "threads": str(conditions.threads),
        "seed": str(conditions.seed),
        "baseline": report.baseline.accuracy_against,
        "cpu": machine.cpu,
        "gpu": machine.gpu or "none",
        **{f"version.{name}": version for name, version in report.versions.items()},
    }
    return {name: value[:LONGEST_VALUE] for name, value in found.items()}


def _metrics(row: Row) -> dict[str, float]:
    title = NOT_IN_A_NAME.sub("_", row.name)
    found = {f"{title}/{name}": getattr(row, name) for name in OF_A_ROW}
    for timing in row.timings:
        place = f"{title}/batch {timing.batch}/{timing.scope}"
        found |= {f"{place}/{name}": getattr(timing, name) for name in OF_A_TIMING}
    return {name: float(value) for name, value in found.items() if value is not None}
