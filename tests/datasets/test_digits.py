from __future__ import annotations

import io
from importlib import resources
from typing import Any

import numpy as np
import pytest
from PIL import Image
from present import present

from vitdeploy.datasets import batches, load_pixels, open_dataset, splits_of
from vitdeploy.datasets.digits import ink_of_pixels, pixels_of_ink, read_digits
from vitdeploy.errors import DataError
from vitdeploy.preprocess import DIGITS_PREPROCESS


def test_the_shipped_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    theirs = load_digits()
    ink, labels = read_digits()
    assert np.array_equal(ink, theirs.images)
    assert np.array_equal(labels, theirs.target)


def test_source_and_licence_travel_with_the_file() -> None:
    text = resources.files("vitdeploy.datasets").joinpath("digits.txt").read_text("utf8")
    assert "CC BY 4.0" in text
    assert "Alpaydin" in text
    assert open_dataset("digits").licence == "CC-BY-4.0"


def test_the_splits_are_disjoint_stratified_and_complete() -> None:
    parts = {split: open_dataset("digits", split=split) for split in ("train", "validation", "test")}
    assert {split: len(part) for split, part in parts.items()} == {"train": 1097, "validation": 250, "test": 450}
    ids = [identity for part in parts.values() for identity in part.sample_ids]
    assert len(set(ids)) == 1797
    whole = np.bincount(present(open_dataset("digits").labels)) / 1797
    for part in parts.values():
        assert np.abs(np.bincount(present(part.labels)) / len(part) - whole).max() < 0.005


def test_the_split_never_changes() -> None:
    # Pinned: a changed test set would make published figures incomparable.
    assert open_dataset("digits:test").digest == TEST_DIGEST
    assert open_dataset("digits:test", samples=None, seed=5).digest == TEST_DIGEST


def test_another_partition_has_other_test_images_and_its_own_normalisation() -> None:
    first, second = open_dataset("digits:test"), open_dataset("digits@1:test")
    assert len(second) == 450
    assert set(first.sample_ids) != set(second.sample_ids)
    assert second.preprocess.mean != first.preprocess.mean
    assert open_dataset("digits@0:test").digest == first.digest


def test_ink_survives_eight_bit_png_files() -> None:
    ink = np.arange(17, dtype=np.uint8)
    pixels = pixels_of_ink(ink)
    assert (pixels[0], pixels[-1]) == (0, 255)
    buffer = io.BytesIO()
    Image.fromarray(pixels[None]).save(buffer, "PNG")
    read = np.asarray(Image.open(buffer))[0]
    assert np.array_equal(ink_of_pixels(read), ink)


def test_mean_and_std_are_those_of_the_training_split() -> None:
    train = open_dataset("digits:train")
    pixels = load_pixels(train, DIGITS_PREPROCESS) / 255
    assert train.preprocess == DIGITS_PREPROCESS
    assert DIGITS_PREPROCESS.mean == pytest.approx([pixels.mean()], abs=1e-6)
    assert DIGITS_PREPROCESS.std == pytest.approx([pixels.std()], abs=1e-6)
    inputs = np.concatenate(list(batches(train, DIGITS_PREPROCESS, 256)))
    assert inputs.shape == (1097, 1, 8, 8)
    assert abs(inputs.mean()) < 1e-4
    assert abs(inputs.std() - 1) < 1e-4


def test_samples_are_stratified_and_follow_the_seed() -> None:
    one = open_dataset("digits:train", samples=100, seed=1)
    assert np.bincount(present(one.labels)).tolist() == [10] * 10
    assert open_dataset("digits:train", samples=100, seed=1).digest == one.digest
    other = open_dataset("digits:train", samples=100, seed=2)
    assert set(one.sample_ids) != set(other.sample_ids)
    assert set(one.sample_ids) <= set(open_dataset("digits:train").sample_ids)


def test_labels_stay_with_their_images() -> None:
    ink, labels = read_digits()
    known = {pixels_of_ink(image).tobytes(): int(label) for image, label in zip(ink, labels, strict=True)}
    part = open_dataset("digits@2:validation", samples=60, seed=3)
    assert [known[part.image(index).tobytes()] for index in range(60)] == part.labels.tolist()


def test_digits_name_their_splits() -> None:
    assert splits_of("digits") == ("train", "validation", "test")


@pytest.mark.parametrize(
    ("uri", "options", "message"),
    [
        ("", {}, "the name of the dataset is empty"),
        ("digts", {}, "there is no dataset 'digts'"),
        ("digits:test", {"split": "train"}, "'train' was asked for, but 'digits:test' names another"),
        ("digits", {"split": "dev"}, "there is no split 'dev', expected one of train, validation, test"),
        ("digits", {"samples": 0}, "0 samples were asked for, expected at least 1"),
    ],
)
def test_what_cannot_be_opened_is_refused(uri: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        open_dataset(uri, **options)
    assert "\n" not in str(caught.value)


def test_a_batch_of_none_is_refused() -> None:
    with pytest.raises(DataError, match="a batch of 0 images was asked for, expected at least 1"):
        next(batches(open_dataset("digits"), DIGITS_PREPROCESS, 0))


TEST_DIGEST = "0277f1ff3819ca3e84c9e8ac428e9dc6e9091d510a86ce787d99920853622859"
