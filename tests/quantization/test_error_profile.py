"""Where inside a quantized graph the error arises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from present import present
from readout_vit import digits, run, write_readout_vit

from vitdeploy.artifacts import OnnxModel
from vitdeploy.measure.statistics import logits_sqnr_db
from vitdeploy.quantization.prepared import prepare
from vitdeploy.records import ErrorProfile, PlanEntry, PrecisionPlan, Treatment
from vitdeploy.records.precision import Precision, Target
from vitdeploy.report.error_profiles import error_profiles
from vitdeploy.report.html import render_html
from vitdeploy.stages.bench import BenchOptions, bench
from vitdeploy.stages.quantize import QuantizeOptions, quantize

pytestmark = pytest.mark.slow

CLIPPED = "blocks.1.mlp.fc1"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    return write_readout_vit(tmp_path_factory.mktemp("source") / "vit.onnx", 2)


def made(source: OnnxModel, path: Path, target: Target, precision: Precision = "int8") -> OnnxModel:
    """Quantize with one group whose range is cut far too early."""
    entry = PlanEntry(group=CLIPPED, precision="int8", treatment=Treatment(ranges="percentile", percent=80.0))
    plan = PrecisionPlan(profile="hand", remainder="fp32", entries=(entry,)) if precision == "int8" else None
    options = QuantizeOptions(
        threads=1, samples=60, method="minmax", equalization="off", steps=(), effort="fast", plan=plan,
        validation="digits:validation",
    )  # fmt: skip
    return quantize(source, path, precision=precision, target=target, calibration="digits:train", options=options)


def profile_of(model: OnnxModel) -> ErrorProfile:
    assert model.manifest.error_profile is not None
    return model.manifest.error_profile


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime", "openvino"])
def test_a_tensor_that_is_clipped_stands_first(source: OnnxModel, tmp_path: Path, target: Target) -> None:
    profile = profile_of(made(source, tmp_path / "made.onnx", target))
    worst, *others = profile.tensors
    assert profile.images == 8
    assert worst.group == CLIPPED
    assert worst.clipped == pytest.approx(0.2, abs=0.1)
    assert worst.low < worst.least
    assert worst.high > worst.most
    assert len(others) == (8 if target == "openvino" else 7)
    assert all(tensor.group and tensor.clipped < 0.01 for tensor in others)
    errors = [present(tensor.sqnr_db) for tensor in profile.tensors]
    assert errors == sorted(errors)


def test_depth_is_the_residual_stream_against_that_of_the_fp32_graph(source: OnnxModel, tmp_path: Path) -> None:
    model = made(source, tmp_path / "made.onnx", "openvino")
    profile = profile_of(model)
    images, _ = digits("validation")
    before, after = prepare(source.load()), model.load()
    assert len(profile.depth) == 4, "two sums per block"
    for point in profile.depth:
        ours, theirs = (run(graph, images[:8], point.tensor).reshape(8, -1) for graph in (after, before))
        assert logits_sqnr_db(ours, theirs) == pytest.approx(point.sqnr_db, abs=0.1)


@pytest.mark.parametrize("precision", ["fp16", "int8-weight-only"])
def test_without_activations_in_8_bits_there_is_no_profile(
    source: OnnxModel, tmp_path: Path, precision: Precision
) -> None:
    assert made(source, tmp_path / "made.onnx", "tensorrt", precision).manifest.error_profile is None


def test_the_report_shows_it(source: OnnxModel, tmp_path: Path) -> None:
    model = made(source, tmp_path / "made.onnx", "onnxruntime")
    options = BenchOptions(rounds=1, iterations=1, samples=20, threads=1, processes=False)
    report = bench([source, model], "digits:test", options=options)
    (shown,) = error_profiles(report)
    assert (shown.name, shown.images) == ("made.onnx", 8)
    assert shown.chart is not None
    assert len(shown.chart.bars) == len(profile_of(model).depth)
    page = render_html(report)
    assert "Where 8 bits lose" in page
    assert f'<th scope="row">{CLIPPED}' in page
    worst, lost = shown.tensors[0], profile_of(model).tensors[0]
    assert worst[0] == CLIPPED
    assert worst[2:5] == (
        f"{lost.low:.3g} to {lost.high:.3g}".replace("-", "−"),
        f"{lost.least:.3g} to {lost.most:.3g}".replace("-", "−"),
        f"{100 * lost.clipped:.3f} %",
    )
    row = next(row for row in report.rows if row.name == "made.onnx")
    assert row.error_profile is not None
    assert np.isfinite([present(point.sqnr_db) for point in row.error_profile.depth]).all()
