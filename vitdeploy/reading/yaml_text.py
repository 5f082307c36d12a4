"""YAML 1.2 from outside: plain finite values, bounded in length, depth and in what its aliases stand for.

``1:8:32`` is a text, ``3e-4`` a number, ``yes`` a text, ``010`` ten, and no key comes twice (YAML 1.2, section 10.3).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, NodeEvent

from vitdeploy.reading.json_text import decode_text
from vitdeploy.reading.regular import read_bytes
from vitdeploy.text import one_line, size_text

LARGEST = 100_000
DEEPEST = 50
MOST_VALUES = 20_000


class _Constructor(SafeConstructor):
    """Makes plain values; a date is the text that it is written as."""


_Constructor.add_constructor("tag:yaml.org,2002:timestamp", SafeConstructor.construct_yaml_str)


def parse_yaml(text: str) -> Any:
    """Return what YAML text holds: tables with text as keys, lists, texts, finite numbers, true, false and null.

    Raises:
        ValueError: It is not YAML, has a tag, a key that comes twice or an infinity, is longer, deeper or larger (with
            every alias replaced by what it stands for) than a recipe ever is, or an alias stands for itself.
    """
    if len(text) > LARGEST:
        raise ValueError(f"{size_text(len(text))} of YAML, expected at most {size_text(LARGEST)}")
    try:
        _refuse_unbounded(text)
        yaml = YAML(typ="safe", pure=True)
        yaml.Constructor = _Constructor
        value = yaml.load(text)
    except YAMLError as error:
        raise ValueError(_reason(error)) from error
    except (RecursionError, AttributeError, TypeError, IndexError, KeyError, AssertionError) as error:
        raise ValueError(f"it cannot be parsed ({type(error).__name__})") from error
    _refuse_unplain(value)
    return value


def read_yaml(path: Path | str) -> Any:
    """Return what a YAML file holds.

    Raises:
        ArtifactError: The file cannot be read.
        ValueError: As ``parse_yaml``.
    """
    return parse_yaml(decode_text(read_bytes(path, LARGEST)))


def _refuse_unbounded(text: str) -> None:
    """Count depth and values, aliases for as much as they stand for, without making any of them."""
    sizes: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = []  # anchor, and the count before it
    count = 0
    for event in YAML(typ="safe", pure=True).parse(text):
        if isinstance(event, AliasEvent):
            if event.anchor not in sizes:
                raise ValueError(f"the alias '*{event.anchor}' stands for nothing before it, or for itself")
            count += sizes[event.anchor]
        elif isinstance(event, CollectionEndEvent):
            anchor, before = open_nodes.pop()
            if anchor is not None:
                sizes[anchor] = count - before
        elif isinstance(event, NodeEvent):
            count += 1
            if isinstance(event, CollectionStartEvent):
                open_nodes.append((event.anchor, count - 1))
            elif event.anchor is not None:
                sizes[event.anchor] = 1
        if len(open_nodes) > DEEPEST:
            raise ValueError(f"more than {DEEPEST} levels deep")
        if count > MOST_VALUES:
            raise ValueError(f"more than {MOST_VALUES} values, aliases counted for what they stand for")


def _refuse_unplain(value: Any) -> None:
    if isinstance(value, dict):
        for key, entry in value.items():
            if not isinstance(key, str):
                raise ValueError(f"the key {key!r} is no text: put it in quotation marks")
            _refuse_unplain(entry)
    elif isinstance(value, list):
        for entry in value:
            _refuse_unplain(entry)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"the number {value!r} is not finite")
    elif value is not None and not isinstance(value, str | bool | int | float):
        raise ValueError(f"a value of the type {type(value).__name__} is neither a text nor a number")


def _reason(error: YAMLError) -> str:
    problem = getattr(error, "problem", None)
    mark = getattr(error, "problem_mark", None)
    if problem is None:
        return one_line(error)
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
    return f"{where}{problem}"
