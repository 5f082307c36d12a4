"""The bench stage: real ONNX Runtime on a small classifier of digits, scripted backends where there is no device."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from digits_linear import (
    PREPROCESS,
    QUICK,
    WEIGHT,
    ScriptedBackend,
    in_steps,
    linear_logits,
    row_of,
    write_linear,
)
from present import present
from rich.console import Console

from vitdeploy.artifacts import write_calibration_table
from vitdeploy.backends.openvino import OpenVINOBackend
from vitdeploy.benching.candidates import list_candidates, of_artifact, with_unique_names
from vitdeploy.benching.measuring import Entry
from vitdeploy.benching.preparation import other_preprocessing
from vitdeploy.cli.flags import in_flags, set_command
from vitdeploy.datasets import load_pixels, open_dataset
from vitdeploy.errors import ArtifactError, BackendError, UsageError
from vitdeploy.preprocess import normalize
from vitdeploy.records import Manifest, ModelSpec, Report, Target
from vitdeploy.report import measurement_tables
from vitdeploy.report.html import render_html
from vitdeploy.report.markdown import render_markdown
from vitdeploy.stages.bench import BenchOptions, BenchRequest, bench

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
REQUIRED_OF_ROWS = set(
    """name backend provider target precision status reason top1 top1_ci95 delta_top1_pp delta_ci95_pp agreement
    logits_sqnr_db timings load_ms first_inference_ms size_bytes peak_memory_bytes energy_mj_per_image inspected
    precision_by_layer""".split()  # noqa: SIM905 - a list of 21 strings is no easier to read
)
REQUIRED_OF_TIMINGS = set(
    "batch streams scope p50_ms p90_ms p99_ms mean_ms images_per_s speedup speedup_ci95".split()  # noqa: SIM905
)


TWINS = ("b.onnx", "c (1).onnx")


def test_graphs_are_measured_with_onnx_runtime_against_the_fp32_graph_where_there_is_no_checkpoint(
    tmp_path: Path,
) -> None:
    fp32 = write_linear(tmp_path / "m.onnx")
    int8 = write_linear(tmp_path / "m.int8.onnx", in_steps(WEIGHT, 127), precision="int8", target="onnxruntime")
    report = bench([fp32.path, int8.path], "digits", options=BenchOptions(rounds=4, fill_s=0.01, batches=(1, 4)))

    base, row = row_of(report, "m.onnx"), row_of(report, "m.int8.onnx")
    assert [one.status for one in report.rows] == ["ok", "ok"]
    assert report.baseline.row == "m.onnx"
    assert "not PyTorch" in report.baseline.accuracy_against
    test = open_dataset("digits:test")
    images = normalize(load_pixels(test, PREPROCESS), PREPROCESS)
    for one, weight in ((base, WEIGHT), (row, in_steps(WEIGHT, 127))):
        expected = float(np.mean(linear_logits(images, weight).argmax(axis=1) == test.labels))
        assert one.top1 == pytest.approx(expected, abs=1e-9)
        assert one.top1 > 0.9
        assert one.top1_ci95[0] < one.top1 < one.top1_ci95[1]
        counted = list(zip(report.conditions.classes, present(one.correct_by_class), strict=True))
        assert [count.name for count, _ in counted] == [str(digit) for digit in range(10)]
        assert sum(right for _, right in counted) == round(one.top1 * len(test))
        assert sum(count.images for count, _ in counted) == len(test)
        predicted = linear_logits(images, weight).argmax(axis=1)
        assert one.correct_by_class[3] == int(np.sum((predicted == 3) & (np.asarray(test.labels) == 3)))
    assert row.delta_top1_pp == pytest.approx(100 * (row.top1 - base.top1))
    assert row.delta_ci95_pp[0] <= row.delta_top1_pp <= row.delta_ci95_pp[1]
    assert 30 < row.logits_sqnr_db < 60
    assert row.agreement > 0.97
    assert (base.delta_top1_pp, base.agreement, base.logits_sqnr_db) == (None, None, None)
    for one in report.rows:
        assert [(timing.batch, timing.scope) for timing in one.timings] == [
            (1, "end_to_end"),
            (1, "image_to_label"),
            (4, "end_to_end"),
        ]
        assert (one.backend, one.provider, one.device) == ("onnxruntime", "CPUExecutionProvider", "cpu")
        assert one.size_bytes == (tmp_path / one.name).stat().st_size
        assert one.load_ms > 0
        assert one.first_inference_ms > 0
        assert 10e6 < one.peak_memory_bytes < 1e9
        for timing in one.timings:
            assert 0 < timing.p50_ms <= timing.p90_ms <= timing.p99_ms
            assert timing.images_per_s == pytest.approx(1000 * timing.batch / timing.mean_ms)
            assert timing.calls >= 4 * 20
    assert base.timings[0].speedup is None
    assert row.timings[0].speedup_ci95[0] <= row.timings[0].speedup <= row.timings[0].speedup_ci95[1]
    assert report.baseline.latency_rows == {"m.int8.onnx": "m.onnx"}
    assert report.conditions.n_samples == 450
    assert report.conditions.data == "digits:test"
    assert report.conditions.data_sha256 == test.digest
    assert report.verdict


def test_report_json_is_complete_and_reads_back(tmp_path: Path) -> None:
    report = bench([write_linear(tmp_path / "m.onnx").path], "digits:validation", options=QUICK)
    raw = json.loads(report.model_dump_json())
    assert raw["schema"] == 1
    assert raw["conditions"]["data"] == "digits:validation"
    assert set(raw) >= {"schema", "created", "environment", "baseline", "conditions", "rows", "verdict"}
    assert set(raw["rows"][0]) >= REQUIRED_OF_ROWS
    assert set(raw["rows"][0]["timings"][0]) >= REQUIRED_OF_TIMINGS
    assert raw["rows"][0]["load_ms"] is None  # not measured is null
    assert Report.model_validate(raw) == report


def test_one_candidate_that_fails_gives_a_row_with_the_reason_and_the_others_are_measured(
    tmp_path: Path, checkpoint, script
) -> None:
    script(ScriptedBackend("pytorch", fails="CUDA out of memory\nat line 7"))
    model = write_linear(tmp_path / "m.onnx")
    nan = write_linear(tmp_path / "nan.onnx", np.full_like(WEIGHT, np.nan))
    report = bench([checkpoint.path, model.path, nan.path], "digits", options=QUICK)
    failed = row_of(report, "linear.safetensors")
    assert (failed.status, failed.top1, failed.timings) == ("failed", None, ())
    assert failed.reason == "opening it failed: RuntimeError: CUDA out of memory"
    assert row_of(report, "nan.onnx").reason == "its logits are NaN or infinite for 450 of 450 images"
    row = row_of(report, "m.onnx")
    assert row.status == "ok"
    assert row.top1 > 0.9
    assert row.delta_top1_pp is None
    assert row.timings[0].speedup is None
    assert report.baseline.accuracy_against == "nothing, as the baseline linear.safetensors failed"
    assert any("linear.safetensors failed" in text for text in report.verdict)


def test_a_graph_made_for_another_runtime_says_so(tmp_path: Path) -> None:
    model = write_linear(tmp_path / "m.onnx")
    foreign = write_linear(tmp_path / "m.trt.onnx", in_steps(WEIGHT, 127), precision="int8", target="tensorrt")
    other = write_linear(tmp_path / "m.ov.onnx", in_steps(WEIGHT, 127), precision="int8", target="openvino")
    own = write_linear(tmp_path / "m.ort.onnx", in_steps(WEIGHT, 127), precision="int8", target="onnxruntime")
    options = replace(QUICK, runtimes=("onnxruntime",))
    report = bench([model.path, foreign.path, other.path, own.path], "digits", options=options)
    said = "made for {}, run by ONNX Runtime: its latency is not that of its target; {}, {}"
    makes = "vd.quantize(..., target='onnxruntime') makes one for ONNX Runtime"
    engine = "vd.build(...) makes an engine of it"
    there = "vd.bench(..., options=vd.BenchOptions(runtimes=('openvino',))) runs it there"
    assert row_of(report, "m.trt.onnx").notes == (said.format("TensorRT", engine, makes),)
    assert row_of(report, "m.ov.onnx").notes == (said.format("OpenVINO", there, makes),)
    set_command(["bench"])
    assert "'vitdeploy bench … --runtime openvino' runs it there" in in_flags(row_of(report, "m.ov.onnx").notes[0])
    assert row_of(report, "m.ort.onnx").notes == ()


def test_one_graph_under_two_runtimes_is_two_rows_of_which_the_first_is_the_baseline(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="openvino is an extra: pip install 'vitdeploy[openvino]'")
    model = write_linear(tmp_path / "m.onnx")
    options = BenchOptions(**{**QUICK.__dict__, "runtimes": ("onnxruntime", "openvino")})
    for baseline in (None, str(model.path)):
        report = bench([model.path], "digits", baseline=baseline, options=options)
        first, second = report.rows
        assert [row.name for row in report.rows] == ["m.onnx (ONNX Runtime, CPU)", "m.onnx (OpenVINO, CPU)"]
        assert report.baseline.row == first.name
        assert report.baseline.latency_rows == {second.name: first.name}
        assert second.logits_identical or second.logits_sqnr_db > 80
        assert second.delta_top1_pp == 0


@pytest.mark.parametrize(
    ("target", "runtimes", "backends"),
    [
        ("openvino", ("onnxruntime", "openvino"), ["openvino"]),
        ("onnxruntime", ("onnxruntime", "openvino"), ["onnxruntime"]),
        ("tensorrt", ("onnxruntime", "openvino"), ["onnxruntime", "openvino"]),
        ("onnxruntime", ("openvino",), ["openvino"]),
        ("onnxruntime", (), ["onnxruntime"]),
        ("tensorrt", (), ["onnxruntime"]),
        (None, (), ["onnxruntime"]),
    ],
)
def test_of_several_runtimes_a_graph_is_run_by_those_it_was_made_for(
    tmp_path: Path, target: Target | None, runtimes: tuple[str, ...], backends: list[str]
) -> None:
    model = write_linear(tmp_path / "m.onnx", target=target)
    assert [one.backend for one in list_candidates([model], runtimes, "cpu")] == backends


@pytest.mark.parametrize("installed", [True, False])
def test_where_nothing_is_asked_for_openvino_runs_what_is_made_for_it_and_the_graph_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    targets = {"m": None, "m.ov": "openvino", "m.ort": "onnxruntime", "m.trt": "tensorrt"}
    models = [write_linear(tmp_path / f"{name}.onnx", target=target) for name, target in targets.items()]
    monkeypatch.setattr(OpenVINOBackend, "unavailable", lambda _: None if installed else "it is not installed")
    found = [(one.name, one.backend) for one in list_candidates(models, (), "cpu")]
    everywhere = [(f"{name}.onnx", "onnxruntime") for name in targets]
    there = [
        ("m.onnx", "onnxruntime"),
        ("m.onnx", "openvino"),
        ("m.ov.onnx", "openvino"),
        ("m.ort.onnx", "onnxruntime"),
        ("m.trt.onnx", "onnxruntime"),
    ]
    assert found == (there if installed else everywhere)


def test_all_that_prepare_images_otherwise_are_named_once_whatever_runs_them(tmp_path: Path) -> None:
    other = PREPROCESS.model_copy(update={"mean": (0.9,)})
    models = [write_linear(tmp_path / "a.onnx"), *(write_linear(tmp_path / name, preprocess=other) for name in TWINS)]
    candidates = with_unique_names(list_candidates(models, ("onnxruntime", "openvino"), "cpu"))
    entries = [Entry(one, is_baseline=index == 0) for index, one in enumerate(candidates)]
    (sentence,) = other_preprocessing(entries)
    assert sentence.startswith("b.onnx, c (1).onnx prepare images otherwise than a.onnx (mean [0.9] against ")
    assert not any(entry.notes for entry in entries)


def test_several_numbers_of_threads_are_timed_at_each_batch(tmp_path: Path) -> None:
    model = write_linear(tmp_path / "m.onnx")
    options = BenchOptions(**{**QUICK.__dict__, "batches": (1, 4), "threads": 2, "thread_counts": (1, 2)})
    report = bench([model.path], "digits", options=options)
    timed = [(one.threads, one.batch) for one in row_of(report, "m.onnx").by_threads]
    assert timed == [(1, 1), (2, 1), (1, 4), (2, 4)]
    for one in row_of(report, "m.onnx").by_threads:
        assert one.p50_ms > 0
        assert one.images_per_s > 0
    page, text = render_html(report), render_markdown(report)
    assert page.count('<tr data-name="m.onnx"><th scope="row">m.onnx</th><td class="n">4</td>') == 2
    assert all(f"Latency by threads of the CPU, batch {batch}" in page for batch in (1, 4))
    assert "## Threads" in text
    stream = io.StringIO()
    for grid in measurement_tables(report):
        Console(file=stream, width=80).print(grid)
    shown = [line.split() for line in stream.getvalue().splitlines()]
    assert ["Artifact", "Batch", "p50", "ms", "p50", "ms"] in shown
    assert [line[:2] for line in shown if line[:1] == ["m.onnx"]] == [["m.onnx", "1"], ["m.onnx", "4"]]
    with pytest.raises(UsageError, match=r"the numbers of threads are \(1, 1\), expected each once"):
        BenchOptions(thread_counts=(1, 1))


def test_openvino_in_bf16_is_a_row_beside_its_fp32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino", reason="openvino is an extra: pip install 'vitdeploy[openvino]'")
    monkeypatch.setattr("vitdeploy.backends.openvino.computes_bf16", lambda: True)
    model = write_linear(tmp_path / "m.onnx")
    options = BenchOptions(**{**QUICK.__dict__, "runtimes": ("openvino", "openvino:bf16+throughput")})
    first, second = bench([model.path], "digits", options=options).rows
    assert (first.name, second.name) == ("m.onnx (OpenVINO, CPU)", "m.onnx (OpenVINO, bf16+throughput)")
    assert (first.provider, second.provider) == ("CPU", "CPU BF16 throughput")
    assert any("computes in BF16" in note for note in second.notes)
    with pytest.raises(UsageError, match="no runtime 'openvino:npu': openvino runs on the CPU here"):
        bench([model.path], "digits", options=BenchOptions(runtimes=("openvino:npu",)))


def test_identical_logits_are_reported_as_such(tmp_path: Path, checkpoint, script) -> None:
    script(ScriptedBackend("pytorch"), ScriptedBackend("onnxruntime"))
    row = row_of(bench([checkpoint.path, write_linear(tmp_path / "m.onnx").path], "digits", options=QUICK), "m.onnx")
    assert (row.logits_identical, row.logits_sqnr_db, row.agreement) == (True, None, 1.0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"batches": ()}, "at least one, each once"),
        ({"batches": (1, 1)}, "at least one, each once"),
        ({"batches": (0,)}, r"batches is \(0,\), expected a whole number of at least 1"),
        ({"rounds": 0}, "rounds is 0"),
        ({"threads": -1}, "threads is -1, expected a whole number of at least 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        BenchOptions(**change)


def test_nothing_to_bench_missing_files_and_unknown_runtimes_are_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to bench"):
        bench([], "digits")
    with pytest.raises(ArtifactError, match="there is no file"):
        bench([tmp_path / "absent.onnx"], "digits")
    table = write_calibration_table(
        tmp_path / "t.calib.json", {}, Manifest(kind="calibration-table", model=ModelSpec(family="vit", name="vit"))
    )
    with pytest.raises(ArtifactError, match="is a calibration table, which does not run"):
        bench([table.path], "digits")
    model = write_linear(tmp_path / "m.onnx")
    with pytest.raises(UsageError, match="no runtime 'tflite'"):
        bench([model.path], "digits", options=BenchOptions(runtimes=("tflite",)))
    with pytest.raises(UsageError, match="none of the runtimes 'openvino'"):
        bench([model.path], "digits", options=BenchOptions(runtimes=("openvino",), device="cuda"))


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        (BenchOptions(device="cuda"), "device 'cuda'"),
        (BenchOptions(device="cuda", runtimes=("onnxruntime", "openvino")), "device 'cuda'"),
        (BenchOptions(runtimes=("onnxruntime:cuda",)), "runtime 'onnxruntime:cuda'"),
        (BenchOptions(runtimes=("onnxruntime:cuda", "onnxruntime:tensorrt")), "runtime 'onnxruntime:cuda', .*"),
    ],
)
def test_what_needs_a_gpu_is_refused_before_any_work_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: BenchOptions, asked: str
) -> None:
    from vitdeploy import environment
    from vitdeploy.stages import bench as stage

    monkeypatch.setattr(environment, "reason_without_gpu", lambda: "there is no NVIDIA GPU here")
    monkeypatch.setattr(stage, "choose_baseline", None)
    with pytest.raises(BackendError, match=f"{asked} was asked for, and there is no NVIDIA GPU here"):
        bench([write_linear(tmp_path / "m.onnx").path], "digits", options=options)


def key_of(artifacts, data, **options: Any) -> str:
    return BenchRequest.open(artifacts, data, **options).key


def test_key_is_the_same_for_the_same_work_and_another_for_other_work(tmp_path: Path) -> None:
    model = write_linear(tmp_path / "m.onnx")
    options = BenchOptions(**{**QUICK.__dict__, "samples": 40})
    report = bench([model.path], "digits", options=options)
    shutil.copy(model.path, tmp_path / "renamed.onnx")
    assert key_of([tmp_path / "renamed.onnx"], "digits", options=options) == report.key
    others = [
        key_of([model.path], "digits:validation", options=options),
        key_of([model.path], "digits", options=BenchOptions(**{**options.__dict__, "rounds": 4})),
        key_of([model.path], "digits", baseline="timm:vit_tiny_patch16_224", options=options),
        key_of([write_linear(tmp_path / "o.onnx", WEIGHT * 2).path], "digits", options=options),
    ]
    assert len({report.key, *others}) == 5
    assert key_of([model.path], "digits", options=BenchOptions(**{**options.__dict__, "timeout_s": 1})) == report.key


def test_names_of_rows_differ_when_files_share_theirs(tmp_path: Path) -> None:
    a, b = write_linear(tmp_path / "a" / "m.onnx"), write_linear(tmp_path / "b" / "m.onnx", WEIGHT * 2)
    candidates = [
        of_artifact(a, "onnxruntime", "cpu", "cpu"),
        of_artifact(b, "onnxruntime", "cpu", "cpu"),
        of_artifact(a, "openvino", "cpu"),
        of_artifact(a, "onnxruntime", "cpu", "cpu"),
    ]
    assert [one.name for one in with_unique_names(candidates)] == [
        "a/m.onnx (ONNX Runtime, CPU)",
        "b/m.onnx",
        "a/m.onnx (OpenVINO, CPU)",
        "a/m.onnx (ONNX Runtime, CPU) #2",
    ]
    assert [one.name for one in with_unique_names(candidates[:1])] == ["m.onnx"]


def test_the_process_of_a_candidate_that_dies_leaves_a_note_and_the_row_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitdeploy.benching.probe.MODULE", "vitdeploy.no_such_module")
    model = write_linear(tmp_path / "m.onnx")
    report = bench([model.path], "digits", options=BenchOptions(**{**QUICK.__dict__, "processes": True}))
    (row,) = report.rows
    assert row.status == "ok"
    assert (row.load_ms, row.peak_memory_bytes) == (None, None)
    assert any("load time and memory are unknown" in note for note in row.notes)


def _run_python(code: str, *arguments: str) -> str:
    """Run code in a fresh interpreter that finds this checkout, and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_key_is_known_without_torch_or_onnxruntime(tmp_path: Path) -> None:
    model = write_linear(tmp_path / "m.onnx")
    code = """
import sys
from vitdeploy.stages.bench import BenchRequest
print(BenchRequest.open([sys.argv[1]], "digits").key)
print(sorted({"torch", "onnxruntime", "openvino", "tensorrt_rtx", "matplotlib"} & set(sys.modules)))
"""
    key, loaded = _run_python(code, str(model.path)).split()
    assert key == key_of([model.path], "digits")
    assert loaded == "[]"


def test_a_bench_runs_where_torch_cannot_be_imported(tmp_path: Path) -> None:
    model = write_linear(tmp_path / "m.onnx")
    code = """
import sys
sys.modules["torch"] = None
from vitdeploy.stages.bench import BenchOptions, bench
from vitdeploy.report import write_report
options = BenchOptions(rounds=3, iterations=3, warmup=1, fill_s=0.0, processes=False)
report = bench([sys.argv[1]], "digits", options=options)
write_report(report, sys.argv[2])
print(report.rows[0].status, report.baseline.accuracy_against, sep="|")
"""
    status, against = _run_python(code, str(model.path), str(tmp_path / "report")).strip().split("|")
    assert status == "ok"
    assert "torch is not installed" in against
    assert (tmp_path / "report" / "report.html").is_file()
