"""YAML as recipes and ``--set`` have it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import yaml

from vitdeploy.pipeline.yaml_text import load_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1:8:32", "1:8:32"),
        ("batch: 1:8:32", {"batch": "1:8:32"}),
        ("12:30:45.5", "12:30:45.5"),
        ("3e-4", 3e-4),
        ("1E5", 1e5),
        ("-.5", -0.5),
        ("1.", 1.0),
        (".inf", math.inf),
        ("8.9", 8.9),
        ("-3", -3),
        ("010", 10),
        ("09", 9),
        ("1e", "1e"),
        ("3.5.1", "3.5.1"),
        ("0x10", "0x10"),
        ("null", None),
        ("true", True),
        ("[1, 2.0, a]", [1, 2.0, "a"]),
        ("''", ""),
    ],
)
def test_a_value_is_what_it_looks_like(text: str, value: Any) -> None:
    loaded = load_yaml(text)
    assert loaded == value
    assert type(loaded) is type(value)


def test_a_key_that_comes_twice_is_refused() -> None:
    with pytest.raises(yaml.YAMLError, match="the key 'a' comes twice"):
        load_yaml("x: {a: 1, b: 2, a: 3}")


def test_nothing_but_plain_values_is_made() -> None:
    with pytest.raises(yaml.YAMLError, match="could not determine a constructor"):
        load_yaml("!!python/object/apply:os.getcwd []")
