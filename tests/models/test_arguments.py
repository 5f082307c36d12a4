"""Arguments of a model are checked by the types of its constructor, before any of its arithmetic meets them."""

from __future__ import annotations

from typing import Any

import pytest

from vitdeploy.errors import ModelError
from vitdeploy.models.registry import create_model


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("depth", 1.5, "depth is 1.5, expected a whole number"),
        ("depth", True, "depth is True, expected a whole number"),
        ("depth", None, "depth is None, expected a whole number"),
        ("width", "64", "width is '64', expected a whole number"),
        ("mlp_ratio", "x", "mlp_ratio is 'x', expected a number"),
        ("pool", "max", "pool is 'max', expected one of cls, mean"),
        ("class_token", 3, "class_token is 3, expected true or false or null"),
        ("image_size", "abc", "image_size is 'abc', expected a whole number or a list, each entry a whole number"),
        ("image_size", [8], r"image_size is \[8\], expected a positive number of pixels"),
        ("image_size", [8, "x"], "expected a whole number or a list, each entry a whole number"),
    ],
)
def test_a_value_of_another_type_is_refused_by_name(name: str, value: Any, expected: str) -> None:
    with pytest.raises(ModelError, match=expected):
        create_model("vit", **{"image_size": 8, "patch": 2, "width": 8, "depth": 1, "heads": 2, name: value})


def test_whole_numbers_pass_where_a_number_is_expected_and_tuples_where_a_list_is() -> None:
    create_model("vit", image_size=(8, 4), patch=2, width=8, depth=1, heads=2, mlp_ratio=2, num_classes=2)
