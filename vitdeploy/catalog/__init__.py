"""The catalogue: every named variant as plain data, one module per family, each with a tuple ``VARIANTS``."""

from __future__ import annotations

import difflib
import fnmatch
import importlib
import pkgutil
from collections.abc import Sequence
from functools import cache

from vitdeploy.catalog.names import loosely, with_names
from vitdeploy.catalog.variant import Variant
from vitdeploy.errors import ModelError, UsageError
from vitdeploy.plugins import load_plugins

__all__ = ["Variant", "canonical", "list_models", "register", "resolve", "variant", "variants"]

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
            table[entry.name] = with_names(entry)
    load_plugins(GROUP)
    return {**table, **_registered}


def register(entries: Sequence[Variant]) -> None:
    """Add variants of a family that is not of this package.

    Raises:
        UsageError: Another variant has one of their names.
    """
    known, entries = variants(), [with_names(entry) for entry in entries]
    for entry in entries:
        if known.get(entry.name, entry) != entry:
            raise UsageError(f"there already is a model {entry.name!r}: give the variant another name")
    _registered.update({entry.name: entry for entry in entries})
    variants.cache_clear()
    _other_names.cache_clear()


def variant(name: str) -> Variant:
    """Return the variant called ``name``, by its own name or another that people know it by.

    Raises:
        ModelError: There is none; the message names the nearest.
    """
    found = resolve(name)
    if found is None:
        raise ModelError(f"there is no model {name!r}: {_nearest(name)}")
    return found


def resolve(name: str) -> Variant | None:
    """Return the variant that ``name`` means, None where there is none."""
    table = variants()
    if name in table:
        return table[name]
    exact, loose = _other_names()
    key = exact.get(name) or loose.get(loosely(name))
    return table[key] if key else None


def canonical(name: str) -> str:
    """Return the catalogue's own name of a model that ``name`` means, else ``name`` as it is."""
    found = resolve(name)
    return name if found is None else found.name


def list_models(glob: str = "*") -> list[Variant]:
    """Return the variants with a name, another name or a family that matches a shell pattern."""
    return [
        entry
        for entry in variants().values()
        if any(fnmatch.fnmatchcase(name, glob) for name in (entry.name, entry.family, *entry.aliases))
    ]


@cache
def _other_names() -> tuple[dict[str, str], dict[str, str]]:
    """Return variants' names by other names: as they are written, and loosely where only one variant is meant."""
    exact: dict[str, str] = {}
    loose: dict[str, set[str]] = {}
    for entry in variants().values():
        loose.setdefault(loosely(entry.name), set()).add(entry.name)
    own = set(loose)
    for entry in variants().values():
        for name in entry.aliases:
            exact.setdefault(name, entry.name)
            if loosely(name) not in own:
                loose.setdefault(loosely(name), set()).add(entry.name)
    return exact, {key: next(iter(names)) for key, names in loose.items() if len(names) == 1}


def _nearest(name: str) -> str:
    """Return the names that are nearest to one, each with the model that it means."""
    table, (others, _) = variants(), _other_names()
    loose = {loosely(known): known for known in (*others, *table)}
    near = [loose[key] for key in difflib.get_close_matches(loosely(name), loose, n=6)]
    meant: dict[str, str] = {}
    for known in near:
        meant.setdefault(others.get(known, known), known)
    found = [known if known == own else f"{known} ({own})" for own, known in meant.items()][:3]
    return f"did you mean {', '.join(found)}?" if found else "vd.list_models() lists them"
