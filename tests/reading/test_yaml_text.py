"""YAML as recipes and ``--set`` have it."""

from __future__ import annotations

import time
from typing import Any

import pytest

from vitdeploy.reading import parse_yaml


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
        ("8.9", 8.9),
        ("-3", -3),
        ("010", 10),
        ("09", 9),
        ("1e", "1e"),
        ("3.5.1", "3.5.1"),
        ("0x10", 16),
        ("null", None),
        ("true", True),
        ("yes", "yes"),
        ("off", "off"),
        ("2024-05-01", "2024-05-01"),
        ("[1, 2.0, a]", [1, 2.0, "a"]),
        ("a: &b {c: 1}\nd: *b", {"a": {"c": 1}, "d": {"c": 1}}),
        ("a: &b {c: 1}\nd: {<<: *b, e: 2}", {"a": {"c": 1}, "d": {"c": 1, "e": 2}}),
        ("''", ""),
        ("# nothing", None),
    ],
)
def test_a_value_is_what_it_looks_like(text: str, value: Any) -> None:
    loaded = parse_yaml(text)
    assert loaded == value
    assert type(loaded) is type(value)


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)
MERGE_BOMB = "a0: &a0 {k: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x: {a: 1, b: 2, a: 3}", "duplicate key"),
        ("!!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("!!binary aGk=", "neither a text nor a number"),
        ("!!set {a, b}", "neither a text nor a number"),
        ("a: .inf", "not finite"),
        ("a: [1, -.inf]", "not finite"),
        ("a: .nan", "not finite"),
        ("a: &x [*x]", "stands for nothing before it, or for itself"),
        ("a: &x {b: *x}", "stands for nothing before it, or for itself"),
        ("a: *y", "stands for nothing before it"),
        ("{1: 2}", "the key 1 is no text"),
        ("[" * 3000, "50 levels deep"),
        ("{a: " * 3000, "50 levels deep"),
        ("- " * 3000, "50 levels deep"),
        (BOMB, "more than 20000 values"),
        (MERGE_BOMB, "more than 20000 values"),
        ("a" * 200_000, "200 kB of YAML"),
        ("a: \x1b[31m", "special characters"),
        ("a: \x00", "special characters"),
        ("a: [1, 2", "expected ',' or ']'"),
        ("---\na: 1\n---\nb: 2", "another document"),
    ],
)
def test_what_is_not_plain_or_not_bounded_is_refused_at_once(text: str, reason: str) -> None:
    start = time.monotonic()
    with pytest.raises(ValueError, match="(?s)" + ".*".join(reason.split("…"))) as caught:
        parse_yaml(text)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - start < 5
