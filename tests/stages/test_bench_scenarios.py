"""Scenarios from a bench to the page; what they compute is tests/measure/test_scenarios.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_vit import write_small_vit

from vitdeploy.errors import UsageError
from vitdeploy.measure import scenarios
from vitdeploy.report import read_report, scenario_lines, write_report
from vitdeploy.report.html import render_html
from vitdeploy.report.markdown import render_markdown
from vitdeploy.stages.bench import BenchOptions, bench

pytestmark = pytest.mark.slow

QUICK = BenchOptions(
    batches=(1, 4), rounds=1, iterations=1, warmup=1, fill_s=0.0, samples=40, threads=1, processes=False,
    image_to_label=False, energy_s=0.0, scenarios=("single-stream", "multi-stream", "offline", "server"),
    scenario_s=0.3, latency_bound_ms=50.0,
)  # fmt: skip


def test_rows_have_their_scenarios_and_the_page_shows_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenarios, "OFFLINE_SAMPLES", 4)
    report = bench([write_small_vit(tmp_path / "model.onnx", "fp32")], "digits", options=QUICK)
    single, multi, offline, server = report.rows[0].scenarios
    assert [one.name for one in (single, multi, offline, server)] == list(QUICK.scenarios)
    assert (multi.samples, multi.batch) == (8 * multi.queries, 4)
    assert offline.batch == server.batch == 4
    assert offline.metric is not None
    assert offline.metric > 0
    assert not any(one.by_the_rules for one in report.rows[0].scenarios)
    write_report(report, tmp_path / "report")
    assert read_report(tmp_path / "report").rows == report.rows
    assert render_html(report).count("data-scenario=") == 4
    assert "## Scenarios" in render_markdown(report)
    lines = scenario_lines(report)
    assert len(lines) == 4
    assert lines[2].startswith("model.onnx, offline: ")
    assert "shorter than the 600 s that the rules ask for" in lines[2]


def test_a_row_that_fails_under_load_keeps_its_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitdeploy.benching.scenarios.run_scenario", lambda *_: 1 / 0)
    report = bench([write_small_vit(tmp_path / "model.onnx", "fp32")], "digits", options=QUICK)
    assert report.rows[0].timings
    assert report.rows[0].scenarios == ()
    assert "scenario server failed: division by zero" in report.rows[0].notes


def test_an_unknown_scenario_is_refused() -> None:
    with pytest.raises(UsageError, match="there is no scenario 'burst', expected one of single-stream, multi-stream"):
        BenchOptions(scenarios=("burst",))  # type: ignore[arg-type]
