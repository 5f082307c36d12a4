"""JSON from outside: finite numbers, at most 200 levels deep, at most 32 MB."""

from __future__ import annotations

import codecs
import json
import math
import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json

from vitdeploy.errors import ArtifactError
from vitdeploy.reading.regular import read_bytes
from vitdeploy.text import size_text

LARGEST = 32 << 20
_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_MAY_OVERFLOW = re.compile(r"[eE]\+?[0-9]{3,}|[0-9]{300,}")


def decode_text(data: bytes) -> str:
    """Return the text of a file in UTF-8, or in UTF-16 where it begins with that mark, as editors on Windows write it.

    Raises:
        ValueError: It is neither.
    """
    mark, encoding = next(((mark, name) for mark, name in _MARKS if data.startswith(mark)), (b"", "utf-8"))
    return data[len(mark) :].decode(encoding)


def parse_json(data: bytes | str, *, unique_keys: bool = False) -> Any:
    """Return what JSON text holds.

    Args:
        data: The text; bytes may begin with a mark of UTF-8 or UTF-16.
        unique_keys: Refuse a key that comes twice in one table, of which otherwise the last counts.
    Raises:
        ValueError: It is not JSON, is too long or too deep, or has NaN, an infinity or a number that no float holds.
    """
    if len(data) > LARGEST:
        raise ValueError(f"{size_text(len(data))} of JSON, expected at most {size_text(LARGEST)}")
    text = decode_text(data) if isinstance(data, bytes) else data
    value = from_json(text.encode(), allow_inf_nan=False)  # lone surrogates in ``text`` end here
    if _MAY_OVERFLOW.search(text) is not None:
        _refuse_infinite(value)
    return json.loads(text, object_pairs_hook=_once) if unique_keys else value


def read_json(path: Path | str, expected: str = "JSON") -> Any:
    """Return what a JSON file holds.

    Args:
        path: A regular file.
        expected: What the error says that the file should be: ``a report.json of vd.bench()``.
    Raises:
        ArtifactError: The file cannot be read, or ``parse_json`` refuses it.
    """
    try:
        return parse_json(read_bytes(path, LARGEST))
    except ValueError as error:
        raise ArtifactError(f"{str(path)!r} is not JSON ({error}): expected {expected}") from error


def first_problem(error: ValidationError) -> str:
    """Return where and what the first problem of a record is, in one line: ``rows.0.name: Field required``."""
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    if not first["loc"] and first["type"] == "value_error":
        return message  # of a check of ours, which names the fields
    return f"{'.'.join(map(str, first['loc'])) or 'the whole'}: {message}"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is there twice")
    return table


def _refuse_infinite(value: Any) -> None:
    open_values = [value]
    while open_values:
        one = open_values.pop()
        if isinstance(one, dict):
            open_values.extend(one.values())
        elif isinstance(one, list):
            open_values.extend(one)
        elif isinstance(one, int | float) and not _is_finite(one):
            raise ValueError("a number is too large for a float")


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:
        return False
