"""What every record shares: immutable, validated, tolerant of keys from a newer version, canonical as JSON."""

from __future__ import annotations

import hashlib
import json
import reprlib
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

from vitdeploy.text import printable

RecordT = TypeVar("RecordT", bound="Record")


class _Shown(str):
    """A text that stands for the value that it describes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


_SHORT = reprlib.Repr()
_SHORT.maxtuple = _SHORT.maxlist = _SHORT.maxdict = 4
_SHORT.maxstring, _SHORT.maxother, _SHORT.maxlevel = 70, 100, 3


class Record(BaseModel):
    """An immutable value that is stored in artifacts and reports; readers ignore unknown keys."""

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="null", protected_namespaces=())

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """Show in one line what is not the default; long lists, tables and texts are cut."""
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if field.is_required() or value != field.get_default(call_default_factory=True):
                yield name, _Shown(_SHORT.repr(value))


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
