from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitdeploy.datasets import imagenet_classes, imagenet_labels, match_labels
from vitdeploy.datasets.base import DatasetBase
from vitdeploy.errors import ArtifactError, DataError, FidelityWarning


def labelled(*classes: str) -> DatasetBase:
    """Two samples of each class, in order."""
    labels = np.repeat(np.arange(len(classes)), 2)
    return DatasetBase("photos", [str(index) for index in range(len(labels))], labels, classes)


def matched(dataset: DatasetBase, classes: Sequence[str], **options: Any) -> list[int]:
    return match_labels(dataset, classes, **options)[::2].tolist()


def test_folders_match_by_name_wherever_the_model_has_them() -> None:
    assert matched(labelled("cat", "dog"), ("owl", "dog", "cat")) == [2, 1]
    assert match_labels(labelled("cat", "dog"), ("owl", "dog", "cat")).tolist() == [2, 2, 1, 1]


def test_case_blanks_hyphens_and_underscores_do_not_matter_but_an_exact_name_wins() -> None:
    assert matched(labelled("Polar_Bear", "great-white  shark"), ("great white shark", "polar bear")) == [1, 0]
    assert matched(labelled("Cat", "cat"), ("cat", "Cat")) == [1, 0]


@pytest.mark.torch
def test_the_imagenet_table_has_the_order_and_ids_of_timm_and_the_labels_of_torchvision() -> None:
    import timm.data
    from torchvision.models import ViT_B_16_Weights

    folder = Path(timm.data.__file__).parent / "_info"
    assert [entry.synset for entry in imagenet_classes()] == (folder / "imagenet_synsets.txt").read_text().split()
    assert list(imagenet_labels()) == ViT_B_16_Weights.IMAGENET1K_V1.meta["categories"]
    assert len(set(imagenet_labels())) == 1000


@pytest.mark.parametrize("form", ["label", "lemmas", "synset", "other words"])
def test_wordnet_ids_find_imagenet_classes_however_the_model_names_them(form: str) -> None:
    names = {
        "label": imagenet_labels(),
        "lemmas": tuple(", ".join(entry.lemmas) for entry in imagenet_classes()),
        "synset": tuple(entry.synset for entry in imagenet_classes()),
        # As a release with a few renamed classes: position then counts.
        "other words": ("thing", *imagenet_labels()[1:]),
    }[form]
    every = labelled(*(entry.synset for entry in imagenet_classes()))
    assert matched(every, names) == list(range(1000))


def test_a_model_of_a_few_imagenet_classes_is_found_by_wordnet_id_and_back() -> None:
    assert matched(labelled("n01440764", "n01443537"), ("goldfish", "tench")) == [1, 0]
    assert matched(labelled("tench", "Carassius auratus"), ("n01443537", "n01440764")) == [1, 0]
    lines = ("n01443537 goldfish, Carassius auratus", "n01440764 tench, Tinca tinca")
    assert matched(labelled("n01440764", "goldfish"), lines) == [1, 0]


def test_a_word_of_two_imagenet_classes_is_not_guessed() -> None:
    # WordNet's crane is a bird and a machine.
    synsets = tuple(entry.synset for entry in imagenet_classes())
    with pytest.raises(
        DataError, match=r"folder 'crane' fits several classes of the model, 134 .*517 .*label_map='FILE'"
    ):
        match_labels(labelled("crane", "tench"), synsets)
    assert matched(labelled("crane bird", "tench"), synsets) == [134, 0]


def test_unmatched_folders_are_listed() -> None:
    with pytest.raises(DataError) as caught:
        match_labels(labelled("cat", "dgo", "owl"), ("cat", "dog", "owl"))
    assert str(caught.value) == (
        "1 of the 3 classes of 'photos' are not classes of the model: 'dgo'; the model has 3: 'cat', 'dog', 'owl'; "
        "rename the folders, or pass label_map='FILE'"
    )


@pytest.mark.parametrize("classes", [("cat", "dog"), ("cat", "dog", "owl"), ("Hund", "Katze")])
def test_order_is_never_advised(classes: tuple[Any, ...]) -> None:
    """With folders Hund and Katze for the classes cat and dog it would give a wrong accuracy."""
    with pytest.raises(DataError, match=r"or pass label_map='FILE'$"):
        match_labels(labelled("a", "b"), classes)


@pytest.mark.parametrize(
    ("folder", "name"), [("caf\u00e9", "cafe\u0301"), ("cafe\u0301", "caf\u00e9"), ("A\u030a", "\u212b")]
)
def test_unicode_normal_forms_are_equal(tmp_path: Path, folder: str, name: str) -> None:
    assert matched(labelled("dog", folder), (name, "dog")) == [1, 0]
    file = tmp_path / "map.csv"
    file.write_text(f"{name},{folder}\ndog,dog\n", encoding="utf-8")
    assert matched(labelled("dog", folder), (name, "dog"), label_map=file) == [1, 0]


@pytest.mark.parametrize(
    ("folders", "classes", "count", "expected"),
    [
        (("1", "10", "2"), (), 11, [1, 10, 2]),
        (("7", "0"), tuple("abcdefghij"), None, [7, 0]),
        (("007", "010"), (), 11, [7, 10]),
        (("0", "1", "10", "2"), ("0", "1", "10", "2"), None, [0, 1, 2, 3]),  # names of a model that has such folders
        (("2", "10"), ("0", "1", "10", "2"), None, [3, 2]),
    ],
)
def test_folders_named_by_numbers_are_indices_unless_they_are_names(
    folders: tuple[Any, ...], classes: tuple[Any, ...], count: int | None, expected: list[int]
) -> None:
    assert matched(labelled(*folders), classes, count=count) == expected


@pytest.mark.parametrize(
    ("folders", "classes", "count", "warns"),
    [
        (range(11), (), 11, True),  # as words, 10 would be the third
        (range(102), (), 102, True),
        (range(10), (), 10, False),  # the two orders are the same
        (range(11), (), 1000, False),  # a part of the classes: no model was trained on these folders alone
        (range(11), [str(number) for number in range(11)], None, False),
    ],
)
def test_numbers_that_may_be_in_the_order_of_words_are_warned_of(
    folders: range, classes: tuple[()] | list[str], count: int | None, warns: bool
) -> None:
    names = [str(number) for number in folders]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert matched(labelled(*names), classes, count=count) == list(folders)
    assert [one.category for one in said] == [FidelityWarning] * warns
    assert all("ImageFolder has them in the order of words" in str(one.message) for one in said)


def test_the_advice_for_numbers_in_the_order_of_words_works() -> None:
    names = [str(number) for number in range(12)]
    assert matched(labelled(*names), sorted(names)) == [sorted(names).index(name) for name in names]


@pytest.mark.parametrize(
    ("folders", "classes", "count", "message"),
    [
        (("1", "2"), ("cat", "dog"), None, r"numbers from 1 to 2, and the model has the classes 0 to 1: say what each"),
        (("0", "10"), (), 10, r"numbers from 0 to 10, and the model has the classes 0 to 9"),
        (("0", "1"), (), None, r"how many classes the model has is not known"),
        (("0", "x"), ("cat", "dog"), None, r"'0', 'x'; the model has 2: 'cat', 'dog'; rename the folders"),
        (("1", "01"), ("cat", "dog"), None, r"'1', '01'; the model has 2"),
    ],
)
def test_numbers_that_are_no_indices_are_refused(
    folders: tuple[str, str], classes: tuple[Any, ...], count: int | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        match_labels(labelled(*folders), classes, count=count)


def test_order_and_maps_serve_models_that_name_no_classes(tmp_path: Path) -> None:
    assert matched(labelled("a", "b"), (), count=2, by_order=True) == [0, 1]
    file = tmp_path / "map.csv"
    file.write_text("a,1\nb,0\n")
    assert matched(labelled("a", "b"), (), count=2, label_map=file) == [1, 0]
    file.write_text("a,1\nb,2\n")
    with pytest.raises(DataError, match=r"the label '2' in .* names no class of the model"):
        match_labels(labelled("a", "b"), (), count=2, label_map=file)
    with pytest.raises(DataError, match=r"has 2 classes and the model 3"):
        match_labels(labelled("a", "b"), (), count=3, by_order=True)


def test_order_is_taken_only_on_demand() -> None:
    assert matched(labelled("a", "b"), ("cat", "dog"), by_order=True) == [0, 1]


@pytest.mark.parametrize(
    ("folders", "classes", "options", "message"),
    [
        (("a", "b"), ("x", "y", "z"), {"by_order": True}, r"has 2 classes and the model 3: labels by order need equal"),
        (("a", "cat"), ("dog", "cat"), {"by_order": True}, r"1 folders match classes by name, such as 'cat'"),
        (("a", "b"), (), {}, r"the model does not name its classes: give it their names with vd"),
        (("Cat", "CAT"), ("cat", "dog"), {}, r"folders 'Cat' and 'CAT' both fit the class 'cat': merge them"),
        (("a",), ("a", "b"), {}, r"'photos' has one class only, 'a', expected at least two class folders"),
        (("a", "b"), ("a", "b"), {"by_order": True, "label_map": Path("x")}, r"leave one of the two out"),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    folders: tuple[Any, ...], classes: tuple[Any, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        match_labels(labelled(*folders), classes, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        '{"Katze": "cat", "Hund": "dog", "Kater": "cat"}',
        "folder,label\nKatze,cat\nHund,dog\nKater,cat\n",
        "\ufeffKatze, cat\r\nHund, dog\r\n\r\nKater, cat\r\n",
        '{"Katze": 2, "Hund": 0, "Kater": 2}',
        "Katze,2\nHund,0\nKater,2",
    ],
)
def test_a_label_map_says_what_each_folder_means(tmp_path: Path, text: str) -> None:
    file = tmp_path / "map"
    file.write_bytes(text.encode())
    assert matched(labelled("Hund", "Kater", "Katze"), ("dog", "owl", "cat"), label_map=file) == [0, 2, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": "cat"}', r"lacks 1 folders: 'b'; add a row for each"),
        ('{"a": "cat", "b": "cow"}', r"the label 'cow' in .* names no class of the model"),
        ('{"a": "cat", "b": 7}', r"the label 7 in .* names no class of the model, expected a class name or an index"),
        ('{"a": "twin", "b": "cat"}', r"the label 'twin' in .* names 2 classes of the model"),
        ('{"a": "cat", "b": true}', r"the label of 'b' is True; expected JSON"),
        ('{"a": "cat", "a": "dog"}', r"'a' is there twice"),
        ('{"a": ', r"cannot be read: .*expected JSON \{\"folder\": \"label\"\} or CSV lines folder,label"),
        ("a,cat\nb\n", r"line 2 has 1 columns"),
        ("a,cat\na,dog\n", r"line 2 names 'a' again"),
        ("", r"it is empty"),
    ],
)
def test_a_label_map_that_does_not_fit_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "map.csv"
    file.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        match_labels(labelled("a", "b"), ("cat", "dog", "twin", "twin"), label_map=file)
    assert "\n" not in str(caught.value)


def test_a_missing_label_map_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"there is no file '.*map\.json'"):
        match_labels(labelled("a", "b"), ("a", "b"), label_map=tmp_path / "map.json")
