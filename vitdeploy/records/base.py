"""What every record shares: immutable, validated, tolerant of keys from a newer version, canonical as JSON."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """An immutable value that is stored in artifacts and reports; readers ignore unknown keys."""

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="null", protected_namespaces=())


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys and no blanks, the form that digests are taken over."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256_of(value: Any) -> str:
    """Return the hexadecimal SHA-256 of ``value``'s canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
