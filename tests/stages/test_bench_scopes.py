"""What a bench keeps beside medians: intervals, single durations, the way from image to label, audit and self-check."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitdeploy.artifacts import OnnxModel
from vitdeploy.backends.onnxruntime import OnnxRuntimeSession
from vitdeploy.backends.session import Arrays
from vitdeploy.measure import sensors
from vitdeploy.measure.sensors import Reading
from vitdeploy.records import Report, Row
from vitdeploy.report import read_report, write_report
from vitdeploy.stages.bench import BenchOptions, bench

pytestmark = pytest.mark.slow

QUICK = BenchOptions(rounds=6, iterations=4, warmup=1, fill_s=0.0, samples=40, processes=False)


def _only(report: Report) -> Row:
    (row,) = (row for row in report.rows if row.backend == "onnxruntime")
    return row


def _options(**changes: Any) -> BenchOptions:
    return replace(QUICK, **changes)


def test_percentiles_have_intervals_and_every_duration_is_kept(tiny_onnx: OnnxModel, tmp_path: Path) -> None:
    options = _options(batches=(1, 4))
    report = bench([tiny_onnx], "digits", baseline=tiny_onnx, options=options, keep=tmp_path / "kept")
    row = _only(report)
    with np.load(tmp_path / "kept" / "report.samples.npz") as kept:
        names, scopes = kept["rows"].tolist(), kept["scopes"].tolist()
        for timing in row.timings:
            mine = (kept["row"] == names.index(row.name)) & (kept["batch"] == timing.batch)
            mine &= kept["scope"] == scopes.index(timing.scope)
            assert int(mine.sum()) == timing.calls
            assert sorted(set(kept["round"][mine].tolist())) == list(range(6))
            assert float(np.median(kept["duration_ms"][mine])) == pytest.approx(timing.p50_ms)
            for point, interval in (
                (timing.p50_ms, timing.p50_ci95),
                (timing.p90_ms, timing.p90_ci95),
                (timing.p99_ms, timing.p99_ci95),
            ):
                assert interval is not None
                assert interval[0] <= point <= interval[1]
            assert timing.drift is not None


def test_the_way_from_image_to_label_is_timed_at_the_first_batch_size_and_takes_longer(
    tiny_onnx: OnnxModel, tmp_path: Path
) -> None:
    options = _options(batches=(1, 4))
    row = _only(bench([tiny_onnx], "digits", baseline=tiny_onnx, options=options))
    found = {(timing.batch, timing.scope): timing.p50_ms for timing in row.timings}
    assert set(found) == {(1, "end_to_end"), (1, "image_to_label"), (4, "end_to_end")}
    without = _only(bench([tiny_onnx], "digits", options=_options(image_to_label=False)))
    assert [timing.scope for timing in without.timings] == ["end_to_end"]


def test_the_audit_of_a_real_runtime_finds_the_outputs_of_the_accuracy_run(tiny_onnx: OnnxModel) -> None:
    row = _only(bench([tiny_onnx], "digits", options=QUICK))
    audit = row.timings[0].audit
    assert audit is not None
    assert audit.calls == 6 * 9
    assert audit.outputs_off < 1e-4
    assert row.status == "ok"


def test_a_runtime_that_answers_with_old_outputs_while_it_is_timed_is_out(
    tiny_onnx: OnnxModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = OnnxRuntimeSession._run
    held: dict[int, Arrays] = {}

    def cheat(self: OnnxRuntimeSession, arrays: Arrays) -> Arrays:
        images = next(iter(arrays.values()))
        if len(images) != 1:  # the accuracy run
            return run(self, arrays)
        return held.setdefault(id(self), run(self, arrays))

    monkeypatch.setattr(OnnxRuntimeSession, "_run", cheat)
    row = _only(bench([tiny_onnx], "digits", options=QUICK))
    assert row.status == "failed"
    assert "outputs sampled while it was timed differ from those of the accuracy run" in row.reason


def test_a_self_check_times_one_row_twice_and_each_alone(tiny_onnx: OnnxModel, tmp_path: Path) -> None:
    options = _options(self_check=True, image_to_label=False)
    report = bench([tiny_onnx], "digits", options=options)
    check = report.conditions.self_check
    assert check is not None
    assert (check.row, check.batch) == (report.rows[0].name, 1)
    assert check.ratio_ci95 is not None
    assert check.ratio_ci95[0] <= check.ratio <= check.ratio_ci95[1]
    for row in report.rows:
        (timing,) = row.timings
        assert timing.alone_ratio is not None
        assert timing.alone_ratio > 0
    write_report(report, tmp_path)
    assert read_report(tmp_path / "report.json").conditions.self_check == check
    assert "timed twice at batch 1" in (tmp_path / "report.html").read_text("utf8")


def test_the_key_of_a_report_knows_the_new_options() -> None:
    keys = {
        json.dumps(BenchOptions(self_check=on, image_to_label=on).identity(), sort_keys=True) for on in (True, False)
    }
    assert len(keys) == 2


class Hot:
    """A device that gets hotter and slower with every look, with a meter of 10 W."""

    looks = 0
    joules = 0.0

    def read(self) -> Reading:
        self.looks += 1
        return Reading(3000.0 - self.looks, 50.0 + self.looks, 10.0, ("power cap",) if self.looks > 2 else ())

    def energy_j(self) -> float | None:
        self.joules += 10.0
        return self.joules


def test_clock_heat_and_throttling_stand_beside_the_times(
    tiny_onnx: OnnxModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensors, "of_all_devices", lambda: {"cpu": Hot(), "cuda": Hot()})
    options = _options(image_to_label=False, energy_s=0.05)
    report = bench([tiny_onnx], "digits", options=options, keep=tmp_path)
    row = _only(report)
    (timing,) = row.timings
    assert timing.clock_mhz is not None
    assert 2980 < timing.clock_mhz < 3000
    assert timing.temperature_c is not None
    assert timing.temperature_c > 55
    assert timing.throttled == ("power cap",)
    assert any("The device slowed itself down while" in line and "power cap" in line for line in report.verdict)
    assert row.energy_mj_per_image is not None
    assert row.energy_mj_per_image > 0
    assert report.conditions.idle_power_w["cpu"] > 0
    with np.load(tmp_path / "report.samples.npz") as kept:
        assert len(kept["clock_mhz"]) == 6 * len(report.rows)
        assert kept["temperature_c"].max() <= timing.temperature_c + len(kept["clock_mhz"])


def test_without_sensors_nothing_is_claimed(tiny_onnx: OnnxModel, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = sensors.KernelSensors("cpu", Path("/nowhere"))
    monkeypatch.setattr(sensors, "of_all_devices", lambda: {"cpu": nothing, "cuda": nothing})
    report = bench([tiny_onnx], "digits", options=_options(image_to_label=False))
    row = _only(report)
    assert (row.energy_mj_per_image, row.timings[0].clock_mhz, report.conditions.idle_power_w) == (None, None, {})


def test_a_sustained_run_keeps_medians_over_time(tiny_onnx: OnnxModel) -> None:
    options = _options(image_to_label=False, sustained_s=1.0, energy_s=0.0)
    report = bench([tiny_onnx], "digits", options=options)
    for row in report.rows:
        found = row.sustained
        assert found is not None
        assert found.seconds >= 1.0
        assert len(found.at_s) == len(found.p50_ms) == len(found.clock_mhz) >= 2
        assert list(found.at_s) == sorted(found.at_s)
        assert min(found.p50_ms) > 0
