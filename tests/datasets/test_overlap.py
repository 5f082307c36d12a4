"""Images in two datasets, and images that something has seen."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitdeploy.datasets import open_dataset, overlap_text, shared_images
from vitdeploy.records import SampleSet
from vitdeploy.records.samples import LARGEST_SKETCH


def ids(first: int, last: int) -> list[str]:
    return [hashlib.sha256(str(number).encode()).hexdigest() for number in range(first, last)]


def draw(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), shade, np.uint8)).save(path)


def test_a_copy_under_another_name_is_found(tmp_path: Path) -> None:
    for shade in range(6):
        draw(tmp_path / "train" / ("cat", "dog")[shade % 2] / f"{shade}.png", 10 * shade)
    for shade in range(4, 10):
        draw(tmp_path / "test" / ("cat", "dog")[shade % 2] / f"copy-{shade}.png", 10 * shade)
    draw(tmp_path / "val" / "cat" / "0.png", 250)
    train, test = (open_dataset(f"{tmp_path}:{split}") for split in ("train", "test"))
    assert [test.name(index) for index in shared_images(test, train)] == ["test/cat/copy-4.png", "test/dog/copy-5.png"]
    text = overlap_text(test, train)
    assert text.startswith(f"2 of the 6 images of '{tmp_path}:test' are in '{tmp_path}:train' too ('test/cat/copy-4")
    assert overlap_text(open_dataset("digits:test"), train) == ""


def test_digits_share_no_image_between_splits() -> None:
    splits = [open_dataset(f"digits:{split}") for split in ("train", "validation", "test")]
    assert shared_images(splits[1], splits[0]) == shared_images(splits[2], splits[0]) == []


def test_a_small_set_is_known_exactly() -> None:
    seen = SampleSet.of(ids(0, 100))
    assert (seen.images, len(seen.ids)) == (100, 100)
    assert seen.shared_with(ids(90, 120)) == 10
    assert seen.shared_with(ids(100, 200)) == 0
    assert SampleSet.of(ids(0, 5) * 2).images == 5


@pytest.mark.parametrize("shared", [0, 500, 5000])
def test_a_large_set_is_known_by_a_part(shared: int) -> None:
    seen = SampleSet.of(ids(0, 40_000))
    assert (seen.images, len(seen.ids)) == (40_000, LARGEST_SKETCH)
    others = ids(40_000 - shared, 50_000 - shared)
    estimate = seen.shared_with(others)
    assert abs(estimate - shared) <= 4 * (shared * (40_000 / LARGEST_SKETCH)) ** 0.5
    assert len(seen.model_dump_json()) < 200_000


def test_nothing_is_shared_with_an_empty_set() -> None:
    assert SampleSet.of([]).shared_with(ids(0, 5)) == 0
    assert SampleSet.of(ids(0, 5)).shared_with([]) == 0
