"""What was trained, chosen and calibrated on is known to every artifact, and a bench on it says so."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from notes import Notes
from PIL import Image
from present import present

from vitdeploy.artifacts import Checkpoint, OnnxModel
from vitdeploy.benching.options import BenchOptions
from vitdeploy.datasets import open_dataset
from vitdeploy.errors import CalibrationWarning, SeenDataWarning
from vitdeploy.stages.bench import bench
from vitdeploy.stages.export import export
from vitdeploy.stages.quantize import quantize
from vitdeploy.stages.train import train
from vitdeploy.training.options import Hardware, TrainOptions

pytestmark = pytest.mark.slow

QUICK = TrainOptions(epochs=1, hardware=Hardware(accelerator="cpu", workers=0))
TINY = {"width": 16, "depth": 1, "heads": 2, "patch": 4, "image_size": [16, 16]}
FAST = BenchOptions(rounds=1, warmup=1, iterations=2, processes=False)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("data") / "photos"
    for number, name in enumerate(("blue", "green", "red")):
        (root / name).mkdir(parents=True)
        for index in range(40):
            pixels = generator.integers(0, 60, (20, 24, 3), np.uint8)
            pixels[..., 2 - number] += 150
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def checkpoint(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return train(str(photos), tmp_path_factory.mktemp("out") / "vit.safetensors", arguments=TINY, options=QUICK)


@pytest.fixture(scope="module")
def model(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    return export(checkpoint, tmp_path_factory.mktemp("out") / "vit.onnx")


def test_a_folder_is_benched_on_its_test_part_alone(checkpoint: Checkpoint, model: OnnxModel, photos: Path) -> None:
    notes = Notes()
    report = bench([checkpoint, model], str(photos), options=FAST, progress=notes)
    assert (report.conditions.data, report.conditions.n_samples) == (f"{photos}:test", 30)
    assert f"data: 30 images of '{photos}:test'" in notes.lines
    assert not any("trained on" in sentence for sentence in report.verdict)
    trained = {name for one in checkpoint.manifest.trained_on for name in one.train.ids}
    assert len(trained) == 72
    assert not trained & {identity[:16] for identity in open_dataset(f"{photos}:test").sample_ids}


@pytest.mark.parametrize(
    ("split", "said"),
    [
        ("train", "72 of the 72 images of '{photos}:train' were trained on"),
        ("validation", "18 of the 18 images of '{photos}:validation' chose the best epoch of the training"),
        ("all", "72 of the 120 images of '{photos}:all' were trained on"),
    ],
)
def test_a_bench_on_what_was_trained_on_says_so(model: OnnxModel, photos: Path, split: str, said: str) -> None:
    expected = said.format(photos=photos)
    with pytest.warns(SeenDataWarning, match=re.escape(expected)):
        report = bench([model], f"{photos}:{split}", options=FAST)
    assert report.verdict[0].startswith(f"{expected}, so this top-1 says little about new images")
    assert any(note.startswith(expected) for note in report.rows[-1].notes)


def test_copies_under_other_names_are_found(model: OnnxModel, photos: Path, tmp_path: Path) -> None:
    seen = open_dataset(f"{photos}:train")
    for index in range(0, len(seen), 4):
        target = tmp_path / "others" / seen.classes[seen.labels[index]] / f"copy-{index}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(present(seen.file(index)), target)
    with pytest.warns(SeenDataWarning, match="18 of the 18 images"):
        report = bench([model], f"{tmp_path / 'others'}:all", options=FAST)
    assert "18 of the 18 images" in report.verdict[0]


def test_calibration_takes_the_training_part_and_is_known_to_the_graph(
    model: OnnxModel, photos: Path, tmp_path: Path
) -> None:
    notes = Notes()
    int8 = quantize(
        model, tmp_path / "int8.onnx", precision="int8", target="onnxruntime", calibration=str(photos), progress=notes
    )
    parts = "45 give ranges, 11 choose the method, 16 judge the graph"
    assert f"calibration images: 72 of '{photos}:train': {parts}" in notes.lines
    assert int8.manifest.calibration.data == f"{photos}:train"
    assert int8.manifest.trained_on == model.manifest.trained_on != ()
    assert int8.manifest.calibration.images.images == int8.manifest.calibration.samples
    assert bench([int8], str(photos), options=FAST).verdict[0].find("calibrated") == -1
    with pytest.warns(SeenDataWarning, match="were calibrated on"):
        said = bench([int8], f"{photos}:train", options=FAST).verdict[:2]
    assert f"{int8.manifest.calibration.samples} of the 72 images of '{photos}:train' were calibrated on" in said[1]


def test_few_calibration_images_are_said_to_be_few(model: OnnxModel, photos: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    from vitdeploy.quantization.request import DEFAULTS

    options = replace(DEFAULTS, samples=20, method="minmax", equalization="off")
    with pytest.warns(CalibrationWarning, match="has 20 images, fewer than 32"):
        quantize(
            model, tmp_path / "x.onnx", precision="int8", target="onnxruntime", calibration=str(photos), options=options
        )


def test_more_samples_than_there_are_is_all_of_them(photos: Path) -> None:
    assert len(open_dataset(f"{photos}:train", samples=512)) == 72


def test_splits_that_share_images_are_said(photos: Path, tmp_path: Path) -> None:
    root = tmp_path / "split"
    for name, start, stop in (("train", 0, 30), ("val", 30, 35), ("test", 28, 40)):
        for color in ("blue", "green", "red"):
            (root / name / color).mkdir(parents=True)
            for index in range(start, stop):
                shutil.copyfile(photos / color / f"{index}.png", root / name / color / f"{name}-{index}.png")
    with pytest.warns(
        SeenDataWarning, match=re.escape(f"6 of the 36 images of '{root}:test' are in '{root}:train' too")
    ):
        checkpoint = train(str(root), tmp_path / "vit.safetensors", arguments=TINY, options=QUICK)
    with pytest.warns(SeenDataWarning, match="6 of the 36 images"):
        report = bench([export(checkpoint, tmp_path / "vit.onnx")], str(root), options=FAST)
    assert report.verdict[0].startswith(f"6 of the 36 images of '{root}:test' were trained on")


def test_splits_are_compared_where_the_training_is_not_known(photos: Path, tmp_path: Path, model: OnnxModel) -> None:
    from vitdeploy.artifacts import write_onnx

    root = tmp_path / "split"
    for name, start, stop in (("train", 0, 30), ("test", 28, 40)):
        for color in ("blue", "green", "red"):
            (root / name / color).mkdir(parents=True)
            for index in range(start, stop):
                shutil.copyfile(photos / color / f"{index}.png", root / name / color / f"{index}.png")
    unknown = write_onnx(
        tmp_path / "m.onnx", model.load(), model.manifest.model_copy(update={"trained_on": ()}), model.golden
    )
    with pytest.warns(SeenDataWarning, match="so a model that was trained there has seen them"):
        verdict = bench([unknown], str(root), options=FAST).verdict
    shared = sum(int(sentence.split()[0]) for sentence in verdict if "so a model that was trained there" in sentence)
    assert shared == 6  # some in what is trained on, some in the validation images that are taken from it
