"""What the bench judges on: splits, samples, images without labels, what the weights were trained on."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from digits_linear import (
    BIAS,
    QUICK,
    SPEC,
    WEIGHT,
    in_steps,
    linear_graph,
    linear_manifest,
    row_of,
    write_linear,
)

from vitdeploy.artifacts import OnnxModel, write_onnx
from vitdeploy.datasets import open_dataset
from vitdeploy.errors import DataError, SeenDataWarning, UsageError
from vitdeploy.records import CalibrationInfo
from vitdeploy.records.samples import SampleSet, TrainingData
from vitdeploy.stages.bench import BenchOptions, BenchRequest, bench, open_test_data


def test_an_artifact_that_was_calibrated_on_the_images_it_is_judged_on_says_so(tmp_path: Path) -> None:
    test = open_dataset("digits:test")
    info = {"data": "digits", "samples": 450, "method": "minmax"}
    own = CalibrationInfo(set_sha256=test.digest, **info)
    other = CalibrationInfo(set_sha256="0" * 64, **info)
    a = write_linear(tmp_path / "a.onnx", in_steps(WEIGHT, 127), precision="int8", calibration=own)
    b = write_linear(tmp_path / "b.onnx", in_steps(WEIGHT, 127), precision="int8", calibration=other)
    said = "450 of the 450 images of 'digits:test' were calibrated on"
    with pytest.warns(SeenDataWarning, match=said):
        report = bench([a.path, b.path], "digits", options=QUICK)
    assert [note.startswith(said) for note in row_of(report, "a.onnx").notes] == [True]
    assert report.verdict[0].startswith(said)
    assert row_of(report, "b.onnx").notes == ()


def test_images_without_labels_give_fidelity_without_accuracy(tmp_path: Path) -> None:
    test = open_dataset("digits:test")
    folder = tmp_path / "flat"
    folder.mkdir()
    for index in range(20):
        test.image(index).save(folder / f"{index:02d}.png")
    models = [
        write_linear(tmp_path / "m.onnx"),
        write_linear(tmp_path / "c.onnx", in_steps(WEIGHT, 7), precision="int8"),
    ]
    report = bench([model.path for model in models], str(folder), options=QUICK)
    row = row_of(report, "c.onnx")
    assert (row.top1, row.top1_ci95, row.delta_top1_pp) == (None, None, None)
    assert row.agreement is not None
    assert row.logits_sqnr_db > 5
    assert report.conditions.n_samples == 20
    assert (report.conditions.classes, row.correct_by_class) == ((), None)
    assert any("no labels" in text for text in report.verdict)


def test_samples_take_a_seeded_part_and_the_same_for_all(tmp_path: Path) -> None:
    model = write_linear(tmp_path / "m.onnx")
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
    return write_linear(path, trained_on=trainings)


def test_without_data_the_test_part_of_what_the_weights_were_trained_on_counts(tmp_path: Path) -> None:
    models = [_trained_on(tmp_path / "a.onnx", "elsewhere", "digits:train"), write_linear(tmp_path / "b.onnx")]
    assert BenchRequest.open(models).dataset.uri == "digits:test"
    assert BenchRequest.open([_trained_on(tmp_path / "c.onnx", "digits@1:train")]).dataset.uri == "digits@1:test"


def test_without_data_artifacts_that_state_none_or_several_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="do not state what they were trained on: name the data to measure on"):
        bench([write_linear(tmp_path / "a.onnx")])
    several = [_trained_on(tmp_path / "b.onnx", "digits:train"), _trained_on(tmp_path / "c.onnx", "digits@1:train")]
    with pytest.raises(UsageError, match="were trained on 'digits', 'digits@1': name the data"):
        bench(several)
    with pytest.raises(DataError, match="gone"):
        bench([_trained_on(tmp_path / "d.onnx", "gone:train")])


def _pets(folder: Path) -> str:
    digits = open_dataset("digits:test")
    for index, name in enumerate(["cat", "dog"] * 4):
        (folder / name).mkdir(parents=True, exist_ok=True)
        digits.image(index).save(folder / name / f"{index}.png")
    return str(folder)


def test_labels_that_do_not_fit_the_model_are_an_error(tmp_path: Path) -> None:
    model = write_linear(tmp_path / "m.onnx")
    with pytest.raises(DataError, match=r"^2 of the 2 classes .*'cat', 'dog'"):
        bench([model.path], _pets(tmp_path / "pets"), options=QUICK)


@pytest.mark.parametrize(("strange", "named"), [("a", "a.onnx"), ("b", "b.onnx"), ("ab", "a.onnx")])
def test_of_several_models_the_one_that_the_data_does_not_fit_is_named(
    tmp_path: Path, strange: str, named: str
) -> None:
    data, models = _pets(tmp_path / "pets"), []
    for name in ("fits", "a", "b"):
        known = ("cat", "dog") if name not in strange else (f"{name}0", f"{name}1")
        spec = SPEC.model_copy(update={"classes": (*known, *SPEC.classes[2:])})
        models.append(write_onnx(tmp_path / f"{name}.onnx", linear_graph(), linear_manifest(model=spec)))
    with pytest.raises(DataError, match=f"^{named}: 2 of the 2 classes of .* are not classes of the model") as several:
        bench(models, data, options=QUICK)
    with pytest.raises(DataError) as alone:
        bench([tmp_path / named], data, options=QUICK)
    assert str(several.value) == f"{named}: {alone.value}"


def test_a_model_with_more_classes_than_the_baseline_is_judged_and_not_compared(tmp_path: Path) -> None:
    model = write_linear(tmp_path / "m.onnx")
    spec = SPEC.model_copy(update={"classes": (*SPEC.classes, "ten", "eleven")})
    wide = linear_graph(np.pad(WEIGHT, ((0, 0), (0, 2))), np.concatenate([BIAS, [-99, -99]]))
    write_onnx(tmp_path / "wide.onnx", wide, linear_manifest(model=spec))
    report = bench([model.path, tmp_path / "wide.onnx"], "digits", options=QUICK)
    row = row_of(report, "wide.onnx")
    assert row.top1 == row_of(report, "m.onnx").top1
    assert (row.delta_top1_pp, row.agreement) == (None, None)
    assert row.notes == ("it has 12 classes and the baseline 10: not compared",)
