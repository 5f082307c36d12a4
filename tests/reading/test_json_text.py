"""JSON from outside."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from vitdeploy.errors import ArtifactError
from vitdeploy.reading import decode_text, parse_json, read_json


@pytest.mark.parametrize(
    "value",
    [{"a": [1, 2.5, "é", None, True]}, [], "x", 1e308, 2**70, {"nested": {"a": {"b": [[[1]]]}}}],
)
def test_what_json_holds_comes_back(value: Any) -> None:
    assert parse_json(json.dumps(value)) == value
    assert parse_json(json.dumps(value).encode()) == value


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_of_windows_editors_is_read(encoding: str) -> None:
    assert parse_json('{"Katze": "chat à l’eau"}'.encode(encoding)) == {"Katze": "chat à l’eau"}
    assert decode_text("é\nß".encode(encoding)) == "é\nß"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 5000 + "]" * 5000, "recursion limit"),
        ('{"a":' * 5000 + "1" + "}" * 5000, "recursion limit"),
        ("NaN", "expected value"),
        ('{"a": Infinity}', "expected value"),
        ('{"a": [1, -Infinity]}', "invalid number"),
        ('{"a": 1e999}', "too large for a float"),
        ('{"a": [{"b": -2E+400}]}', "too large for a float"),
        ("1" * 400, "too large for a float"),
        ("1" * 6000, "out of range"),
        ('"\\ud800"', "escape"),
        ("[1,]", "trailing comma"),
        ("", "EOF"),
        ("\x00", "expected value"),
    ],
)
def test_what_is_not_finite_or_not_bounded_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_json(text)


def test_numbers_that_only_look_large_pass() -> None:
    assert parse_json('{"a": "1e999", "b": 1e300, "c": 1e-400}') == {"a": "1e999", "b": 1e300, "c": 0.0}
    assert all(math.isfinite(number) for number in parse_json("[1e300, 0.1e308]"))


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(ValueError, match="utf-8"):
        parse_json(b"\xff\xfe\xfd"[1:])


def test_keys_may_be_asked_to_be_unique() -> None:
    assert parse_json('{"a": 1, "a": 2}') == {"a": 2}
    with pytest.raises(ValueError, match="'a' is there twice"):
        parse_json('{"a": 1, "a": 2}', unique_keys=True)


def test_a_file_says_what_was_expected(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("nonsense")
    with pytest.raises(ArtifactError, match=r"x\.json' is not JSON \(.*\): expected a plan"):
        read_json(tmp_path / "x.json", "a plan")


def test_a_file_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "x.json").open("wb") as stream:
        stream.truncate(40 << 30)
    with pytest.raises(ArtifactError, match=r"has 42\.9 GB, expected at most 33\.6 MB"):
        read_json(tmp_path / "x.json")
