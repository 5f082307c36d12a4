"""What every record shares: immutable, validated, tolerant of keys from a newer version, canonical as JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

from vitdeploy.text import printable

RecordT = TypeVar("RecordT", bound="Record")


class Record(BaseModel):
    """An immutable value that is stored in artifacts and reports; readers ignore unknown keys."""

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="null", protected_namespaces=())


def printable_record(record: RecordT) -> RecordT:
    """Return a record in which texts and keys have escapes for what a terminal or a browser would act on."""
    return type(record).model_validate(_printable(record.model_dump(by_alias=True)))


def _printable(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {_printable(key): _printable(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_printable(entry) for entry in value)
    return value


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys and no blanks, the form that digests are taken over."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256_of(value: Any) -> str:
    """Return the hexadecimal SHA-256 of ``value``'s canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
