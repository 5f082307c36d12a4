"""Names of classes, in whatever shape others write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vitdeploy.datasets.class_names import class_names_of, read_class_names
from vitdeploy.errors import DataError

NAMES = ("cat", "dog", "owl")


@pytest.mark.parametrize(
    "config",
    [
        {"id2label": {"0": "cat", "1": "dog", "2": "owl"}},
        {"id2label": {"2": "owl", "0": "cat", "1": "dog"}},
        {"id2label": {0: "cat", 2: "owl", 1: "dog"}},
        {"id2label": ["cat", "dog", "owl"]},
        {"id2label": {"owl": 2, "cat": 0, "dog": 1}},
        {"label2id": {"owl": 2, "cat": 0, "dog": 1}},
        {"label2id": {"owl": "2", "cat": "0", "dog": "1"}},
        {"label2id": {"2": "owl", "0": "cat", "1": "dog"}},
        {"id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}, "label2id": {"cat": 0, "dog": 1, "owl": 2}},
        {"id2label": dict(enumerate(NAMES)), "label2id": {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}},
        {"label_names": ["cat", "dog", "owl"]},
        {"pretrained_cfg": {"label_names": ["cat", "dog", "owl"]}},
        {"id2label": {"0": " cat ", "1": "dog", "2": "owl"}},
    ],
)
def test_every_shape_gives_the_names_in_order(config: dict[str, Any]) -> None:
    assert class_names_of(config, "config.json") == NAMES


def test_ten_and_more_classes_are_ordered_by_number() -> None:
    table = {str(index): f"class {index}" for index in range(12)}
    shuffled = dict(sorted(table.items()))  # "10" before "2"
    assert class_names_of({"id2label": shuffled}, "config.json") == tuple(f"class {index}" for index in range(12))


def test_two_classes_may_share_a_name() -> None:
    config = {"id2label": {"0": "crane", "1": "tench", "2": "crane"}, "label2id": {"crane": 2, "tench": 1}}
    assert class_names_of(config, "config.json") == ("crane", "tench", "crane")


@pytest.mark.parametrize("config", [{}, {"id2label": {}}, {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}])
def test_placeholders_are_no_names(config: dict[str, Any]) -> None:
    assert class_names_of(config, "config.json") == ()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"id2label": {"0": "cat", "2": "owl"}},
            "id2label of x has 2 classes and none for index 1: number them from 0",
        ),
        ({"id2label": {"1": "cat", "2": "owl"}}, "has 2 classes and none for index 0"),
        ({"id2label": {"a": "cat", "b": "owl"}}, "does not number the classes"),
        ({"id2label": "cat"}, "is str, expected a list or an object of class names"),
        ({"id2label": {"0": "cat", "1": "dog"}, "label2id": {"cat": 1, "dog": 0}}, "label2id of x calls class 1 'cat'"),
    ],
)
def test_what_names_no_classes_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        class_names_of(config, "x")


@pytest.mark.parametrize(
    "text",
    [
        "cat\ndog\nowl\n",
        "\ufeffcat\r\n dog\r\nowl\r\n\r\n",
        '["cat", "dog", "owl"]',
        '{"2": "owl", "1": "dog", "0": "cat"}',
        '{"cat": 0, "dog": 1, "owl": 2}',
        '{"model_type": "vit", "id2label": {"2": "owl", "1": "dog", "0": "cat"}}',
        "0 cat\n1 dog\n2 owl\n",
        "2: owl\n0: cat\n1: dog\n",
        "index,name\n0,cat\n1,dog\n2,owl\n",
        "owl\t2\ncat\t0\ndog\t1\n",
        "class;id\ncat;0\nowl;2\ndog;1\n",
        '[{"id": 2, "name": "owl"}, {"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]',
        '{"0": {"name": "cat"}, "1": {"name": "dog"}, "2": {"name": "owl"}}',
        '{"0": ["n02123045", "cat"], "1": ["n02084071", "dog"], "2": ["n01503061", "owl"]}',
        '{"classes": ["cat", "dog", "owl"]}',
        '{"names": {"2": "owl", "1": "dog", "0": "cat"}, "nc": 3}',
    ],
)
def test_a_file_of_names_has_lines_or_json(tmp_path: Path, text: str) -> None:
    file = tmp_path / "labels"
    file.write_text(text, encoding="utf-8", newline="")
    assert read_class_names(file, 3) == NAMES


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("7 up\n1 dog\n2 owl\n", ("7 up", "1 dog", "2 owl")),
        ("0 cat\ndog\n2 owl\n", ("0 cat", "dog", "2 owl")),
        ("0\n1\n2\n", ("0", "1", "2")),
    ],
)
def test_numbers_that_number_no_lines_belong_to_the_names(tmp_path: Path, text: str, names: tuple[str, ...]) -> None:
    (tmp_path / "labels").write_text(text)
    assert read_class_names(tmp_path / "labels", 3) == names


@pytest.mark.parametrize("value", [{"title": "cat"}, ["a", "cat"], None])
def test_what_is_no_name_is_refused_and_not_shown_as_one(tmp_path: Path, value: Any) -> None:
    (tmp_path / "labels").write_text(json.dumps([value, "dog", "owl"]))
    with pytest.raises(DataError, match="for a class, expected its name"):
        read_class_names(tmp_path / "labels", 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat\ndog\n", "has 2 class names, the model has 3 outputs"),
        ("cat\n\nowl\n", "has no name for class 1: an empty line"),
        ("[1, 2", "begins like JSON and is none"),
        ('{"id2label": {}}', "has 0 class names"),
        (json.dumps({"id2label": {"0": "LABEL_0"}}), "has 0 class names, the model has 3"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "labels"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_class_names(file, 3)
