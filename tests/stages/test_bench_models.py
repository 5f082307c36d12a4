"""Several models in one bench: what is compared with what."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from digits_linear import PREPROCESS, QUICK, SPEC, WEIGHT, in_steps, linear_logits, row_of, write_linear

from vitdeploy.artifacts import OnnxModel
from vitdeploy.artifacts.reference import ReferenceInfo, write_reference
from vitdeploy.datasets import load_pixels, open_dataset
from vitdeploy.preprocess import normalize
from vitdeploy.records import ModelSpec, Report
from vitdeploy.stages.bench import bench

A, B = "a" * 64, "b" * 64


def _pair(folder: Path, name: str, weight: np.ndarray, checkpoint: str, spec: ModelSpec = SPEC) -> list[OnnxModel]:
    parents = {"checkpoint": checkpoint} if checkpoint else {}
    fp32 = write_linear(folder / f"{name}.onnx", weight, model=spec, parents=parents)
    steps = in_steps(weight, 127)
    int8 = write_linear(
        folder / f"{name}.int8.onnx",
        steps,
        model=spec,
        precision="int8",
        target="onnxruntime",
        parents={"onnx": fp32.digest},
    )
    return [fp32, int8]


def _numbers(report: Report) -> list[int]:
    return [row.model_number for row in report.rows]


def test_rows_of_another_model_have_no_sqnr_and_the_verdict_says_which_rows_are_one_model(tmp_path: Path) -> None:
    models = [*_pair(tmp_path, "one", WEIGHT, A), *_pair(tmp_path, "two", WEIGHT * 0.9, B)]
    report = bench(models, "digits", options=QUICK)
    assert _numbers(report) == [1, 1, 2, 2]
    assert row_of(report, "one.int8.onnx").logits_sqnr_db is not None
    for name in ("two.onnx", "two.int8.onnx"):
        row = row_of(report, name)
        assert (row.logits_sqnr_db, row.agreement) == (None, None)
        assert row.delta_top1_pp is not None
        assert "another model than the baseline: only their top-1 is compared" in row.notes
    text = next(text for text in report.verdict if "different models" in text)
    assert "one.onnx and one.int8.onnx; two.onnx and two.int8.onnx" in text


@pytest.mark.parametrize(
    ("checkpoint", "spec", "numbers"),
    [
        (A, SPEC, [1, 1, 1, 1]),  # another export of the same weights
        (B, SPEC, [1, 1, 2, 2]),
        ("", SPEC, [1, 1, 2, 2]),  # adopted: the graph is where it begins
    ],
)
def test_models_are_told_apart_by_what_they_were_made_from(
    tmp_path: Path, checkpoint: str, spec: ModelSpec, numbers: list[int]
) -> None:
    models = [*_pair(tmp_path, "one", WEIGHT, A), *_pair(tmp_path, "two", WEIGHT * 0.9, checkpoint, spec)]
    assert _numbers(bench(models, "digits", options=QUICK)) == numbers


@pytest.mark.parametrize(
    ("spec", "numbers"),
    [
        (SPEC, [1, 1]),  # its graph is not there any more: the architecture decides
        (SPEC.model_copy(update={"family": "other"}), [1, 2]),
        (SPEC.model_copy(update={"arguments": {"num_classes": 10, "width": 3}}), [1, 2]),
    ],
)
def test_where_the_way_back_is_lost_the_architecture_decides(
    tmp_path: Path, spec: ModelSpec, numbers: list[int]
) -> None:
    fp32 = write_linear(tmp_path / "one.onnx", parents={"checkpoint": A})
    steps = in_steps(WEIGHT, 127)
    int8 = write_linear(
        tmp_path / "int8.onnx", steps, model=spec, precision="int8", target="onnxruntime", parents={"onnx": B}
    )
    assert _numbers(bench([fp32, int8], "digits", options=QUICK)) == numbers


def test_stored_logits_are_compared_with_the_model_that_they_are_of(tmp_path: Path) -> None:
    """Both have stored logits, and those of the first are of other images than the test's."""
    models = [*_pair(tmp_path, "one", WEIGHT, A), *_pair(tmp_path, "two", WEIGHT * 0.9, B)]
    for graph, weight, data in ((models[0], WEIGHT, "digits:validation"), (models[2], WEIGHT * 0.9, "digits:test")):
        images = open_dataset(data)
        info = ReferenceInfo(
            onnx_sha256=graph.digest, data_sha256=images.digest, sample_ids=images.sample_ids, origin=""
        )
        write_reference(graph.path, info, linear_logits(normalize(load_pixels(images, PREPROCESS), PREPROCESS), weight))
    report = bench(models, "digits:test", options=QUICK)
    assert "as export stored them" in report.baseline.accuracy_against
    assert row_of(report, "one.onnx").logits_sqnr_db is None
    assert row_of(report, "two.onnx").logits_identical or row_of(report, "two.onnx").logits_sqnr_db > 80
