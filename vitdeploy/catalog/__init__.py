"""The catalogue: every named variant as plain data, one module per family, each with a tuple ``VARIANTS``."""

from __future__ import annotations

import difflib
import fnmatch
import importlib
import pkgutil
from collections.abc import Sequence
from functools import cache

from vitdeploy.catalog.variant import Variant
from vitdeploy.errors import ModelError, UsageError
from vitdeploy.plugins import load_plugins

__all__ = ["Variant", "find", "register", "variant", "variants"]

GROUP = "vitdeploy.families"
_registered: dict[str, Variant] = {}


@cache
def variants() -> dict[str, Variant]:
    """Return all variants by name, families in the order of their modules' names, those of other packages last."""
    table: dict[str, Variant] = {}
    for module in sorted(info.name for info in pkgutil.iter_modules(__path__)):
        for entry in getattr(importlib.import_module(f"{__name__}.{module}"), "VARIANTS", ()):
            if entry.name in table:
                raise ValueError(f"two variants are named {entry.name!r}")
            table[entry.name] = entry
    load_plugins(GROUP)
    return {**table, **_registered}


def register(entries: Sequence[Variant]) -> None:
    """Add variants of a family that is not of this package.

    Raises:
        UsageError: Another variant has one of their names.
    """
    known = variants()
    for entry in entries:
        if known.get(entry.name, entry) != entry:
            raise UsageError(f"there is a model {entry.name!r} already: give the variant another name")
    _registered.update({entry.name: entry for entry in entries})
    variants.cache_clear()


def variant(name: str) -> Variant:
    """Return the variant called ``name``.

    Raises:
        ModelError: There is none; the message names the nearest.
    """
    table = variants()
    if name not in table:
        near = difflib.get_close_matches(name, table, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "'vitdeploy models' lists them"
        raise ModelError(f"there is no model {name!r}: {hint}")
    return table[name]


def find(glob: str = "*") -> list[Variant]:
    """Return the variants whose name or family matches a shell pattern."""
    return [
        entry
        for entry in variants().values()
        if fnmatch.fnmatchcase(entry.name, glob) or fnmatch.fnmatchcase(entry.family, glob)
    ]
