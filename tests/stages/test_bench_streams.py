"""Throughput of engines with several contexts at work at once, on a fake GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from machine import fake_gpu
from small_vit import write_small_vit

from vitdeploy.backends import get_backend
from vitdeploy.benching import throughput
from vitdeploy.errors import UsageError
from vitdeploy.report.html import render_html
from vitdeploy.report.markdown import render_markdown
from vitdeploy.sessions import BuildTarget
from vitdeploy.stages.bench import BenchOptions, bench

pytestmark = pytest.mark.slow

QUICK = BenchOptions(
    batches=(1, 4), rounds=1, iterations=2, warmup=1, fill_s=0.0, samples=20, threads=1, processes=False,
    image_to_label=False, energy_s=0.0, streams=(2, 3), thumbnails=False,
)  # fmt: skip


@pytest.mark.parametrize("release", ["11.4", "rtx"])
def test_an_engine_has_its_throughput_for_each_number_of_streams(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, release: str
) -> None:
    fakes = fake_gpu(monkeypatch, release)
    monkeypatch.setattr(throughput, "SECONDS", 0.02)
    model = write_small_vit(tmp_path / "model.onnx", "fp16")
    backend = get_backend("tensorrt-rtx" if release == "rtx" else "tensorrt")
    engine = backend.build(model, tmp_path / "model.engine", BuildTarget(batch=(1, 2, 8)))
    report = bench([model, engine], "digits", baseline=model, options=replace(QUICK, runtimes=("onnxruntime:cpu",)))
    rows = {row.name: row for row in report.rows}
    found = rows["model.engine"].throughput
    expected = [(b, s, scope) for b in (1, 4) for s in (2, 3) for scope in ("device", "end_to_end")]
    assert [(one.batch, one.streams, one.scope) for one in found] == expected
    assert all(one.images_per_s > 0 for one in found)
    assert rows["model.onnx"].throughput == ()
    assert any("only engines on a GPU have contexts" in note for note in rows["model.onnx"].notes)
    assert not fakes.cuda.alive
    assert render_html(report).count('<table id="throughput"') == 1
    assert "## Throughput" in render_markdown(report)


def test_streams_are_counted_from_one() -> None:
    with pytest.raises(UsageError, match="streams"):
        BenchOptions(streams=(0,))


def test_without_streams_nothing_is_run(tmp_path: Path) -> None:
    report = bench([write_small_vit(tmp_path / "m.onnx", "fp32")], "digits", options=replace(QUICK, streams=()))
    assert report.rows[0].throughput == ()
    assert "Throughput" not in render_markdown(report)
