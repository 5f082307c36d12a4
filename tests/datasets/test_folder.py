from __future__ import annotations

import hashlib
import itertools
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from present import present

from vitdeploy.datasets import batches, load_pixels, open_dataset, require_labels, splits_of
from vitdeploy.errors import DataError
from vitdeploy.preprocess import normalize
from vitdeploy.records import Preprocess

SPEC = Preprocess(size=(6, 6), channels=3, resize="squash", crop="none", mean=(0.5,) * 3, std=(0.5,) * 3)
_shade = itertools.count()


def draw(path: Path) -> Path:
    """Write an image that no other test image equals."""
    path.parent.mkdir(parents=True, exist_ok=True)
    number = next(_shade)
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[0, 0] = number >> 16 & 255, number >> 8 & 255, number & 255
    Image.fromarray(pixels).save(path, "PNG")
    return path


def classes_of(root: Path, counts: dict[str, int]) -> Path:
    for name, count in counts.items():
        for index in range(count):
            draw(root / name / f"{index}.png")
    return root


def test_class_folders_become_classes_in_the_order_of_their_names(tmp_path: Path) -> None:
    root = classes_of(tmp_path / "photos", {"dog": 2, "cat": 3, "Ant": 1})
    dataset = open_dataset(str(root))
    assert dataset.classes == ("Ant", "cat", "dog")
    assert dataset.labels.tolist() == [0, 1, 1, 1, 2, 2]
    assert [dataset.name(index) for index in range(6)][:2] == ["Ant/0.png", "cat/0.png"]
    assert splits_of(str(root)) == ()


def test_images_whose_names_are_no_text_are_read_like_others(tmp_path: Path) -> None:
    root = classes_of(tmp_path / "photos", {"cat": 4, "dog": 3})
    for number, name in enumerate((b"\xff.png", rb"\xff.png", b"a\x1b.png")):
        (root / "cat" / f"{number}.png").rename(root / "cat" / os.fsdecode(name))
    draw(root / "dog" / os.fsdecode(b"\xfe") / "deep.png")
    dataset = open_dataset(str(root))
    names = [dataset.name(index) for index in range(len(dataset))]
    assert names[:4] == ["cat/3.png", r"cat/\\xff.png", r"cat/a\x1b.png", r"cat/\xff.png"]
    assert names[-1] == r"dog/\xfe/deep.png"
    assert len(set(dataset.sample_ids)) == 8
    assert [len(open_dataset(f"{root}:{split}")) for split in ("train", "validation", "test")] == [4, 2, 2]
    assert load_pixels(dataset, SPEC).shape == (8, 6, 6, 3)


def test_a_class_whose_name_is_no_text_is_refused(tmp_path: Path) -> None:
    root = classes_of(tmp_path / "photos", {"cat": 1, os.fsdecode(b"\xff"): 1})
    with pytest.raises(DataError, match=r"class folder '\\xff' in .* no UTF-8, which no class can have: rename it"):
        open_dataset(str(root))
    with pytest.raises(DataError, match=r"the name '.*\\xff' of the dataset is no UTF-8: rename the folder"):
        open_dataset(str(root / os.fsdecode(b"\xff")))


def test_class_folders_called_by_numbers_come_in_the_order_of_the_numbers(tmp_path: Path) -> None:
    root = classes_of(tmp_path / "photos", {"10": 1, "2": 2, "0": 1})
    dataset = open_dataset(str(root))
    assert dataset.classes == ("0", "2", "10")
    folders = {dataset.name(index).partition("/")[0] for index in range(4)}
    assert folders == {"0", "2", "10"}
    for index in range(4):
        assert dataset.classes[dataset.labels[index]] == dataset.name(index).partition("/")[0]


def test_splits_whose_class_names_differ_in_unicode_form_have_the_same_classes(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    classes_of(root / "train", {"caf\u00e9": 2, "dog": 2})
    classes_of(root / "val", {"cafe\u0301": 1, "dog": 1})
    for split, labels in (("train", [0, 0, 1, 1]), ("validation", [0, 1])):
        dataset = open_dataset(f"{root}:{split}")
        assert dataset.classes == ("caf\u00e9", "dog")
        assert dataset.labels.tolist() == labels
        assert dataset.image(0).size == (8, 8)


def test_nested_files_and_upper_case_endings_count_hidden_and_other_files_do_not(tmp_path: Path) -> None:
    root = tmp_path
    for name in ("cat/a.JPEG", "cat/deep/er/b.Png", "dog/c.jpg", "cat/.hidden.png", ".git/d.png", "__MACOSX/e.png"):
        draw(root / name)
    (root / "cat" / "notes.txt").write_text("no image")
    (root / "LICENSE").write_text("no image")
    dataset = open_dataset(str(root))
    assert dataset.classes == ("cat", "dog")
    assert [dataset.name(index) for index in range(len(dataset))] == ["cat/a.JPEG", "cat/deep/er/b.Png", "dog/c.jpg"]


def test_links_are_followed_and_a_loop_of_links_ends(tmp_path: Path) -> None:
    store = draw(tmp_path / "store" / "x.png")
    root = classes_of(tmp_path / "photos", {"cat": 1, "dog": 1})
    (root / "cat" / "link.png").symlink_to(store)
    (root / "dog" / "more").symlink_to(store.parent)
    (root / "dog" / "loop").symlink_to(root / "dog")
    dataset = open_dataset(str(root))
    names = [dataset.name(index) for index in range(len(dataset))]
    assert names == ["cat/0.png", "cat/link.png", "dog/0.png", "dog/more/x.png"]
    assert dataset.sample_ids[1] == dataset.sample_ids[3]


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_a_link_to_a_folder_above_brings_no_images_of_other_classes(tmp_path: Path, levels: int) -> None:
    root = classes_of(tmp_path / "data" / "photos", {"cat": 2, "dog": 3})
    draw(tmp_path / "data" / "elsewhere.png")
    (root / "cat" / "up").symlink_to((root / "cat").parents[levels - 1])
    dataset = open_dataset(str(root))
    assert [dataset.name(index) for index in range(len(dataset))] == [
        *("cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png", "dog/2.png")
    ]
    assert dataset.notes == ()


@pytest.mark.parametrize(
    ("names", "alike"),
    [
        (("Cat", "cat", "dog"), ["'Cat', 'cat'"]),
        (("big dog", "big_dog", "cat", "cat "), ["'big dog', 'big_dog'", "'cat', 'cat '"]),
        (("cat", "cats"), []),
        (("C", "C++", "C#"), []),
    ],
)
def test_classes_with_nearly_the_same_name_are_said(tmp_path: Path, names: tuple[Any, ...], alike: list[str]) -> None:
    root = classes_of(tmp_path / "photos", dict.fromkeys(names, 1))
    dataset = open_dataset(str(root))
    assert dataset.classes == tuple(sorted(names))
    expected = tuple(f"{root}: the class folders {two} are classes of their own, nearly alike in name" for two in alike)
    assert dataset.notes == expected


def test_folders_within_all_classes_are_said_to_be_no_classes(tmp_path: Path) -> None:
    for name in ("animals/cat", "animals/dog", "vehicles/bus", "vehicles/car"):
        draw(tmp_path / "photos" / name / "0.png")
    dataset = open_dataset(str(tmp_path / "photos"))
    assert dataset.classes == ("animals", "vehicles")
    assert dataset.notes == (
        f"{tmp_path / 'photos'}: the classes are 'animals', 'vehicles'; folders in them, such as 'animals/cat', are no "
        f"classes of their own",
    )


def test_sample_ids_are_the_digests_of_the_files(tmp_path: Path) -> None:
    root = classes_of(tmp_path, {"cat": 1, "dog": 1})
    expected = tuple(hashlib.sha256((root / name / "0.png").read_bytes()).hexdigest() for name in ("cat", "dog"))
    assert open_dataset(str(root)).sample_ids == expected


def test_the_digest_follows_content_not_place(tmp_path: Path) -> None:
    first = classes_of(tmp_path / "one", {"cat": 2, "dog": 2})
    (tmp_path / "two").mkdir()
    for path in sorted(first.rglob("*.png")):
        copy = tmp_path / "two" / path.relative_to(first)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(path.read_bytes())
    assert open_dataset(str(first)).digest == open_dataset(str(tmp_path / "two")).digest
    draw(tmp_path / "two" / "cat" / "0.png")
    assert open_dataset(str(first)).digest != open_dataset(str(tmp_path / "two")).digest


@pytest.mark.parametrize("validation", ["val", "validation", "Valid"])
def test_split_folders_are_the_splits(tmp_path: Path, validation: str) -> None:
    for folder, count in (("train", 4), (validation, 2), ("test", 3)):
        classes_of(tmp_path / folder, {"cat": count, "dog": count})
    assert splits_of(str(tmp_path)) == ("train", "validation", "test")
    assert len(open_dataset(str(tmp_path), split="train")) == 8
    assert len(open_dataset(f"{tmp_path}:val")) == 4
    assert len(open_dataset(f"{tmp_path}:test")) == 6
    assert len(open_dataset(str(tmp_path))) == 18
    assert open_dataset(f"{tmp_path}:test").name(0) == "test/cat/0.png"


def test_labels_agree_between_splits_when_a_split_lacks_a_class(tmp_path: Path) -> None:
    classes_of(tmp_path / "train", {"ant": 2, "cat": 2, "dog": 2})
    classes_of(tmp_path / "test", {"dog": 2})
    test = open_dataset(str(tmp_path), split="test")
    assert test.classes == ("ant", "cat", "dog")
    assert test.labels.tolist() == [2, 2]


def test_a_folder_called_train_beside_a_car_is_a_class(tmp_path: Path) -> None:
    classes_of(tmp_path, {"train": 2, "car": 2})
    assert open_dataset(str(tmp_path)).classes == ("car", "train")


def test_a_missing_validation_folder_is_carved_out_of_train(tmp_path: Path) -> None:
    classes_of(tmp_path / "train", {"cat": 10, "dog": 10})
    classes_of(tmp_path / "test", {"cat": 2, "dog": 2})
    train, validation = (open_dataset(str(tmp_path), split=split) for split in ("train", "validation"))
    assert (len(train), np.bincount(present(validation.labels)).tolist()) == (16, [2, 2])
    assert not set(train.sample_ids) & set(validation.sample_ids)


def test_a_folder_without_split_folders_is_divided_once_and_for_all(tmp_path: Path) -> None:
    root = classes_of(tmp_path, {"cat": 20, "dog": 20, "owl": 20})
    parts = {split: open_dataset(str(root), split=split) for split in ("train", "validation", "test")}
    assert {split: np.bincount(present(part.labels)).tolist() for split, part in parts.items()} == {
        "train": [12, 12, 12],
        "validation": [3, 3, 3],
        "test": [5, 5, 5],
    }
    assert len({identity for part in parts.values() for identity in part.sample_ids}) == 60
    assert open_dataset(str(root), split="test", seed=9).digest == parts["test"].digest
    assert open_dataset(f"{root}@1", split="test").digest != parts["test"].digest


def test_a_flat_folder_is_unlabelled(tmp_path: Path) -> None:
    for index in range(4):
        draw(tmp_path / f"{index}.png")
    (tmp_path / "empty").mkdir()
    dataset = open_dataset(str(tmp_path), samples=3)
    assert (len(dataset), dataset.labels, dataset.classes) == (3, None, ())
    with pytest.raises(DataError, match=r"has no labels, expected one folder per class"):
        require_labels(dataset)


def test_a_folder_named_like_a_split_suffix_is_a_folder(tmp_path: Path) -> None:
    root = classes_of(tmp_path / "odd:train", {"cat": 1, "dog": 1})
    assert len(open_dataset(str(root))) == 2
    numbered = classes_of(tmp_path / "v@2", {"cat": 1, "dog": 1})
    assert len(open_dataset(str(numbered))) == 2


def test_unreadable_images_are_all_named_in_one_line(tmp_path: Path) -> None:
    root = classes_of(tmp_path, {"cat": 4, "dog": 4})
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8))
    noise.save(root / "cat" / "1.png")
    whole = (root / "cat" / "1.png").read_bytes()
    (root / "cat" / "1.png").write_bytes(whole[: len(whole) // 2])
    (root / "dog" / "2.png").write_text("this is text")
    with pytest.raises(DataError) as caught:
        load_pixels(open_dataset(str(root)), SPEC)
    message = str(caught.value)
    assert message.startswith("2 of 8 images cannot be read: ")
    assert f"{root / 'cat' / '1.png'!s}' is truncated or damaged" in message
    assert f"{root / 'dog' / '2.png'!s}' is not an image" in message
    assert "\n" not in message


@pytest.mark.parametrize(("batch", "sizes"), [(1, [1, 1, 1]), (2, [2, 1]), (3, [3]), (64, [3])])
def test_batches_hold_what_is_asked_for_and_the_last_one_the_rest(tmp_path: Path, batch: int, sizes: list[int]) -> None:
    dataset = open_dataset(str(classes_of(tmp_path, {"cat": 2, "dog": 1})))
    found = list(batches(dataset, SPEC, batch))
    assert [part.shape for part in found] == [(size, 3, 6, 6) for size in sizes]
    np.testing.assert_array_equal(np.concatenate(found), next(iter(batches(dataset, SPEC, 3))))


@pytest.mark.parametrize("batch", [0, -1])
def test_a_batch_of_no_images_is_refused(tmp_path: Path, batch: int) -> None:
    dataset = open_dataset(str(classes_of(tmp_path, {"cat": 1, "dog": 1})))
    with pytest.raises(DataError, match=f"a batch of {batch} images was asked for"):
        next(iter(batches(dataset, SPEC, batch)))


def test_pixels_come_in_the_order_of_the_labels(tmp_path: Path) -> None:
    for label, shade in (("a", 10), ("b", 200)):
        for index in range(30):
            (tmp_path / label).mkdir(exist_ok=True)
            Image.new("RGB", (6, 6), (shade + index % 20,) * 3).save(tmp_path / label / f"{index:02d}.png")
    dataset = open_dataset(str(tmp_path))
    pixels = load_pixels(dataset, SPEC)
    expected = [10 + index % 20 for index in range(30)] + [200 + index % 20 for index in range(30)]
    assert pixels[:, 3, 3, 1].tolist() == expected


def one_class(root: Path) -> None:
    classes_of(root / "only", {"cat": 1})


def empty_class(root: Path) -> None:
    classes_of(root, {"cat": 1})
    (root / "dog").mkdir()


def loose_image(root: Path) -> None:
    classes_of(root, {"cat": 1, "dog": 1})
    draw(root / "cover.png")


def no_test(root: Path) -> None:
    classes_of(root / "train", {"cat": 3, "dog": 3})
    classes_of(root / "val", {"cat": 3, "dog": 3})


def two_validations(root: Path) -> None:
    classes_of(root / "val", {"cat": 3})
    classes_of(root / "validation", {"cat": 3})


def unknown_class(root: Path) -> None:
    classes_of(root / "train", {"cat": 3, "dog": 3})
    classes_of(root / "test", {"cow": 3})


def tiny_class(root: Path) -> None:
    classes_of(root, {"cat": 5, "dog": 2})


def text_only(root: Path) -> None:
    (root / "cat").mkdir()
    (root / "cat" / "readme.txt").write_text("no image")


@pytest.mark.parametrize(
    ("make", "suffix", "message"),
    [
        (lambda root: None, "", r"holds no images, expected files such as \.jpg or \.png, in one folder per class"),
        (text_only, "", r"class folder '.*cat' holds no images: add some or remove it"),
        (empty_class, "", r"class folder '.*dog' holds no images"),
        (loose_image, "", r"holds the image 'cover\.png' beside class folders"),
        (no_test, ":test", r"has the folders train, val and none for test: add it, or name another .*:validation'"),
        (two_validations, "", r"has two validation folders, 'val' and 'validation': keep one"),
        (unknown_class, ":test", r"has class folders that 'train' lacks: 'cow'"),
        (tiny_class, ":train", r"class 'dog' of '.*' has 2 images, but a division into splits needs at least 3"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused_in_one_line(
    tmp_path: Path, make: Callable[..., Any], suffix: str, message: str
) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    make(root)
    with pytest.raises(DataError, match=message) as caught:
        open_dataset(f"{root}{suffix}")
    assert "\n" not in str(caught.value)


def test_one_class_is_refused_where_labels_are_needed(tmp_path: Path) -> None:
    one_class(tmp_path)
    dataset = open_dataset(str(tmp_path))
    with pytest.raises(DataError, match=r"has one class only, 'only', expected at least two class folders"):
        require_labels(dataset)


def test_a_name_that_no_file_system_takes_is_refused_in_one_line() -> None:
    for name in ("x" * 5000, "nul\0byte"):
        with pytest.raises(DataError, match=r"there is no dataset '"):
            open_dataset(name)


def test_reading_can_stop_early(tmp_path: Path) -> None:
    root = classes_of(tmp_path, {"cat": 60, "dog": 60})
    before = set(threading.enumerate())  # another test may have left a stream to the garbage collection
    stream: Any = batches(open_dataset(str(root)), SPEC, 4)
    assert next(stream).shape == (4, 3, 6, 6)
    new = [one for one in set(threading.enumerate()) - before if one.name.startswith("vitdeploy-images")]
    assert new
    stream.close()
    assert not [thread for thread in new if thread.is_alive()]


def test_batches_cover_every_image_once_and_name_the_first_that_fails(tmp_path: Path) -> None:
    root = classes_of(tmp_path, {"cat": 30, "dog": 30})
    dataset = open_dataset(str(root))
    streamed = np.concatenate(list(batches(dataset, SPEC, 7)))
    assert np.array_equal(streamed, normalize(load_pixels(dataset, SPEC), SPEC))
    (root / "cat" / "3.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"'.*cat/3\.png' is not an image"):
        list(batches(open_dataset(str(root)), SPEC, 7))


def test_a_file_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    path = draw(tmp_path / "x.png")
    with pytest.raises(DataError, match=r"is a file, expected a folder of images"):
        open_dataset(str(path))
    with pytest.raises(DataError, match=r"there is no dataset '.*nowhere', expected 'digits'"):
        open_dataset(str(tmp_path / "nowhere"))
