"""A report as a run of MLflow, held against a module of its interface's few calls; and refused where there is none."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sample_reports import build, rows

from vitdeploy.cli import main
from vitdeploy.errors import ArtifactError
from vitdeploy.records import Report
from vitdeploy.report import log_to_mlflow, write_report

METRIC = re.compile(r"^[\w.\- /]{1,250}$")
"""What every release of MLflow takes as a metric's name (mlflow/utils/validation.py)."""
INT8 = "digits.int8.onnxruntime.onnx"


class FakeMlflow(types.ModuleType):
    """Keeps what is logged, and refuses what MLflow refuses."""

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.params: dict[str, str] = {}
        self.metrics: dict[str, float] = {}
        self.tags: dict[str, str] = {}
        self.files: dict[str, list[str]] = {}
        self.running = self.down = False
        self.exceptions = types.SimpleNamespace(MlflowException=type("MlflowException", (Exception,), {}))

    @contextmanager
    def start_run(self, *, run_name: str, nested: bool) -> Iterator[Any]:
        if self.down:
            raise self.exceptions.MlflowException("API request failed: connection refused")
        self.name, self.running = run_name, True
        yield types.SimpleNamespace(info=types.SimpleNamespace(run_id="abc123"))
        self.running = False

    def log_params(self, params: dict[str, str]) -> None:
        assert self.running
        assert all(METRIC.match(name) and len(value) <= 500 for name, value in params.items())
        self.params |= params

    def log_metrics(self, metrics: dict[str, float]) -> None:
        assert self.running
        assert all(METRIC.match(name) and type(value) is float for name, value in metrics.items())
        self.metrics |= metrics

    def set_tags(self, tags: dict[str, str]) -> None:
        self.tags |= tags

    def set_tag(self, name: str, value: str) -> None:
        self.tags[name] = value

    def log_artifacts(self, folder: str, place: str) -> None:
        assert self.running
        self.files[place] = sorted(path.name for path in Path(folder).iterdir())


@pytest.fixture(name="mlflow")
def _mlflow(monkeypatch: pytest.MonkeyPatch) -> FakeMlflow:
    fake = FakeMlflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    return fake


def test_a_run_has_numbers_conditions_and_files(mlflow: FakeMlflow, report: Report) -> None:
    assert log_to_mlflow(report) == "abc123"
    assert mlflow.name == "digits-vit on digits:test"
    assert mlflow.metrics[f"{INT8}/top1"] == 444 / 450
    assert mlflow.metrics[f"{INT8}/batch 8/end_to_end/p50_ms"] == 1.42
    assert mlflow.metrics[f"{INT8}/batch 1/end_to_end/speedup"] == 6.68
    assert mlflow.params["data"] == "digits:test"
    assert mlflow.params["version.onnxruntime"] == "1.31.1"
    assert mlflow.files == {"report": ["report.html", "report.json", "report.md"]}
    assert mlflow.tags["mlflow.note.content"].splitlines() == list(report.verdict)
    assert not mlflow.running


def test_what_was_not_measured_has_no_metric(mlflow: FakeMlflow, report: Report) -> None:
    log_to_mlflow(report)
    assert "digits.fp16.engine/size_bytes" in mlflow.metrics
    assert not [name for name in mlflow.metrics if name.startswith("digits.fp16.engine/") and "size" not in name]
    assert "digits.safetensors/delta_top1_pp" not in mlflow.metrics
    assert f"{INT8}/energy_mj_per_image" not in mlflow.metrics


def test_files_that_are_written_already_are_logged_as_they_are(
    mlflow: FakeMlflow, report: Report, tmp_path: Path
) -> None:
    write_report(report, tmp_path)
    (tmp_path / "report.samples.npz").write_bytes(b"durations")
    log_to_mlflow(report, tmp_path)
    assert mlflow.files["report"] == ["report.html", "report.json", "report.md", "report.samples.npz"]


def test_hostile_names_become_names_that_mlflow_takes(mlflow: FakeMlflow) -> None:
    row = rows()[2].model_copy(update={"name": 'a:b\x1b"<%>|é.onnx'})
    log_to_mlflow(build((row,), model="x" * 5000))
    assert len(mlflow.params["model"]) == 500
    assert all(METRIC.match(name) for name in mlflow.metrics)
    assert mlflow.metrics


def test_a_server_that_is_down_is_one_line(mlflow: FakeMlflow, report: Report) -> None:
    mlflow.down = True
    with pytest.raises(ArtifactError, match="MLflow did not take the report: API request failed"):
        log_to_mlflow(report)


def test_without_mlflow_the_command_says_how_to_have_it_before_it_measures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "absent.onnx", "--data", "digits", "--mlflow", "--report", "out"]) == 1
    assert "pip install 'vitdeploy[mlflow]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
