"""The bench stage: real ONNX Runtime on a small classifier of digits, scripted backends where there is no device."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from present import present

from vitdeploy import backends, environment
from vitdeploy.artifacts import OnnxModel, write_calibration_table, write_checkpoint, write_engine, write_onnx
from vitdeploy.artifacts.reference import ReferenceInfo, write_reference
from vitdeploy.backends.session import CheckedSession
from vitdeploy.benching import probe
from vitdeploy.benching.candidates import of_artifact, of_loaded, with_unique_names
from vitdeploy.datasets import load_pixels, open_dataset
from vitdeploy.errors import ArtifactError, BackendError, DataError, SeenDataWarning, UsageError
from vitdeploy.preprocess import normalize
from vitdeploy.records import BuildInfo, CalibrationInfo, Check, Examination, Manifest, ModelSpec, Report
from vitdeploy.records.samples import SampleSet, TrainingData
from vitdeploy.report.html import render_html
from vitdeploy.report.markdown import render_markdown
from vitdeploy.sessions import TensorSpec
from vitdeploy.stages.bench import BenchOptions, BenchRequest, bench, open_test_data

ROOT = Path(__file__).parents[2]
QUICK = BenchOptions(rounds=3, iterations=3, warmup=1, fill_s=0.0, processes=False, image_to_label=False)
PREPROCESS = present(open_dataset("digits").preprocess)
SPEC = ModelSpec(family="linear", name="digits-linear", arguments={"num_classes": 10}, classes=tuple("0123456789"))
TEXT = """<ir_version: 10, opset_import: ["": 20]>
linear (float[batch, 1, 8, 8] input) => (float[batch, CLASSES] logits)
<float[64, CLASSES] weight, float[CLASSES] bias> {
    shape = Constant<value = int64[2] {-1, 64}>()
    flat = Reshape(input, shape)
    product = MatMul(flat, weight)
    logits = Add(product, bias)
}"""


REQUIRED_OF_ROWS = set(
    """name backend provider target precision status reason top1 top1_ci95 delta_top1_pp delta_ci95_pp agreement
    logits_sqnr_db timings load_ms first_inference_ms size_bytes peak_memory_bytes energy_mj_per_image inspected
    precision_by_layer""".split()  # noqa: SIM905 - a list of 21 strings is no easier to read
)
REQUIRED_OF_TIMINGS = set(
    "batch streams scope p50_ms p90_ms p99_ms mean_ms images_per_s speedup speedup_ci95".split()  # noqa: SIM905
)


def _fit() -> tuple[np.ndarray, np.ndarray]:
    """Return weights of a least-squares classifier of the training digits: about 93 % right on the test digits."""
    train = open_dataset("digits:train")
    images = normalize(load_pixels(train, PREPROCESS), PREPROCESS).reshape(len(train), 64)
    design = np.hstack([images, np.ones((len(train), 1), np.float32)])
    targets = 10 * np.eye(10, dtype=np.float32)[train.labels]
    solved = np.linalg.lstsq(design.T @ design + 3 * np.eye(65), design.T @ targets, rcond=None)[0]
    return solved[:-1].astype(np.float32), solved[-1].astype(np.float32)


WEIGHT, BIAS = _fit()


def _in_steps(weight: np.ndarray, levels: int) -> np.ndarray:
    step = np.abs(weight).max() / levels
    return (np.round(weight / step) * step).astype(np.float32)


def _graph(weight: np.ndarray = WEIGHT, bias: np.ndarray = BIAS) -> ir.Model:
    model = ir.from_onnx_text(TEXT.replace("CLASSES", str(len(bias))))
    for name, array in (("weight", weight), ("bias", bias)):
        value = next(one for node in model.graph for one in node.inputs if one is not None and one.name == name)
        value.const_value = ir.tensor(array.astype(np.float32), name=name)
        model.graph.register_initializer(value)
    return model


def _manifest(**fields: Any) -> Manifest:
    return Manifest(**{"kind": "onnx", "model": SPEC, "preprocess": PREPROCESS, **fields})


def _onnx(path: Path, weight: np.ndarray = WEIGHT, **fields: Any) -> OnnxModel:
    return write_onnx(path, _graph(weight), _manifest(**fields))


def _logits(images: np.ndarray, weight: np.ndarray = WEIGHT) -> np.ndarray:
    return images.reshape(len(images), 64) @ weight + BIAS


class ScriptedSession(CheckedSession):
    """Computes the linear classifier in NumPy, and takes as long as its script says."""

    def __init__(
        self, backend: str, provider: str, weight: np.ndarray, call_ms: float, batch: int | None = None
    ) -> None:
        images = TensorSpec("input", np.dtype(np.float32), (batch, 1, 8, 8))
        super().__init__(backend, provider, [images], [TensorSpec("logits", np.dtype(np.float32), (batch, 10))])
        self.weight, self.call_ms = weight, call_ms

    def _run(self, arrays):
        return {"logits": _logits(arrays["input"], self.weight)}

    def time(self, feed, *, warmup, iterations, scope: str = "end_to_end"):
        batch = len(self._checked(feed)["input"])
        copies = 0.0 if scope == "device" else 0.05
        return np.full(iterations, self.call_ms * (0.9 + 0.1 * batch) + copies)

    def _release(self) -> None:
        pass


@dataclass
class ScriptedBackend:
    """A runtime whose answers the test chooses."""

    name: str
    graph_devices: tuple[str, ...] = ("cpu", "cuda")
    cannot: str | None = None
    missing: str | None = None
    call_ms: dict[str, float] = field(default_factory=dict)  # by precision, or by device for PyTorch
    fails: str | None = None
    weight: np.ndarray = field(default_factory=lambda: WEIGHT)
    batch: int | None = None
    opened: list[tuple[str, str]] = field(default_factory=list)

    def unavailable(self):
        return self.missing

    def can_run(self):
        return self.cannot

    def open(self, artifact, options) -> ScriptedSession:
        if self.fails is not None:
            raise RuntimeError(self.fails)
        self.opened.append((artifact.path.name, options.device))
        key = options.device if self.name == "pytorch" else artifact.manifest.precision
        provider = f"eager-{options.device}" if self.name == "pytorch" else self.name
        return ScriptedSession(self.name, provider, self.weight, self.call_ms.get(key, 1.0), self.batch)


@pytest.fixture(name="script")
def _script(monkeypatch: pytest.MonkeyPatch):
    """Return a function that puts scripted backends in the place of real ones."""
    real = backends.get_backend

    def replace(*scripted: ScriptedBackend) -> None:
        by_name = {one.name: one for one in scripted}
        monkeypatch.setattr(backends, "get_backend", lambda name: by_name.get(name) or real(name))

    return replace


@pytest.fixture(name="gpu")
def _gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this machine one with a GPU, for whoever asks ``environment``."""
    machine = environment.current().model_copy(update={"gpu": "Scripted GPU", "compute_capability": "8.9"})
    monkeypatch.setattr(environment, "current", lambda: machine)


@pytest.fixture(name="checkpoint")
def _checkpoint(tmp_path: Path):
    return write_checkpoint(tmp_path / "linear.safetensors", {"weight": WEIGHT}, _manifest(kind="checkpoint"))


def _engine(path: Path, precision: str = "fp16", **build: Any):
    info = BuildInfo(**{"backend": "tensorrt-rtx", "version": "1.7", "batch": (1, 1, 1), "reason": "no GPU", **build})
    manifest = _manifest(kind="engine", precision=precision, target="tensorrt", build=info)
    return write_engine(path, f"plan {precision}".encode(), manifest)


def _row(report: Report, name: str):
    (row,) = [row for row in report.rows if row.name == name]
    return row


def test_graphs_are_measured_with_onnx_runtime_against_the_fp32_graph_where_there_is_no_checkpoint(
    tmp_path: Path,
) -> None:
    fp32 = _onnx(tmp_path / "m.onnx")
    int8 = _onnx(tmp_path / "m.int8.onnx", _in_steps(WEIGHT, 127), precision="int8", target="onnxruntime")
    report = bench([fp32.path, int8.path], "digits", options=BenchOptions(rounds=4, fill_s=0.01, batches=(1, 4)))

    base, row = _row(report, "m.onnx"), _row(report, "m.int8.onnx")
    assert [one.status for one in report.rows] == ["ok", "ok"]
    assert report.baseline.row == "m.onnx"
    assert "not PyTorch" in report.baseline.accuracy_against
    test = open_dataset("digits:test")
    images = normalize(load_pixels(test, PREPROCESS), PREPROCESS)
    for one, weight in ((base, WEIGHT), (row, _in_steps(WEIGHT, 127))):
        expected = float(np.mean(_logits(images, weight).argmax(axis=1) == test.labels))
        assert one.top1 == pytest.approx(expected, abs=1e-9)
        assert one.top1 > 0.9
        assert one.top1_ci95[0] < one.top1 < one.top1_ci95[1]
        counted = list(zip(report.conditions.classes, one.correct_by_class, strict=True))
        assert [count.name for count, _ in counted] == [str(digit) for digit in range(10)]
        assert sum(right for _, right in counted) == round(one.top1 * len(test))
        assert sum(count.images for count, _ in counted) == len(test)
        predicted = _logits(images, weight).argmax(axis=1)
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
    report = bench([_onnx(tmp_path / "m.onnx").path], "digits:validation", options=QUICK)
    raw = json.loads(report.model_dump_json())
    assert raw["schema"] == 1
    assert raw["conditions"]["data"] == "digits:validation"
    assert set(raw) >= {"schema", "created", "environment", "baseline", "conditions", "rows", "verdict"}
    assert set(raw["rows"][0]) >= REQUIRED_OF_ROWS
    assert set(raw["rows"][0]["timings"][0]) >= REQUIRED_OF_TIMINGS
    assert raw["rows"][0]["load_ms"] is None  # not measured is null
    assert Report.model_validate(raw) == report


def test_a_checkpoint_among_the_artifacts_is_the_baseline(tmp_path: Path, checkpoint, script) -> None:
    script(ScriptedBackend("pytorch", call_ms={"cpu": 100.0}))
    report = bench([_onnx(tmp_path / "m.onnx").path, checkpoint.path], "digits", options=QUICK)
    assert [row.name for row in report.rows] == ["linear.safetensors", "m.onnx"]
    assert report.baseline.row == "linear.safetensors"
    assert report.baseline.accuracy_against == "PyTorch eager FP32 of linear.safetensors"
    assert report.baseline.payload_sha256 == checkpoint.digest
    row = _row(report, "m.onnx")
    assert row.delta_top1_pp == 0
    assert row.timings[0].speedup > 10
    assert report.baseline.latency_rows == {"m.onnx": "linear.safetensors"}


def test_the_checkpoint_that_an_artifact_was_made_from_is_found_beside_it_over_all_links(
    tmp_path: Path, checkpoint, script
) -> None:
    script(ScriptedBackend("pytorch"))
    fp32 = _onnx(tmp_path / "m.onnx", parents={"checkpoint": checkpoint.digest})
    int8 = _onnx(tmp_path / "m.int8.onnx", _in_steps(WEIGHT, 127), precision="int8", parents={"onnx": fp32.digest})
    report = bench([int8.path], "digits", options=QUICK)
    assert [row.name for row in report.rows] == ["linear.safetensors", "m.int8.onnx"]


def test_a_checkpoint_of_another_digest_or_a_damaged_one_is_not_taken(tmp_path: Path, checkpoint, script) -> None:
    script(ScriptedBackend("pytorch"))
    model = _onnx(tmp_path / "m.onnx", parents={"checkpoint": checkpoint.digest})
    data = bytearray(checkpoint.path.read_bytes())
    data[-1] ^= 1
    checkpoint.path.write_bytes(data)
    write_checkpoint(tmp_path / "other.safetensors", {"weight": WEIGHT * 2}, _manifest(kind="checkpoint"))
    report = bench([model.path], "digits", options=QUICK)
    assert [row.name for row in report.rows] == ["m.onnx"]
    assert "not PyTorch" in report.baseline.accuracy_against


def test_a_named_baseline_is_taken_and_is_the_first_row(tmp_path: Path, checkpoint, script) -> None:
    script(ScriptedBackend("pytorch"))
    shutil.copy(checkpoint.path, tmp_path / "copy.safetensors")
    other = write_checkpoint(tmp_path / "o.safetensors", {"weight": WEIGHT * 2}, _manifest(kind="checkpoint"))
    model = _onnx(tmp_path / "m.onnx")
    report = bench([model.path, checkpoint.path], "digits", baseline=str(other.path), options=QUICK)
    assert [row.name for row in report.rows] == ["o.safetensors", "linear.safetensors", "m.onnx"]
    graph = bench([checkpoint.path], "digits", baseline=str(model.path), options=QUICK)
    assert graph.baseline.row == "m.onnx"
    assert graph.baseline.accuracy_against == "m.onnx under ONNX Runtime, as named"


def test_a_named_checkpoint_needs_torch_and_the_line_says_how_to_get_it(tmp_path: Path, checkpoint, script) -> None:
    absent = ScriptedBackend("pytorch", missing="torch cannot be imported: pip install 'vitdeploy[torch]'")
    script(absent)
    model = _onnx(tmp_path / "m.onnx")
    with pytest.raises(BackendError, match=r"needs PyTorch: torch cannot be imported.*pip install"):
        bench([model.path], "digits", baseline=str(checkpoint.path), options=QUICK)
    report = bench([model.path, checkpoint.path], "digits", options=QUICK)
    assert _row(report, "linear.safetensors").status == "skipped"
    assert "pip install" in _row(report, "linear.safetensors").reason
    assert "torch is not installed" in report.baseline.accuracy_against
    assert report.baseline.row == "m.onnx"


def test_without_torch_stored_logits_stand_in_for_pytorch_and_latency_is_against_the_fp32_graph(
    tmp_path: Path, script
) -> None:
    absent = ScriptedBackend("pytorch", missing="torch cannot be imported: pip install 'vitdeploy[torch]'")
    script(absent)
    fp32 = _onnx(tmp_path / "m.onnx")
    int8 = _onnx(tmp_path / "m.int8.onnx", _in_steps(WEIGHT, 127), precision="int8", parents={"onnx": fp32.digest})
    test = open_dataset("digits:test")
    stored = _logits(normalize(load_pixels(test, PREPROCESS), PREPROCESS)) + np.float32(0.01)
    info = ReferenceInfo(
        onnx_sha256=fp32.digest, data_sha256=test.digest, sample_ids=test.sample_ids, origin="", logits_sha256=""
    )
    write_reference(fp32.path, info, stored)
    for artifacts in ([fp32.path, int8.path], [int8.path]):
        report = bench(artifacts, "digits", options=QUICK)
        assert report.baseline.row is None
        assert "PyTorch's logits as export stored them (torch is not installed)" in report.baseline.accuracy_against
        row = _row(report, "m.int8.onnx")
        assert row.delta_top1_pp is not None
        assert 20 < row.logits_sqnr_db < 60
    report = bench([fp32.path, int8.path], "digits", options=QUICK)
    assert 40 < _row(report, "m.onnx").logits_sqnr_db < 80
    assert report.baseline.latency_against == "the FP32 graph on the same runtime and device"
    assert report.baseline.latency_rows == {"m.int8.onnx": "m.onnx"}
    other = bench([fp32.path], "digits:validation", options=QUICK)  # samples that were not stored
    assert other.baseline.row == "m.onnx"


def test_engines_that_cannot_run_here_are_rows_that_say_so(tmp_path: Path, script) -> None:
    script(ScriptedBackend("tensorrt-rtx", cannot="there is no NVIDIA GPU here"))
    _engine(tmp_path / "m.fp16.engine")
    _engine(tmp_path / "m.int8.engine", "int8")
    report = bench(
        [_onnx(tmp_path / "m.onnx").path, tmp_path / "m.fp16.engine", tmp_path / "m.int8.engine"],
        "digits",
        options=QUICK,
    )
    for name in ("m.fp16.engine", "m.int8.engine"):
        row = _row(report, name)
        assert (row.status, row.reason) == ("built", "there is no NVIDIA GPU here")
        assert (row.inspected, row.precision_by_layer, row.top1, row.timings) == (False, None, None, ())
        assert (row.backend, row.device, row.size_bytes) == ("tensorrt-rtx", "cuda", len(f"plan {row.precision}"))
    assert any("weight-only" in note for note in _row(report, "m.int8.engine").notes)
    assert not any("weight-only" in note for note in _row(report, "m.fp16.engine").notes)
    assert any("m.fp16.engine and m.int8.engine were built and not run" in text for text in report.verdict)


@pytest.mark.usefixtures("gpu")
def test_cpu_and_gpu_rows_never_share_a_speedup(tmp_path: Path, checkpoint, script) -> None:
    torch = ScriptedBackend("pytorch", call_ms={"cpu": 90.0, "cuda": 8.0})
    script(torch, ScriptedBackend("tensorrt-rtx", call_ms={"fp16": 2.0}))
    _engine(tmp_path / "m.fp16.engine")
    report = bench(
        [checkpoint.path, _onnx(tmp_path / "m.onnx").path, tmp_path / "m.fp16.engine"], "digits", options=QUICK
    )
    on_cpu, on_gpu = "linear.safetensors (PyTorch, CPU)", "linear.safetensors (PyTorch, CUDA)"
    faster = {f"linear.safetensors (PyTorch, {way})": on_gpu for way in ("autocast-fp16", "compile")}
    assert report.baseline.latency_rows == {"m.onnx": on_cpu, "m.fp16.engine": on_gpu, **faster}
    assert sorted(device for _, device in torch.opened) == ["cpu", *["cuda"] * 3]  # and its faster ways beside it
    engine = _row(report, "m.fp16.engine")
    assert {timing.scope: timing.speedup for timing in engine.timings} == {
        "end_to_end": pytest.approx(8.05 / 2.05),
        "device": pytest.approx(4.0),
    }
    assert [timing.scope for timing in _row(report, "m.onnx").timings] == ["end_to_end"]
    assert [timing.scope for timing in _row(report, on_gpu).timings] == ["end_to_end", "device"]


@pytest.mark.usefixtures("gpu")
def test_an_engine_of_a_fixed_batch_is_timed_at_that_batch_only_and_judged_on_all_images(
    tmp_path: Path, script
) -> None:
    script(ScriptedBackend("tensorrt-rtx", batch=4))
    _engine(tmp_path / "m.engine", batch=(4, 4, 4))
    options = BenchOptions(**{**QUICK.__dict__, "batches": (1, 4), "accuracy_batch": 32})
    report = bench([tmp_path / "m.engine", _onnx(tmp_path / "m.onnx").path], "digits", options=options)
    row = _row(report, "m.engine")
    assert [timing.batch for timing in row.timings] == [4, 4]
    assert row.top1 == _row(report, "m.onnx").top1
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
    _engine(tmp_path / "m.engine")
    row = _row(bench([tmp_path / "m.engine"], "digits", options=QUICK), "m.engine")
    assert row.inspected is True
    assert row.precision_by_layer == {"fp16": 14}
    hidden = Check(name="layer precision", status="unchecked", detail="the engine inspector lists no layers")
    told = Examination(checks=(passed, hidden), reason=hidden.detail)
    row = _row(bench([tmp_path / "m.engine"], "digits", options=QUICK), "m.engine")
    assert row.inspected is False
    assert row.precision_by_layer is None
    assert "layer precision: the engine inspector lists no layers" in row.notes


def test_one_candidate_that_fails_gives_a_row_with_the_reason_and_the_others_are_measured(
    tmp_path: Path, checkpoint, script
) -> None:
    script(ScriptedBackend("pytorch", fails="CUDA out of memory\nat line 7"))
    model = _onnx(tmp_path / "m.onnx")
    nan = _onnx(tmp_path / "nan.onnx", np.full_like(WEIGHT, np.nan))
    report = bench([checkpoint.path, model.path, nan.path], "digits", options=QUICK)
    failed = _row(report, "linear.safetensors")
    assert (failed.status, failed.top1, failed.timings) == ("failed", None, ())
    assert failed.reason == "opening it failed: RuntimeError: CUDA out of memory"
    assert _row(report, "nan.onnx").reason == "its logits are NaN or infinite for 450 of 450 images"
    row = _row(report, "m.onnx")
    assert row.status == "ok"
    assert row.top1 > 0.9
    assert row.delta_top1_pp is None
    assert row.timings[0].speedup is None
    assert report.baseline.accuracy_against == "nothing, as the baseline linear.safetensors failed"
    assert any("linear.safetensors failed" in text for text in report.verdict)


def test_a_graph_made_for_another_runtime_says_so(tmp_path: Path) -> None:
    model = _onnx(tmp_path / "m.onnx")
    foreign = _onnx(tmp_path / "m.trt.onnx", _in_steps(WEIGHT, 127), precision="int8", target="tensorrt")
    own = _onnx(tmp_path / "m.ort.onnx", _in_steps(WEIGHT, 127), precision="int8", target="onnxruntime")
    report = bench([model.path, foreign.path, own.path], "digits", options=QUICK)
    said = (
        "made for TensorRT, run by ONNX Runtime: its latency is not that of its target; vd.quantize(..., "
        "target='onnxruntime') makes one for ONNX Runtime"
    )
    assert _row(report, "m.trt.onnx").notes == (said,)
    assert _row(report, "m.ort.onnx").notes == ()


def test_one_graph_under_two_runtimes_is_two_rows_of_which_the_first_is_the_baseline(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    model = _onnx(tmp_path / "m.onnx")
    options = BenchOptions(**{**QUICK.__dict__, "runtimes": ("onnxruntime", "openvino")})
    for baseline in (None, str(model.path)):
        report = bench([model.path], "digits", baseline=baseline, options=options)
        first, second = report.rows
        assert [row.name for row in report.rows] == ["m.onnx (ONNX Runtime, CPU)", "m.onnx (OpenVINO, CPU)"]
        assert report.baseline.row == first.name
        assert report.baseline.latency_rows == {second.name: first.name}
        assert second.logits_identical or second.logits_sqnr_db > 80
        assert second.delta_top1_pp == 0


def test_several_numbers_of_threads_are_timed_at_each_batch(tmp_path: Path) -> None:
    model = _onnx(tmp_path / "m.onnx")
    options = BenchOptions(**{**QUICK.__dict__, "batches": (1, 4), "threads": 2, "thread_counts": (1, 2)})
    report = bench([model.path], "digits", options=options)
    timed = [(one.threads, one.batch) for one in _row(report, "m.onnx").by_threads]
    assert timed == [(1, 1), (2, 1), (1, 4), (2, 4)]
    for one in _row(report, "m.onnx").by_threads:
        assert one.p50_ms > 0
        assert one.images_per_s > 0
    page, text = render_html(report), render_markdown(report)
    assert page.count('<tr data-name="m.onnx"><th scope="row">m.onnx</th><td class="n">4</td>') == 2
    assert all(f"Threads × artifact, batch {batch}" in page for batch in (1, 4))
    assert "## Threads" in text
    with pytest.raises(UsageError, match=r"the numbers of threads are \(1, 1\), expected each once"):
        BenchOptions(thread_counts=(1, 1))


def test_openvino_in_bf16_is_a_row_beside_its_fp32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setattr("vitdeploy.backends.openvino.computes_bf16", lambda: True)
    model = _onnx(tmp_path / "m.onnx")
    options = BenchOptions(**{**QUICK.__dict__, "runtimes": ("openvino", "openvino:bf16+throughput")})
    first, second = bench([model.path], "digits", options=options).rows
    assert (first.name, second.name) == ("m.onnx (OpenVINO, CPU)", "m.onnx (OpenVINO, bf16+throughput)")
    assert (first.provider, second.provider) == ("CPU", "CPU BF16 throughput")
    assert any("computes in BF16" in note for note in second.notes)
    with pytest.raises(UsageError, match="no runtime 'openvino:npu': openvino runs on the CPU here"):
        bench([model.path], "digits", options=BenchOptions(runtimes=("openvino:npu",)))


def test_an_artifact_that_was_calibrated_on_the_images_it_is_judged_on_says_so(tmp_path: Path) -> None:
    test = open_dataset("digits:test")
    info = {"data": "digits", "samples": 450, "method": "minmax"}
    own = CalibrationInfo(set_sha256=test.digest, **info)
    other = CalibrationInfo(set_sha256="0" * 64, **info)
    a = _onnx(tmp_path / "a.onnx", _in_steps(WEIGHT, 127), precision="int8", calibration=own)
    b = _onnx(tmp_path / "b.onnx", _in_steps(WEIGHT, 127), precision="int8", calibration=other)
    said = "450 of the 450 images of 'digits:test' were calibrated on"
    with pytest.warns(SeenDataWarning, match=said):
        report = bench([a.path, b.path], "digits", options=QUICK)
    assert [note.startswith(said) for note in _row(report, "a.onnx").notes] == [True]
    assert report.verdict[0].startswith(said)
    assert _row(report, "b.onnx").notes == ()


def test_images_without_labels_give_fidelity_without_accuracy(tmp_path: Path) -> None:
    test = open_dataset("digits:test")
    folder = tmp_path / "flat"
    folder.mkdir()
    for index in range(20):
        test.image(index).save(folder / f"{index:02d}.png")
    models = [_onnx(tmp_path / "m.onnx"), _onnx(tmp_path / "c.onnx", _in_steps(WEIGHT, 7), precision="int8")]
    report = bench([model.path for model in models], str(folder), options=QUICK)
    row = _row(report, "c.onnx")
    assert (row.top1, row.top1_ci95, row.delta_top1_pp) == (None, None, None)
    assert row.agreement is not None
    assert row.logits_sqnr_db > 5
    assert report.conditions.n_samples == 20
    assert (report.conditions.classes, row.correct_by_class) == ((), None)
    assert any("no labels" in text for text in report.verdict)


def test_identical_logits_are_reported_as_such(tmp_path: Path, checkpoint, script) -> None:
    script(ScriptedBackend("pytorch"), ScriptedBackend("onnxruntime"))
    row = _row(bench([checkpoint.path, _onnx(tmp_path / "m.onnx").path], "digits", options=QUICK), "m.onnx")
    assert (row.logits_identical, row.logits_sqnr_db, row.agreement) == (True, None, 1.0)


def test_samples_take_a_seeded_part_and_the_same_for_all(tmp_path: Path) -> None:
    model = _onnx(tmp_path / "m.onnx")
    options = BenchOptions(**{**QUICK.__dict__, "samples": 50})
    report = bench([model.path], "digits", options=options)
    assert report.conditions.n_samples == 50
    assert report.rows[0].top1 * 50 == pytest.approx(round(report.rows[0].top1 * 50))


def test_data_with_splits_is_judged_on_its_test_split(tmp_path: Path) -> None:
    assert len(open_test_data("digits", QUICK)) == 450
    assert len(open_test_data("digits:train", QUICK)) == 1097
    digits = open_dataset("digits:test")
    for index in range(0, 450, 15):
        folder = tmp_path / "val" / digits.classes[digits.labels[index]]
        folder.mkdir(parents=True, exist_ok=True)
        digits.image(index).save(folder / f"{index}.png")
    shutil.copytree(tmp_path / "val", tmp_path / "train")
    next((tmp_path / "val").rglob("*.png")).unlink()
    assert len(open_test_data(str(tmp_path), QUICK)) == 29


def _trained_on(path: Path, *data: str) -> OnnxModel:
    seen = SampleSet.of(open_dataset("digits:train").sample_ids)
    trainings = tuple(TrainingData(data=one, train=seen) for one in data)
    return _onnx(path, trained_on=trainings)


def test_without_data_the_test_part_of_what_the_weights_were_trained_on_counts(tmp_path: Path) -> None:
    models = [_trained_on(tmp_path / "a.onnx", "elsewhere", "digits:train"), _onnx(tmp_path / "b.onnx")]
    assert BenchRequest.open(models).dataset.uri == "digits:test"
    assert BenchRequest.open([_trained_on(tmp_path / "c.onnx", "digits@1:train")]).dataset.uri == "digits@1:test"


def test_without_data_artifacts_that_state_none_or_several_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="do not state what they were trained on: name the data to measure on"):
        bench([_onnx(tmp_path / "a.onnx")])
    several = [_trained_on(tmp_path / "b.onnx", "digits:train"), _trained_on(tmp_path / "c.onnx", "digits@1:train")]
    with pytest.raises(UsageError, match="were trained on 'digits', 'digits@1': name the data"):
        bench(several)
    with pytest.raises(DataError, match="gone"):
        bench([_trained_on(tmp_path / "d.onnx", "gone:train")])


def test_labels_that_do_not_fit_the_model_are_an_error(tmp_path: Path) -> None:
    digits = open_dataset("digits:test")
    for index, name in enumerate(["cat", "dog"] * 4):
        (tmp_path / "pets" / name).mkdir(parents=True, exist_ok=True)
        digits.image(index).save(tmp_path / "pets" / name / f"{index}.png")
    model = _onnx(tmp_path / "m.onnx")
    with pytest.raises(DataError, match="'cat', 'dog'"):
        bench([model.path], str(tmp_path / "pets"), options=QUICK)


def test_a_model_with_more_classes_than_the_baseline_is_judged_and_not_compared(tmp_path: Path) -> None:
    model = _onnx(tmp_path / "m.onnx")
    spec = SPEC.model_copy(update={"classes": (*SPEC.classes, "ten", "eleven")})
    wide = _graph(np.pad(WEIGHT, ((0, 0), (0, 2))), np.concatenate([BIAS, [-99, -99]]))
    write_onnx(tmp_path / "wide.onnx", wide, _manifest(model=spec))
    report = bench([model.path, tmp_path / "wide.onnx"], "digits", options=QUICK)
    row = _row(report, "wide.onnx")
    assert row.top1 == _row(report, "m.onnx").top1
    assert (row.delta_top1_pp, row.agreement) == (None, None)
    assert row.notes == ("it has 12 classes and the baseline 10: not compared",)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"batches": ()}, "at least one, each once"),
        ({"batches": (1, 1)}, "at least one, each once"),
        ({"batches": (0,)}, r"batches is \(0,\), expected a whole number of at least 1"),
        ({"rounds": 0}, "rounds is 0"),
        ({"threads": -1}, "threads is -1, expected a whole number of at least 0"),
        ({"runtimes": ()}, "no runtime"),
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
    model = _onnx(tmp_path / "m.onnx")
    with pytest.raises(UsageError, match="no runtime 'tflite'"):
        bench([model.path], "digits", options=BenchOptions(runtimes=("tflite",)))
    with pytest.raises(UsageError, match="none of the runtimes 'openvino'"):
        bench([model.path], "digits", options=BenchOptions(runtimes=("openvino",), device="cuda"))


def key_of(artifacts, data, **options: Any) -> str:
    return BenchRequest.open(artifacts, data, **options).key


def test_key_is_the_same_for_the_same_work_and_another_for_other_work(tmp_path: Path) -> None:
    model = _onnx(tmp_path / "m.onnx")
    options = BenchOptions(**{**QUICK.__dict__, "samples": 40})
    report = bench([model.path], "digits", options=options)
    shutil.copy(model.path, tmp_path / "renamed.onnx")
    assert key_of([tmp_path / "renamed.onnx"], "digits", options=options) == report.key
    others = [
        key_of([model.path], "digits:validation", options=options),
        key_of([model.path], "digits", options=BenchOptions(**{**options.__dict__, "rounds": 4})),
        key_of([model.path], "digits", baseline="timm:vit_tiny_patch16_224", options=options),
        key_of([_onnx(tmp_path / "o.onnx", WEIGHT * 2).path], "digits", options=options),
    ]
    assert len({report.key, *others}) == 5
    assert key_of([model.path], "digits", options=BenchOptions(**{**options.__dict__, "timeout_s": 1})) == report.key


def test_names_of_rows_differ_when_files_share_theirs(tmp_path: Path) -> None:
    a, b = _onnx(tmp_path / "a" / "m.onnx"), _onnx(tmp_path / "b" / "m.onnx", WEIGHT * 2)
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
    model = _onnx(tmp_path / "m.onnx")
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
    model = _onnx(tmp_path / "m.onnx")
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
    model = _onnx(tmp_path / "m.onnx")
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


def test_the_checkpoint_under_pytorch_is_the_baseline_of_what_was_exported_from_it(tmp_path: Path) -> None:
    """Nothing scripted: PyTorch, its process of its own, and a graph that export wrote."""
    torch = pytest.importorskip("torch")
    from vitdeploy.models.registry import create_model
    from vitdeploy.stages.export import export

    arguments = {"image_size": 8, "patch": 4, "channels": 1, "num_classes": 10, "width": 32, "depth": 1, "heads": 2}
    torch.manual_seed(0)
    module = create_model("vit", **arguments)
    spec = ModelSpec(family="vit", name="small", arguments=arguments, classes=SPEC.classes)
    weights = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    checkpoint = write_checkpoint(tmp_path / "vit.safetensors", weights, _manifest(kind="checkpoint", model=spec))
    model = export(str(checkpoint.path), tmp_path / "vit.onnx")
    options = BenchOptions(**{**QUICK.__dict__, "processes": True, "threads": 1})
    report = bench([model.path], "digits", options=options)
    base, row = report.rows
    assert (base.name, base.backend, base.provider) == ("vit.safetensors", "pytorch", "eager-cpu")
    assert base.peak_memory_bytes > row.peak_memory_bytes  # torch is the larger library
    assert row.logits_sqnr_db > 90
    assert row.agreement == 1.0
    assert row.delta_top1_pp == 0.0
    assert row.timings[0].speedup_ci95 is not None
    assert report.baseline.latency_rows == {"vit.onnx": "vit.safetensors"}


def test_a_source_that_is_no_artifact_is_loaded_into_pytorch_as_the_baseline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    from vitdeploy.sources import load as sources
    from vitdeploy.sources.load import LoadedModel

    linear = torch.nn.Linear(64, 10)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(WEIGHT.T.copy()))
        linear.bias.copy_(torch.from_numpy(BIAS))
    loaded = LoadedModel(torch.nn.Sequential(torch.nn.Flatten(), linear), SPEC, PREPROCESS, "d" * 64, "a hub")
    asked = []

    def load(source):
        asked.append(source.text)
        return loaded

    monkeypatch.setattr(sources, "_load", load)

    report = bench([_onnx(tmp_path / "m.onnx").path], "digits", baseline="timm:linear", options=QUICK)
    base, row = report.rows
    assert (base.name, base.backend, base.size_bytes, base.status) == ("timm:linear", "pytorch", None, "ok")
    assert base.payload_sha256 == "d" * 64
    assert report.baseline.accuracy_against == "PyTorch eager FP32 of timm:linear"
    assert row.logits_identical or row.logits_sqnr_db > 90

    candidate = of_loaded("timm:linear", loaded, "cpu")
    cost = probe.probe(probe.request_of(candidate, batch=2, threads=1, tf32=False))
    assert cost.reason == ""
    assert cost.load_ms > 0
    assert cost.first_inference_ms > 0
    assert asked == ["timm:linear", "timm:linear"]
