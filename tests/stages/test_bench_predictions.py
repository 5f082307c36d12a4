"""What each row says of each image: the Parquet file, and the images on which a row and the baseline differ."""

from __future__ import annotations

import base64
import errno
import hashlib
import io
import os
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset
import pyarrow.parquet
import pytest
from PIL import Image
from sample_reports import build, rows
from small_vit import write_small_vit

from vitdeploy.artifacts import files
from vitdeploy.benching.predictions import thumbnail
from vitdeploy.cli import main
from vitdeploy.errors import ArtifactError
from vitdeploy.records import Report
from vitdeploy.records.differences import Differences, DifferingImage, ShownPrediction
from vitdeploy.report import read_report, write_report
from vitdeploy.report.html import render_html
from vitdeploy.report.markdown import render_markdown
from vitdeploy.stages.bench import BenchOptions, bench

QUICK = BenchOptions(
    rounds=1, iterations=1, warmup=1, fill_s=0.0, threads=1, processes=False, image_to_label=False, energy_s=0.0
)
Lines = list[dict[str, Any]]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Lines]:
    folder = tmp_path_factory.mktemp("predictions")
    model = write_small_vit(folder / "model.onnx", "fp32")
    int8 = write_small_vit(folder / "int8.onnx", "int8")
    report = bench([model, int8], "digits", options=QUICK, predictions=folder / "all.parquet")
    lines: Lines = pyarrow.parquet.read_table(folder / "all.parquet").to_pylist()
    return report, lines


def test_every_row_says_one_thing_of_every_image(measured: tuple[Report, Lines]) -> None:
    report, lines = measured
    assert Counter(line["row"] for line in lines) == {"model.onnx": 450, "int8.onnx": 450}
    for row in report.rows:
        mine = [line for line in lines if line["row"] == row.name]
        assert len({line["sample_id"] for line in mine}) == 450
        assert np.mean([line["correct"] for line in mine]) == pytest.approx(row.top1)
        for line in mine:
            assert line["payload_sha256"] == row.payload_sha256
            assert line["top1"] == line["top5"][0]
            assert line["top1_probability"] == pytest.approx(max(line["top5_probabilities"]))
            assert line["top5_probabilities"] == sorted(line["top5_probabilities"], reverse=True)
            assert line["correct"] == (line["top1"] == line["label"])


def test_the_differences_of_the_report_are_those_of_the_file(measured: tuple[Report, Lines]) -> None:
    report, lines = measured
    said = {(line["row"], line["image"]): line for line in lines}
    images = sorted({line["image"] for line in lines})
    differing = [one for one in images if said["model.onnx", one]["top1"] != said["int8.onnx", one]["top1"]]
    found = report.differences
    assert found is not None
    assert found.images == len(differing) > 0
    assert len(found.shown) == min(24, len(differing))
    lost = []
    for image in found.shown:
        before, after = said["model.onnx", image.name], said["int8.onnx", image.name]
        (other,) = image.others
        assert (image.label, image.sample_id) == (before["label_name"], before["sample_id"])
        assert (image.baseline.row, image.baseline.predicted) == ("model.onnx", before["top1_name"])
        assert (other.row, other.predicted, other.right) == ("int8.onnx", after["top1_name"], after["correct"])
        assert other.probability == pytest.approx(after["top1_probability"])
        lost.append(before["correct"])
    assert lost == sorted(lost, reverse=True)


def test_files_of_several_runs_are_one_table(measured: tuple[Report, Lines], tmp_path: Path) -> None:
    model = write_small_vit(tmp_path / "model.onnx", "fp32")
    for number, data in enumerate(("digits:train", "digits:validation", "digits:test")):
        options = replace(QUICK, samples=30)
        bench([model], data, options=options, predictions=tmp_path / "shards" / f"{number}.parquet")
    table = pyarrow.dataset.dataset(tmp_path / "shards").to_table()
    assert table.num_rows == 90
    assert len(set(table["sample_id"].to_pylist())) == 90


def test_a_report_without_pictures_has_none(tmp_path: Path) -> None:
    model, int8 = (write_small_vit(tmp_path / f"{kind}.onnx", kind) for kind in ("fp32", "int8"))
    found = bench([model, int8], "digits", options=replace(QUICK, thumbnails=False)).differences
    assert found is not None
    assert found.shown
    assert all(image.thumbnail is None for image in found.shown)


def test_what_cannot_be_written_is_said_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_small_vit(tmp_path / "model.onnx", "fp32")
    with pytest.raises(ArtifactError, match="is a folder"):
        bench([model], "digits", options=QUICK, predictions=tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ModuleNotFoundError, match="pyarrow"):
        bench([model], "digits", options=QUICK, predictions=tmp_path / "p.parquet")
    assert not (tmp_path / "p.parquet").exists()


HOSTILE = '"><script>alert(1)</script>\x1b[31m|.png'


def _hostile() -> Report:
    baseline = ShownPrediction(row="digits.safetensors", predicted="<b>3</b>", probability=0.5, right=True)
    other = ShownPrediction(row="digits.onnx", predicted="8 & 9", probability=0.75, right=False)
    picture = thumbnail(Image.new("L", (8, 8), 200))
    image = DifferingImage(
        name=HOSTILE, sample_id="ab" * 32, label="3", baseline=baseline, others=(other,), thumbnail=picture
    )
    return build(rows(), differences=Differences(images=40, shown=(image,)))


def test_names_of_files_and_classes_are_text_on_the_page_and_in_markdown(tmp_path: Path) -> None:
    page = render_html(_hostile())
    assert "<script>alert" not in page
    assert "&lt;b&gt;3&lt;/b&gt;, 50 %" in page
    assert "8 &amp; 9, 75 %" in page
    assert "40 of 450 images" in page
    assert "\x1b" not in page
    assert "\x1b" not in render_markdown(_hostile())
    write_report(_hostile(), tmp_path)
    assert read_report(tmp_path).differences == _hostile().differences


@pytest.mark.parametrize(
    "text", ["javascript:alert(1)", "data:text/html;base64,AAAA", 'data:image/png;base64,A" onload="x']
)
def test_a_thumbnail_is_a_picture_and_nothing_else(text: str) -> None:
    guess = ShownPrediction(row="a", predicted="b", probability=None, right=None)
    with pytest.raises(ValueError, match="pattern"):
        DifferingImage(name="a", sample_id="b", label=None, baseline=guess, others=(), thumbnail=text)


@pytest.mark.parametrize(
    ("mode", "size", "kind", "shown"),
    [("L", (8, 8), "png", (8, 8)), ("RGB", (400, 200), "jpeg", (96, 48)), ("RGB", (30, 400), "jpeg", (7, 96))],
)
def test_thumbnails_are_small_and_tiny_images_are_kept_exactly(
    mode: str, size: tuple[int, int], kind: str, shown: tuple[int, int]
) -> None:
    text = thumbnail(Image.new(mode, size, 90 if mode == "L" else (10, 200, 30)))
    head, _, body = text.partition(",")
    assert head == f"data:image/{kind};base64"
    with Image.open(io.BytesIO(base64.b64decode(body))) as image:
        assert image.size == shown
        if kind == "png":
            assert image.getpixel((0, 0)) == 90


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ".json"])
def test_a_full_disk_leaves_all_files_of_the_earlier_bench(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_small_vit(tmp_path / "model.onnx", "fp32")
    monkeypatch.chdir(tmp_path)
    command = (
        "bench model.onnx --data digits --rounds 1 --iterations 1 --no-processes --no-energy --threads 1 "
        "--report r --predictions images.parquet --samples"
    )
    assert main([*command.split(), "10"]) == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    report = read_report("r")
    assert report.files == {
        name: hashlib.sha256(before[tmp_path / place]).hexdigest()
        for name, place in (("report.samples.npz", "r/report.samples.npz"), ("images.parquet", "images.parquet"))
    }

    def full(path: Path) -> None:
        if path.suffix == suffix:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "_sync", full)
    capsys.readouterr()
    assert main([*command.split(), "20"]) == 1
    assert "the disk is full" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
