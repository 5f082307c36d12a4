"""A folder that is a split of a layout, or called as one is, is that split wholly."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from vitdeploy.datasets import evaluation_split, open_dataset
from vitdeploy.datasets.opening import calibration_split
from vitdeploy.datasets.uri import parse_uri
from vitdeploy.errors import CalibrationError, DataError


def _images(folder: Path, count: int = 4, classes: tuple[str, ...] = ("cat", "dog")) -> None:
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (4, 4), (number * 90, index * 20, len(folder.name))).save(folder / name / f"{index}.png")


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    for name, count in (("train", 6), ("val", 3), ("test", 5)):
        _images(tmp_path / "ds" / name, count)
    return tmp_path / "ds"


@pytest.mark.parametrize(("folder", "split"), [("train", "train"), ("val", "validation"), ("test", "test")])
def test_the_folder_of_a_split_is_that_split_of_the_folder_above(layout: Path, folder: str, split: str) -> None:
    by_path, by_name = open_dataset(layout / folder), open_dataset(f"{layout}:{split}")
    assert by_path.uri == by_name.uri == f"{layout}:{split}"
    assert by_path.digest == by_name.digest
    assert evaluation_split(layout / folder) == split
    assert len(by_path) == len(list((layout / folder).rglob("*.png")))


def test_of_a_layout_without_validation_the_train_folder_is_the_train_split(tmp_path: Path) -> None:
    _images(tmp_path / "ds" / "train", 10)
    _images(tmp_path / "ds" / "test")
    assert open_dataset(tmp_path / "ds" / "train").sample_ids == open_dataset(f"{tmp_path / 'ds'}:train").sample_ids


@pytest.mark.parametrize(
    ("folders", "path", "uri"),
    [
        (("cats_train", "cats_test"), "cats_test", ":test"),
        (("training", "holdout"), "holdout", ":test"),
        (("train/images", "test/images"), "test/images", ":test"),
        (("train/images", "dev/images"), "dev", ":validation"),
    ],
)
def test_every_name_of_a_split_counts(tmp_path: Path, folders: tuple[str, ...], path: str, uri: str) -> None:
    for name in folders:
        _images(tmp_path / "ds" / name)
    assert parse_uri(str(tmp_path / "ds" / path)).text == f"{tmp_path / 'ds'}{uri}"


def test_calibrating_on_the_test_folder_is_refused_as_on_the_test_split(layout: Path) -> None:
    for data in (f"{layout}:test", f"{layout}/test", str(layout / "test") + ":all", open_dataset(layout / "test")):
        with pytest.raises(CalibrationError, match="test split, which calibration must not see"):
            calibration_split(data)
    assert calibration_split(layout / "train") == "train"
    assert calibration_split(layout / "val") == "validation"


@pytest.mark.parametrize(("name", "split"), [("test", "test"), ("val", "validation"), ("testing", "test")])
def test_a_folder_called_as_a_split_is_measured_wholly_by_itself(tmp_path: Path, name: str, split: str) -> None:
    _images(tmp_path / name)
    assert evaluation_split(tmp_path / name) == split
    assert len(open_dataset(tmp_path / name, split=evaluation_split(tmp_path / name))) == 8
    with pytest.raises(DataError, match=rf"is a {split} split by its name, so it has no train split"):
        open_dataset(tmp_path / name, split="train")


def test_a_lone_test_folder_calibrates_only_where_all_of_it_is_asked_for(tmp_path: Path) -> None:
    _images(tmp_path / "test")
    with pytest.raises(CalibrationError, match=r"or '.*/test:all' where it is none"):
        calibration_split(tmp_path / "test")
    assert calibration_split(f"{tmp_path}/test:all") is None
    assert len(open_dataset(f"{tmp_path}/test:all")) == 8


@pytest.mark.parametrize("name", ["train", "photos", "crash_test"])
def test_other_folders_are_divided_as_before(tmp_path: Path, name: str) -> None:
    _images(tmp_path / name, 8)
    assert evaluation_split(tmp_path / name) == "test"
    assert calibration_split(tmp_path / name) == "train"
    assert 0 < len(open_dataset(tmp_path / name, split="test")) < 8


def test_a_flat_folder_called_test_is_unlabelled_images(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "test" / "1.png")
    assert evaluation_split(tmp_path / "test") is None
    assert calibration_split(tmp_path / "test") is None


@pytest.mark.parametrize(("text", "other"), [("test:train", "'{0}:train'"), ("train:val", "'{0}:validation'")])
def test_another_split_of_the_folder_of_a_split_names_where_it_is(layout: Path, text: str, other: str) -> None:
    with pytest.raises(DataError) as raised:
        open_dataset(f"{layout}/{text}")
    assert f"name {other.format(layout)} instead" in str(raised.value)


def test_the_folder_that_one_is_in_counts(layout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(layout / "test")
    assert parse_uri(".").split == "test"
    monkeypatch.chdir(layout)
    assert parse_uri("test").text == ".:test"
    assert len(open_dataset("test")) == 10


@pytest.mark.parametrize("where", ["digits", "folder"])
@pytest.mark.parametrize("name", ["trian", "tests", "0"])
def test_an_unknown_split_of_data_that_exists_is_said_to_be_one(layout: Path, where: str, name: str) -> None:
    data = "digits" if where == "digits" else str(layout)
    with pytest.raises(DataError) as raised:
        open_dataset(f"{data}:{name}")
    assert str(raised.value).startswith(f"there is no split {name!r} of {data!r}, expected one of train, validation,")
