"""What makes two trainings one, so that one may go on from the other's state; and in words, what keeps them apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from vitdeploy.records import Manifest

SHOWN = 6
"""How many differences are named."""
_PARENTS = {"data": "other data", "weights": "other weights", "teacher": "another teacher"}
_PATHS = {"precision": "hardware.precision"}
"""Options that stand elsewhere in their key than a user sets them."""


@dataclass(frozen=True)
class Identity:
    """``key`` decides whether two trainings are one; ``values`` are JSON values that explain a difference."""

    key: str
    values: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, manifest: Manifest) -> Identity:
        """Return the identity of the training that is to write a checkpoint with this manifest."""
        record = manifest.model_dump(mode="json", include={"model", "preprocess", "parents", "options"})
        return cls(manifest.key or "", record)

    def difference(self, earlier: Identity) -> str:
        """Return what the earlier training had otherwise, as ``epochs=2 and not 3``; "" where nothing tells."""
        found = list(_differences(earlier.values, self.values))
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        return f"{', '.join(found[:SHOWN])}{more}"


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    if not before or not now:
        return
    for role, text in _PARENTS.items():
        if before["parents"].get(role) != now["parents"].get(role):
            yield text
    first, second = before["model"], now["model"]
    if first["name"] != second["name"]:
        yield f"model={first['name']!r} and not {second['name']!r}"
    elif first["classes"] != second["classes"]:
        yield "other names of classes"
    else:
        changed = _changed(first["arguments"], second["arguments"])
        yield from (f"arguments={{{name!r}: {old!r}}} and not {new!r}" for name, old, new in changed)
    if before["preprocess"] != now["preprocess"]:
        yield "another preprocessing"
    for name, old, new in _changed(before["options"], now["options"]):
        yield f"{_PATHS.get(name, name)}={old!r} and not {new!r}"


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield the dotted names whose values differ, with both values; None for one that is not there."""
    for name in dict.fromkeys((*before, *now)):
        old, new = before.get(name), now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from ((f"{name}.{part}", one, other) for part, one, other in _changed(old, new))
        elif old != new:
            yield name, old, new
