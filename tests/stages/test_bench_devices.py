"""Engines and GPUs in the bench, scripted: what cannot run here, what never shares a speed-up, what a device finds."""

from __future__ import annotations

from pathlib import Path

import pytest
from digits_linear import (
    QUICK,
    ScriptedBackend,
    ScriptedSession,
    row_of,
    write_linear,
    write_plan,
)

from vitdeploy.records import Check, Examination
from vitdeploy.stages.bench import BenchOptions, bench

pytestmark = pytest.mark.slow


def test_engines_that_cannot_run_here_are_rows_that_say_so(tmp_path: Path, script) -> None:
    script(ScriptedBackend("tensorrt-rtx", cannot="there is no NVIDIA GPU here"))
    write_plan(tmp_path / "m.fp16.engine")
    write_plan(tmp_path / "m.int8.engine", "int8")
    report = bench(
        [write_linear(tmp_path / "m.onnx").path, tmp_path / "m.fp16.engine", tmp_path / "m.int8.engine"],
        "digits",
        options=QUICK,
    )
    for name in ("m.fp16.engine", "m.int8.engine"):
        row = row_of(report, name)
        assert (row.status, row.reason) == ("built", "there is no NVIDIA GPU here")
        assert (row.inspected, row.precision_by_layer, row.top1, row.timings) == (False, None, None, ())
        assert (row.backend, row.device, row.size_bytes) == ("tensorrt-rtx", "cuda", len(f"plan {row.precision}"))
    assert any("weight-only" in note for note in row_of(report, "m.int8.engine").notes)
    assert not any("weight-only" in note for note in row_of(report, "m.fp16.engine").notes)
    assert any("m.fp16.engine and m.int8.engine were built and not run" in text for text in report.verdict)


@pytest.mark.usefixtures("gpu")
def test_cpu_and_gpu_rows_never_share_a_speedup(tmp_path: Path, checkpoint, script) -> None:
    torch = ScriptedBackend("pytorch", call_ms={"cpu": 90.0, "cuda": 8.0})
    script(torch, ScriptedBackend("tensorrt-rtx", call_ms={"fp16": 2.0}))
    write_plan(tmp_path / "m.fp16.engine")
    report = bench(
        [checkpoint.path, write_linear(tmp_path / "m.onnx").path, tmp_path / "m.fp16.engine"], "digits", options=QUICK
    )
    on_cpu, on_gpu = "linear.safetensors (PyTorch, CPU)", "linear.safetensors (PyTorch, CUDA)"
    faster = {f"linear.safetensors (PyTorch, {way})": on_gpu for way in ("autocast-fp16", "compile")}
    assert report.baseline.latency_rows == {"m.onnx": on_cpu, "m.fp16.engine": on_gpu, **faster}
    assert sorted(device for _, device in torch.opened) == ["cpu", *["cuda"] * 3]  # and its faster ways beside it
    engine = row_of(report, "m.fp16.engine")
    assert {timing.scope: timing.speedup for timing in engine.timings} == {
        "end_to_end": pytest.approx(8.05 / 2.05),
        "device": pytest.approx(4.0),
    }
    assert [timing.scope for timing in row_of(report, "m.onnx").timings] == ["end_to_end"]
    assert [timing.scope for timing in row_of(report, on_gpu).timings] == ["end_to_end", "device"]


@pytest.mark.usefixtures("gpu")
def test_an_engine_of_a_fixed_batch_is_timed_at_that_batch_only_and_judged_on_all_images(
    tmp_path: Path, script
) -> None:
    script(ScriptedBackend("tensorrt-rtx", batch=4))
    write_plan(tmp_path / "m.engine", batch=(4, 4, 4))
    options = BenchOptions(**{**QUICK.__dict__, "batches": (1, 4), "accuracy_batch": 32})
    report = bench([tmp_path / "m.engine", write_linear(tmp_path / "m.onnx").path], "digits", options=options)
    row = row_of(report, "m.engine")
    assert [timing.batch for timing in row.timings] == [4, 4]
    assert row.top1 == row_of(report, "m.onnx").top1
    (note,) = [note for note in row.notes if note.startswith("it takes a batch of 4, so batch 1 was not timed: ")]
    assert "vd.build(..., target=vd.BuildTarget(batch=(1, 1, 1)))" in note


@pytest.mark.usefixtures("gpu")
def test_an_engine_built_elsewhere_is_inspected_when_a_device_first_opens_it(
    tmp_path: Path, script, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed = Check(name="golden", status="passed")
    told = Examination(checks=(passed,), precision_by_layer={"fp16": 14})
    monkeypatch.setattr(
        ScriptedSession, "examination", property(lambda self: told, lambda self, value: None), raising=False
    )
    script(ScriptedBackend("tensorrt-rtx"))
    write_plan(tmp_path / "m.engine")
    row = row_of(bench([tmp_path / "m.engine"], "digits", options=QUICK), "m.engine")
    assert row.inspected is True
    assert row.precision_by_layer == {"fp16": 14}
    hidden = Check(name="layer precision", status="unchecked", detail="the engine inspector lists no layers")
    told = Examination(checks=(passed, hidden), reason=hidden.detail)
    row = row_of(bench([tmp_path / "m.engine"], "digits", options=QUICK), "m.engine")
    assert row.inspected is False
    assert row.precision_by_layer is None
    assert "layer precision: the engine inspector lists no layers" in row.notes
