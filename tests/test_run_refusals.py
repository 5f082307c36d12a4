"""A run refuses what it could only fail on later before it trains, and leaves no folder behind."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from vitdeploy.errors import ArtifactError, DataError, RecipeError, UsageError
from vitdeploy.pipeline import run
from vitdeploy.pipeline.recipe import read_recipe


@pytest.mark.parametrize("value", [[8.9, 12.0], ["8.9", "12.0"]])
def test_compute_capabilities_may_be_numbers_as_yaml_reads_them(value: list[Any]) -> None:
    recipe = read_recipe(changes={"build.compute_capabilities": value})
    assert recipe.build.compute_capabilities == ("8.9", "12.0")


@pytest.mark.parametrize("value", ["abc", 8, "sm_89", "8.9.1"])
def test_what_is_no_compute_capability_is_refused_with_the_recipe(value: Any) -> None:
    with pytest.raises(RecipeError, match=r"compute_capabilities.0 is .*: expected a compute capability such as 8\.9"):
        read_recipe(changes={"build.compute_capabilities": [value]})


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"quantize": [{"precision": "int8", "calibration": "nowhere"}]}, DataError, "there is no dataset 'nowhere'"),
        (
            {"quantize": [{"precision": "int8", "options": {"plan": "nowhere.json"}}]},
            ArtifactError,
            "there is no file 'nowhere.json'",
        ),
        ({"bench.data": "nowhere"}, DataError, "there is no dataset 'nowhere'"),
        ({"source": "foreign.onnx"}, RecipeError, "a run starts from weights: vd.export\\('foreign.onnx'"),
        ({"data": "nowhere"}, DataError, "there is no dataset 'nowhere'"),
    ],
)
def test_what_a_later_stage_lacks_is_said_before_training(
    changes: dict[str, Any], error: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        run(read_recipe(changes=changes), "folder")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("folder", ["photos", "photos/cats/run", "linked/run", "photos/../photos"])
@pytest.mark.parametrize("key", ["data", "bench.data"])
def test_a_run_into_its_data_is_refused(key: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "cats").mkdir(parents=True)
    (tmp_path / "linked").symlink_to("photos", target_is_directory=True)
    with pytest.raises(UsageError, match=r"lies inside the data '\./photos': choose a folder beside it"):
        run(read_recipe(changes={key: "./photos"}), folder)
    assert list((tmp_path / "photos" / "cats").iterdir()) == []


@pytest.mark.parametrize("key", ["weights", "arguments", "preprocess", "labels"])
def test_keys_of_a_source_without_one_name_those_of_the_training(key: str) -> None:
    value: Any = {"depth": 2} if key == "arguments" else "file"
    with pytest.raises(RecipeError, match=rf"a training has its own, 'train\.{key}'"):
        read_recipe(changes={key: value})
    read_recipe(changes={f"train.{key}": value})


@pytest.mark.parametrize(
    ("key", "way"),
    [
        ("build", "'build: {precisions: []}' builds no engine"),
        ("quantize", "'quantize: []' quantizes nothing"),
        ("train", "'source: MODEL' takes a model that exists in place of a training"),
        ("bench", "there is no run without it"),
        ("export", "there is no run without it"),
    ],
)
def test_an_empty_section_is_refused_with_the_way_to_leave_a_stage_out(key: str, way: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(f"'{key}' is empty: leave the key out for the default; {way}")):
        read_recipe(None, {key: None})


def test_the_ways_to_leave_a_stage_out_are_taken() -> None:
    recipe = read_recipe(None, {"build": {"precisions": []}, "quantize": []})
    assert (recipe.build.precisions, recipe.quantize) == ((), ())
    assert read_recipe(None, {"bench": {"options": {"rounds": 3, "processes": False}}}).bench.options.rounds == 3
