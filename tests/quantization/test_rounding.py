"""Weights that are rounded together keep the outputs better than each rounded alone, within the same limits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from trained_models import FAMILIES, quantized, trained_model

from vitdeploy.artifacts import OnnxModel
from vitdeploy.quantization.affine import pairwise_scale, quantize_affine, symmetric_scale
from vitdeploy.quantization.rounding import round_for_outputs

pytestmark = pytest.mark.slow


def correlated(rows: int, features: int, seed: int = 0) -> NDArray[np.float32]:
    """Return inputs as layers have them: few directions hold most of their energy."""
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(9).standard_normal((features, features)) * np.geomspace(1, 0.02, features)[:, None]
    return (random.standard_normal((rows, features)) @ mixing).astype(np.float32)


def weights(features: int, outputs: int) -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal((features, outputs)).astype(np.float32)


def error(rows: NDArray[np.float32], weight: NDArray[np.float32], integers: NDArray[np.int8], scale: NDArray) -> float:
    return float(np.square(rows @ (integers * scale - weight), dtype=np.float64).sum())


@pytest.mark.parametrize(("features", "rows"), [(32, 500), (200, 400), (200, 20), (300, 1000)])
def test_outputs_on_other_rows_are_closer(features: int, rows: int) -> None:
    weight = weights(features, 24)
    scale = symmetric_scale(-np.abs(weight).max(axis=0), np.abs(weight).max(axis=0))
    found = round_for_outputs(weight, scale, correlated(rows, features))
    others = correlated(600, features, seed=5)
    assert error(others, weight, found, scale) < 0.9 * error(others, weight, quantize_affine(weight, scale), scale)
    assert found.dtype == np.int8
    assert np.abs(found.astype(int)).max() <= 127
    assert np.abs(found * scale - weight).max() < 20 * scale.max()


def test_rows_that_say_nothing_leave_the_nearest_integers() -> None:
    weight = weights(16, 8)
    scale = symmetric_scale(-np.abs(weight).max(axis=0), np.abs(weight).max(axis=0))
    nearest = quantize_affine(weight, scale, axis=1, narrow=True)
    for rows in (np.zeros((50, 16), np.float32), np.eye(16, dtype=np.float32), np.zeros((0, 16), np.float32)):
        np.testing.assert_array_equal(round_for_outputs(weight, scale, rows), nearest)


def test_channels_that_are_always_zero_are_rounded_alone() -> None:
    weight, rows = weights(40, 8), correlated(200, 40)
    rows[:, [3, 7, 20]] = 0
    scale = symmetric_scale(-np.abs(weight).max(axis=0), np.abs(weight).max(axis=0))
    found = round_for_outputs(weight, scale, rows)
    np.testing.assert_array_equal(found[[3, 7, 20]], quantize_affine(weight[[3, 7, 20]], scale, narrow=True, axis=1))


@pytest.mark.parametrize("features", [15, 64, 257])
def test_neighbours_never_overflow_where_a_cpu_multiplies(features: int) -> None:
    weight = np.abs(weights(features, 40)) + 1  # all of one sign: every pair is at the limit
    scale = pairwise_scale(weight)
    found = round_for_outputs(weight, scale, correlated(300, features), pairwise=True).astype(int)
    pairs = np.concatenate([found, np.zeros((features % 2, 40), int)]).reshape(-1, 2, 40)
    assert np.maximum(pairs, 0).sum(axis=1).max() <= 128
    assert np.maximum(-pairs, 0).sum(axis=1).max() <= 128
    assert pairs.sum(axis=1).max() > 120


@pytest.fixture(scope="module", params=FAMILIES)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    return trained_model(request.param, tmp_path_factory.mktemp("trained"))


def test_the_step_is_tried_said_and_replayed_to_the_same_bytes(trained: OnnxModel, tmp_path: Path) -> None:
    first = quantized(trained, tmp_path / "first.onnx")
    calibration, plan = first.manifest.calibration, first.manifest.plan
    assert calibration is not None
    assert plan is not None
    trial = next(one for one in calibration.trials if one.step == "rounding by GPTQ")
    treatments = [entry.treatment for entry in plan.entries if entry.treatment is not None]
    assert any(one.rounding == "gptq" for one in treatments) == trial.kept
    again = quantized(trained, tmp_path / "again.onnx", plan=plan)
    assert again.digest == first.digest
    nearest = quantized(trained, tmp_path / "nearest.onnx", rounding="nearest")
    assert nearest.manifest.calibration is not None
    assert "rounding by GPTQ" not in [one.step for one in nearest.manifest.calibration.trials]


def test_forced_it_is_in_the_plan_of_every_linear_and_replays(trained: OnnxModel, tmp_path: Path) -> None:
    forced = quantized(trained, tmp_path / "forced.onnx", rounding="gptq", steps=())
    nearest = quantized(trained, tmp_path / "nearest.onnx", rounding="nearest", steps=())
    plan = forced.manifest.plan
    assert plan is not None
    treatments = [entry.treatment for entry in plan.entries if entry.treatment is not None]
    assert len(treatments) >= 8
    assert {one.rounding for one in treatments} == {"gptq"}
    assert (plan.sampled_rows, nearest.manifest.plan and nearest.manifest.plan.sampled_rows) == (16, None)
    assert forced.digest != nearest.digest
    assert quantized(trained, tmp_path / "again.onnx", plan=plan, steps=()).digest == forced.digest
