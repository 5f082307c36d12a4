"""The same weights under another preprocessing are another model: for keys, stored logits, baselines and runs."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from digits_linear import QUICK, row_of
from tiny_checkpoint import write_tiny_checkpoint

from vitdeploy.artifacts import OnnxModel, open_artifact, read_onnx
from vitdeploy.artifacts.reference import load_reference
from vitdeploy.errors import FidelityWarning
from vitdeploy.pipeline.recipe import read_recipe
from vitdeploy.pipeline.running import run
from vitdeploy.preprocess import DIGITS_PREPROCESS
from vitdeploy.quantization.request import QuantizeOptions
from vitdeploy.records import Preprocess
from vitdeploy.stages.bench import bench
from vitdeploy.stages.export import ExportOptions, export
from vitdeploy.stages.quantize import QuantizeRequest

pytestmark = [pytest.mark.torch, pytest.mark.slow]

BY_ORDER = dataclasses.replace(QUICK, labels_by_order=True)
OTHER = DIGITS_PREPROCESS.model_copy(update={"mean": (0.9,), "std": (0.1,)})


def make_exports(folder: Path) -> None:
    folder.mkdir()
    checkpoint = write_tiny_checkpoint(folder / "tiny.safetensors")
    (folder / "names.txt").write_text("\n".join("abcdefghij"))
    options = {
        "z": ExportOptions(reference="digits:test"),
        "a": ExportOptions(reference="digits:test", preprocess=OTHER),
        "n": ExportOptions(labels=folder / "names.txt"),
    }
    for name, one in options.items():
        export(checkpoint, folder / f"{name}.onnx", options=one)


@pytest.fixture
def exports(once: Callable[[str, Callable[[Path], object]], Path], tmp_path: Path) -> dict[str, OnnxModel]:
    """One checkpoint, exported as it is, with other pixels, and with other names; a copy for each test."""
    shutil.copytree(once("exports", make_exports), tmp_path, dirs_exist_ok=True)
    return {name: read_onnx(tmp_path / f"{name}.onnx") for name in ("z", "a", "n")}


def test_graphs_that_differ_in_what_they_hand_on_are_not_equal_and_make_other_things(
    tmp_path: Path, exports: dict[str, OnnxModel]
) -> None:
    assert len({one.manifest.payload_sha256 for one in exports.values()}) == 1
    assert len(set(exports.values())) == 3
    keys = {
        QuantizeRequest.open(
            one, tmp_path / "q.onnx", precision="int8", calibration="digits:train", options=QuantizeOptions(samples=16)
        ).key
        for one in exports.values()
    }
    assert len(keys) == 3


def test_stored_logits_are_those_of_ones_own_export(tmp_path: Path, exports: dict[str, OnnxModel]) -> None:
    for name in ("a", "z"):
        reference = load_reference(exports[name])
        assert reference is not None
        assert reference.path.name == f"{name}.reference.safetensors"
    assert load_reference(exports["n"]) is None
    (tmp_path / "tiny.safetensors").unlink()
    report = bench([exports["z"]], "digits:test", options=QUICK)
    assert "as export stored them" in report.baseline.accuracy_against
    row = row_of(report, "z.onnx")
    assert row.logits_sqnr_db is not None
    assert row.logits_sqnr_db > 80


@pytest.mark.parametrize("name", ["z", "a", "n"])
@pytest.mark.parametrize("named", [True, False])
def test_the_checkpoint_behind_an_export_is_its_baseline_as_it_was_exported(
    tmp_path: Path, exports: dict[str, OnnxModel], name: str, named: bool
) -> None:
    folder = tmp_path / "alone"
    folder.mkdir()
    for file in (exports[name].path, tmp_path / "tiny.safetensors"):
        shutil.copy(file, folder)
    baseline = folder / "tiny.safetensors" if named else None
    names = "abcdefghij" if name == "n" else "0123456789"
    options = QUICK if name != "n" else BY_ORDER
    report = bench([folder / f"{name}.onnx"], "digits:test", baseline=baseline, options=options)
    assert report.baseline.row == "tiny.safetensors"
    row = row_of(report, f"{name}.onnx")
    assert row.logits_sqnr_db is not None
    assert row.logits_sqnr_db > 80
    assert open_artifact(exports[name].path).manifest.model.classes == tuple(names)


def test_another_baseline_that_takes_other_pixels_is_said_to(tmp_path: Path, exports: dict[str, OnnxModel]) -> None:
    other = write_tiny_checkpoint(tmp_path / "other.safetensors", seed=3)
    expected = r"a\.onnx prepares images otherwise than other\.safetensors \(mean \[0\.9\] against \[0\.306\]"
    with pytest.warns(FidelityWarning, match=expected):
        report = bench([exports["a"]], "digits:test", baseline=other, options=QUICK)
    assert any("may be the preprocessing's alone" in sentence for sentence in report.verdict)


def test_a_run_makes_everything_again_where_a_file_of_the_recipe_changed(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path / "tiny.safetensors")
    file = tmp_path / "p.json"
    file.write_text(DIGITS_PREPROCESS.model_dump_json())
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        json.dumps(
            {
                "data": "digits",
                "source": str(tmp_path / "tiny.safetensors"),
                "preprocess": str(file),
                "quantize": [{"precision": "int8", "target": "onnxruntime", "samples": 32}],
                "build": {"precisions": []},
                "bench": {"options": {"rounds": 1, "processes": False}},
            }
        )
    )
    run(read_recipe(recipe), tmp_path / "run")
    assert {one.status for one in run(read_recipe(recipe), tmp_path / "run").stages} == {"fresh"}
    file.write_text(OTHER.model_dump_json())
    result = run(read_recipe(recipe), tmp_path / "run")
    assert {one.status for one in result.stages} == {"done"}
    for path in (tmp_path / "run").glob("model*.onnx"):
        spec = open_artifact(path).manifest.preprocess
        assert isinstance(spec, Preprocess)
        assert spec.mean == (0.9,)
