"""``--set NAME=VALUE`` and ``--argument NAME=VALUE``: values as YAML has them, names with dots for what is nested."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def parse_pairs(option: str, pairs: Iterable[str] | None) -> dict[str, Any]:
    """Return name → value of each ``NAME=VALUE``; a value is a number, true, null, a list …, else a text.

    Raises:
        UsageError: There is no ``=``, a name comes twice, or the value is not YAML.
    """
    from vitdeploy.errors import UsageError

    values: dict[str, Any] = {}
    for pair in pairs or ():
        name, found, text = pair.partition("=")
        if not found or not name:
            raise UsageError(f"{option} is {pair!r}, expected NAME=VALUE")
        if name in values:
            raise UsageError(f"{option} names {name!r} twice: give it once")
        values[name] = parse_value(option, text)
    return values


def parse_value(option: str, text: str) -> Any:
    """Return one value.

    Raises:
        UsageError: It is not YAML.
    """
    from vitdeploy.errors import UsageError
    from vitdeploy.reading import parse_yaml

    try:
        return parse_yaml(text)
    except ValueError as error:
        raise UsageError(f"{option} has the value {text!r}, which is not YAML: {error}") from error


def put(values: dict[str, Any], name: str, value: Any) -> None:
    """Set a value by its dotted name in nested dictionaries."""
    *groups, last = name.split(".")
    for group in groups:
        nested = values.get(group)
        values[group] = nested = dict(nested) if isinstance(nested, dict) else {}
        values = nested
    values[last] = value
