"""Models that do not choose one class of several are measured as what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreign_onnx import write_foreign
from PIL import Image

from vitdeploy.benching.options import BenchOptions
from vitdeploy.errors import DataError
from vitdeploy.stages.bench import bench
from vitdeploy.stages.export import ExportOptions, export

pytestmark = pytest.mark.slow

QUICK = BenchOptions(rounds=1, warmup=1, iterations=1, processes=False)

# How bright an image is, in units of the digits' standard deviation.
BRIGHT = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 1, 8, 8] image) => (float[N, 1] score) <int64[2] flat = {-1, 64}> {
    f = Reshape(image, flat) score = ReduceMean <axes = [1]> (f)
}"""
SIGMOID = BRIGHT.replace("score = ReduceMean", "m = ReduceMean").replace("(f)", "(f) score = Sigmoid(m)")
THREE = BRIGHT.replace("float[N, 1] score", "float[N, 3] score").replace("score = Red", "m = Red")
THREE = THREE.replace("(f)", "(f) score = Concat <axis = 1> (m, m, m)")


@pytest.fixture
def photos(tmp_path: Path):
    """Ten dark and ten bright images; of the dark ones two are bright in fact."""
    for folder, shades in (("bright", [230] * 10), ("dark", [10] * 8 + [230] * 2)):
        (tmp_path / "photos" / folder).mkdir(parents=True)
        for index, shade in enumerate(shades):
            noise = np.random.default_rng(index).integers(0, 20, (8, 8), np.uint8)
            Image.fromarray(noise + np.uint8(shade)).save(tmp_path / "photos" / folder / f"{index}.png")
    return tmp_path / "photos"


def adopted(tmp_path: Path, text, **options: Any):
    source = write_foreign(tmp_path / "foreign.onnx", text)
    return export(source, tmp_path / "x.onnx", options=ExportOptions(preprocess="digits", **options))


@pytest.mark.parametrize("text", [BRIGHT, SIGMOID])
@pytest.mark.parametrize(("names", "top1"), [("dark\nbright\n", 0.9), ("bright\ndark\n", 0.1), ("bright\n", None)])
def test_one_output_has_a_top1_of_two_classes(
    tmp_path: Path, photos, text: str, names: str, top1: float | None
) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text(names)
    model = adopted(tmp_path, text, labels=labels)
    if top1 is None:
        with pytest.raises(DataError, match=r"'dark'; the model has 2: 'not bright', 'bright'"):
            bench([model], f"{photos}:all", options=QUICK)
        return
    (row,) = bench([model], f"{photos}:all", options=QUICK).rows
    assert row.top1 == pytest.approx(top1)


def test_a_label_map_serves_a_model_that_does_not_name_its_two_classes(tmp_path: Path, photos) -> None:
    (tmp_path / "map.csv").write_text("dark,0\nbright,1\n")
    options = BenchOptions(rounds=1, iterations=1, processes=False, label_map=tmp_path / "map.csv")
    (row,) = bench([adopted(tmp_path, BRIGHT)], f"{photos}:all", options=options).rows
    assert row.top1 == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("text", "task", "note"),
    [
        (THREE, "multi-label", "its classes do not exclude each other"),
        (THREE, "features", "it has no head"),
        (BRIGHT, "regression", "it gives numbers, no classes"),
    ],
)
def test_what_chooses_no_class_has_speed_and_fidelity_and_says_so(
    tmp_path: Path, photos, text: str, task: str, note: str
) -> None:
    model = adopted(tmp_path, text, task=task)
    report = bench([model], f"{photos}:all", options=QUICK)
    (row,) = report.rows
    assert (row.status, row.top1, row.agreement) == ("ok", None, None)
    assert row.timings[0].p50_ms > 0
    assert any(note in text for text in row.notes)
    assert not any("top-1" in line for line in report.verdict)


def test_probabilities_are_said_to_be_some(tmp_path: Path, photos) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("dark\nbright\n")
    (row,) = bench([adopted(tmp_path, SIGMOID, labels=labels)], f"{photos}:all", options=QUICK).rows
    assert any("its outputs are probabilities (sigmoid at the end)" in note for note in row.notes)
