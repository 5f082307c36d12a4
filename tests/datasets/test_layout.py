"""Folders as people have them: what is a split, a class, a wrapper, and no image."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from vitdeploy.datasets import evaluation_split, labelled_splits_of, open_dataset, splits_of
from vitdeploy.datasets.layout import endings
from vitdeploy.datasets.opening import calibration_split
from vitdeploy.errors import DataError

_shade = itertools.count()


def draw(path: Path, kind: str = "PNG") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    number = next(_shade)
    pixels = np.full((8, 8, 3), 90, np.uint8)
    pixels[0, 0] = number >> 16 & 255, number >> 8 & 255, number & 255
    Image.fromarray(pixels).save(path, kind)
    return path


def fill(root: Path, *folders: str, count: int = 4) -> Path:
    for folder, index in itertools.product(folders, range(count)):
        draw(root / folder / f"{index}.png")
    return root


def classes_in(*folders: str) -> list[str]:
    return [f"{folder}/{name}" for folder in folders for name in ("cat", "dog")]


@pytest.mark.parametrize(
    ("train", "other", "split"),
    [
        ("train", "dev", "validation"),
        ("train", "eval", "test"),
        ("train", "evaluation", "test"),
        ("train", "holdout", "test"),
        ("train", "hold-out", "test"),
        ("train", "valid", "validation"),
        ("Training", "Validation", "validation"),
        ("training_set", "test_set", "test"),
        ("train_images", "test", "test"),
        ("cats_train", "cats_test", "test"),
        ("ILSVRC2012_img_train", "ILSVRC2012_img_val", "validation"),
        ("train2017", "val2017", "validation"),
        ("images/train", "images/val", "validation"),
        ("flowers/train", "flowers/valid", "validation"),
        ("train/images", "val/images", "validation"),
        ("seg_train/seg_train", "seg_test/seg_test", "test"),
        ("data/train/images", "data/dev/images", "validation"),
    ],
)
def test_names_of_splits(tmp_path: Path, train: str, other: str, split: str) -> None:
    root = fill(tmp_path / "photos", *classes_in(train, other))
    assert splits_of(str(root)) == ("train", split)
    dataset = open_dataset(f"{root}:{split}")
    assert (len(dataset), dataset.classes) == (8, ("cat", "dog"))
    assert dataset.name(0) == f"{other}/cat/0.png"
    assert evaluation_split(str(root)) == split
    assert calibration_split(str(root)) == "train"
    assert len(open_dataset(str(root))) == 16


@pytest.mark.parametrize("splits", [("train", "test"), ("Training", "Validation"), ("train", "val", "test")])
def test_splits_below_the_classes_are_not_mixed(tmp_path: Path, splits: tuple[str, ...]) -> None:
    root = fill(tmp_path, *(f"{name}/{split}" for name in ("cat", "dog") for split in splits))
    for uri in (str(root), f"{root}:train", f"{root}:test"):
        with pytest.raises(DataError, match=f"splits below the classes .'cat/{splits[0]}'.* move them above"):
            open_dataset(uri)


def test_one_class_with_a_folder_called_train_is_a_class(tmp_path: Path) -> None:
    root = fill(tmp_path, "toys/train", "toys/test", "cat", "dog")
    assert open_dataset(str(root)).classes == ("cat", "dog", "toys")


def test_what_is_held_out_is_validation_beside_a_test_folder(tmp_path: Path) -> None:
    for held_out in ("eval", "holdout"):
        root = fill(tmp_path / held_out, *classes_in("train", held_out, "test"))
        assert splits_of(str(root)) == ("train", "validation", "test")
        assert open_dataset(f"{root}:validation").name(0).startswith(held_out)


@pytest.mark.parametrize(
    "names",
    [("train", "car"), ("valid", "invalid"), ("bullet_train", "crash_test"), ("dev", "ops"), ("test", "cat", "dog")],
)
def test_classes_that_are_called_like_splits_stay_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    root = fill(tmp_path / "photos", *names)
    assert splits_of(str(root)) == ()
    assert open_dataset(str(root)).classes == tuple(sorted(names))


def test_two_folders_for_one_split_are_refused(tmp_path: Path) -> None:
    for first, second in (("val", "dev"), ("test", "testing")):
        root = fill(tmp_path / first, *classes_in("train", first, second))
        with pytest.raises(DataError, match=rf"has two \w+ folders, '({first}|{second})' and '.*': keep one"):
            open_dataset(str(root))


def test_folders_beside_the_splits_do_not_make_them_classes(tmp_path: Path) -> None:
    root = fill(tmp_path, *classes_in("images/train", "images/val"))
    (root / "labels" / "train").mkdir(parents=True)
    (root / "labels" / "train" / "0.txt").write_text("0 0.5 0.5 1 1")
    assert splits_of(str(root)) == ("train", "validation")


@pytest.mark.parametrize("flat", ["test/0.png", "test/unknown/0.png", "test/images/0.png"])
def test_a_test_split_without_labels_blocks_nothing(tmp_path: Path, flat: str) -> None:
    root = fill(tmp_path / "photos", *classes_in("train", "val"))
    draw(root / flat)
    assert splits_of(str(root)) == ("train", "validation", "test")
    assert labelled_splits_of(str(root)) == ("train", "validation")
    assert evaluation_split(str(root)) == "validation"
    assert len(open_dataset(str(root))) == 16
    assert len(open_dataset(f"{root}:train")) == 8
    unlabelled = open_dataset(f"{root}:test")
    assert (len(unlabelled), unlabelled.labels, unlabelled.classes) == (1, None, ())


def test_a_train_folder_alone_is_divided_as_its_classes_would_be(tmp_path: Path) -> None:
    root = fill(tmp_path / "photos", *classes_in("train"), count=20)
    assert splits_of(str(root)) == ()
    assert [len(open_dataset(f"{root}:{split}")) for split in ("train", "validation", "test")] == [24, 6, 10]
    assert open_dataset(str(root)).classes == ("cat", "dog")
    assert evaluation_split(str(root)) == "test"


def test_a_test_folder_alone_is_a_test_split(tmp_path: Path) -> None:
    root = fill(tmp_path / "photos", *classes_in("test"))
    assert len(open_dataset(f"{root}:test")) == 8
    with pytest.raises(DataError, match="has the folders test and none for train"):
        open_dataset(f"{root}:train")
    flat = fill(tmp_path / "flat", "test")
    assert open_dataset(f"{flat}:test").labels is None


def test_a_folder_without_splits_is_divided_for_every_use(tmp_path: Path) -> None:
    root = fill(tmp_path / "photos", "cat", "dog", count=20)
    assert (calibration_split(str(root)), evaluation_split(str(root))) == ("train", "test")
    parts = [open_dataset(str(root), split=split) for split in ("train", "test")]
    assert not set(parts[0].sample_ids) & set(parts[1].sample_ids)
    assert (calibration_split(f"{root}:all"), evaluation_split(f"{root}:all")) == (None, None)
    assert len(open_dataset(f"{root}:all")) == 40
    assert open_dataset(f"{root}:all").uri == f"{root}:all"


@pytest.mark.parametrize("folders", [("cat", "dog"), ("",)])
def test_what_cannot_be_divided_is_taken_whole(tmp_path: Path, folders: tuple[str, ...]) -> None:
    root = fill(tmp_path / "photos", *folders, count=2)
    assert (calibration_split(str(root)), evaluation_split(str(root))) == (None, None)
    assert len(open_dataset(str(root))) == 2 * len(folders)


def test_digits_all_is_all_digits() -> None:
    assert len(open_dataset("digits:all")) == 1797
    assert (calibration_split("digits:all"), evaluation_split("digits:all")) == (None, None)
    with pytest.raises(DataError, match="names another"):
        open_dataset("digits:all", split="test")


def test_a_folder_of_images_in_a_wrapper_is_unlabelled(tmp_path: Path) -> None:
    dataset = open_dataset(str(fill(tmp_path / "photos", "images")))
    assert (len(dataset), dataset.labels) == (4, None)
    wrapped = open_dataset(str(fill(tmp_path / "more", "images/cat", "images/dog")))
    assert wrapped.classes == ("cat", "dog")


def test_what_systems_leave_is_neither_class_nor_image(tmp_path: Path) -> None:
    root = fill(tmp_path, "cat", "dog", count=2)
    for name in (
        *("@eaDir/cat/SYNOPHOTO_THUMB_XL.jpg", "cat/@eaDir/0.png/SYNOPHOTO_THUMB_M.jpg", "dog/.thumbnails/0.jpg"),
        *("dog/.@__thumb/default0.png", "__MACOSX/cat/._0.png", "cat/._0.png", ".ipynb_checkpoints/cat-checkpoint.png"),
        *("#recycle/0.png", "$RECYCLE.BIN/0.png", "cat/__MACOSX/1.png"),
    ):
        draw(root / name, "PNG")
    for name in ("Thumbs.db", "cat/Thumbs.db", "dog/desktop.ini", ".DS_Store"):
        (root / name).write_bytes(b"x")
    dataset = open_dataset(str(root))
    assert dataset.classes == ("cat", "dog")
    assert [dataset.name(index) for index in range(len(dataset))] == [
        f"{name}/{index}.png" for name in ("cat", "dog") for index in (0, 1)
    ]
    assert dataset.notes == ()


def test_files_that_are_left_out_are_counted_by_ending(tmp_path: Path) -> None:
    root = fill(tmp_path / "photos", "cat", "dog", count=2)
    for name in ("cat/a.HEIC", "cat/b.heic", "dog/c.mp4", "dog/deep/d.heic", "dog/notes"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"x")
    assert open_dataset(str(root)).notes == (
        f"{root}: left out are 3 .heic, 1 .mp4, 1 without an ending, which are not read as images",
    )
    (tmp_path / "none" / "cat").mkdir(parents=True)
    (tmp_path / "none" / "cat" / "a.heic").write_bytes(b"x")
    flat = tmp_path / "none" / "cat"
    with pytest.raises(DataError, match=r"holds no images, .*: left out are 1 \.heic, which are not read as images"):
        open_dataset(str(flat))


@pytest.mark.parametrize(
    ("ending", "kind"),
    [(".jfif", "JPEG"), (".JPG", "JPEG"), (".mpo", "MPO"), (".webp", "WEBP"), (".avif", "AVIF"), (".jp2", "JPEG2000")],
)
def test_endings_that_pillow_reads(tmp_path: Path, ending: str, kind: str) -> None:
    feature = {"AVIF": "avif", "JPEG2000": "jpg_2000", "WEBP": "webp"}.get(kind)
    if feature is not None and not features.check(feature):
        assert ending not in endings()
        return
    root = fill(tmp_path, "dog", count=1)
    draw(root / "cat" / f"a{ending}", kind)
    dataset = open_dataset(str(root))
    assert dataset.name(0) == f"cat/a{ending}"
    assert dataset.image(0).mode == "RGB"


def test_an_ending_that_lies_is_no_matter(tmp_path: Path) -> None:
    draw(tmp_path / "cat" / "a.jpg", "PNG")
    draw(tmp_path / "dog" / "a.png", "JPEG")
    dataset = open_dataset(str(tmp_path))
    assert [dataset.image(index).size for index in range(2)] == [(8, 8), (8, 8)]


def test_class_folders_may_be_links_and_links_in_a_circle_are_none(tmp_path: Path) -> None:
    store = fill(tmp_path / "store", "cats", "dogs", count=2)
    root = tmp_path / "photos"
    root.mkdir()
    (root / "cat").symlink_to(store / "cats")
    (root / "dog").symlink_to(store / "dogs")
    (root / "loop").symlink_to(root / "loop")
    (root / "dog" / "up").symlink_to(store)
    dataset = open_dataset(str(root))
    assert dataset.classes == ("cat", "dog")
    assert len(dataset) == 4  # dog/up leads to a folder above: the cats are no dogs


def test_an_empty_file_or_a_pipe_is_refused_by_name(tmp_path: Path) -> None:
    import os

    root = fill(tmp_path, "cat", "dog", count=1)
    (root / "cat" / "a.jpg").write_bytes(b"")
    os.mkfifo(root / "dog" / "b.jpg")
    dataset = open_dataset(str(root))
    with pytest.raises(DataError, match=r"'.*a\.jpg' is empty"):
        dataset.image(1)
    with pytest.raises(DataError, match=r"'.*b\.jpg' is a named pipe"):
        dataset.image(3)
    with pytest.raises(DataError, match=r"'.*b\.jpg' is a named pipe"):
        _ = dataset.sample_ids
