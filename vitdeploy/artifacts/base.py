"""An artifact: a file that the ecosystem's own tools open, and the manifest that says what it is."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from vitdeploy.notebook import html_facts
from vitdeploy.records import Manifest
from vitdeploy.text import printable, size_text

DIGITS = 12  # of a digest, where it is shown


@dataclass(frozen=True, eq=False, repr=False)
class Artifact:
    """A verified file and its manifest; made by ``open_artifact`` or by a writer, never by hand.

    Artifacts are values: two are equal where kind and digest are, wherever the files lie.
    """

    path: Path
    manifest: Manifest
    _stamp: tuple[int, int, int] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_stamp", _stamp(self.path))

    @property
    def digest(self) -> str:
        """What this is, by which other artifacts name it as their parent; see ``records.manifest.identity_of``."""
        return self.manifest.identity

    @property
    def is_current(self) -> bool:
        """Return whether the file has not been written since it was verified, by its size, time and inode."""
        return self._stamp is not None and self._stamp == _stamp(self.path)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Artifact):
            return NotImplemented
        return (self.manifest.kind, self.digest) == (other.manifest.kind, other.digest)

    def __hash__(self) -> int:
        return hash((self.manifest.kind, self.digest))

    def __repr__(self) -> str:
        manifest = self.manifest
        target = f" for {manifest.target}" if manifest.target is not None else ""
        size = size_text(self._stamp[0]) if self._stamp is not None else "no file"
        facts = [manifest.model.name, f"{manifest.precision}{target}", size, self.digest[:DIGITS]]
        return printable(f"<{type(self).__name__} {str(self.path)!r}: {', '.join(filter(None, facts))}>")

    def _repr_html_(self) -> str:
        manifest = self.manifest
        checks = [f"{check.name}: {check.status}" for check in manifest.checks]
        return html_facts(
            self.path.name,
            {
                "kind": manifest.kind,
                "model": manifest.model.name,
                "classes": str(len(manifest.model.classes) or ""),
                "precision": manifest.precision,
                "target": manifest.target or "",
                "size": size_text(self._stamp[0]) if self._stamp is not None else "no file",
                "checks": "\n".join(checks),
                "metrics": "\n".join(f"{name}: {value:.6g}" for name, value in manifest.metrics.items()),
                "made from": "\n".join(f"{role} {digest[:DIGITS]}" for role, digest in manifest.parents.items()),
                "digest": self.digest[:DIGITS],
            },
        )


class ArrayValue:
    """A dataclass with arrays among its fields: two are equal where all their values are, bit for bit."""

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._content() == getattr(other, "_content")()  # noqa: B009 - of the same class

    def __hash__(self) -> int:
        return hash(self._content())

    def _content(self) -> tuple[Any, ...]:
        values = (getattr(self, one.name) for one in fields(self))  # type: ignore[arg-type]
        return tuple(
            (value.dtype.str, value.shape, value.tobytes()) if isinstance(value, np.ndarray) else value
            for value in values
        )


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ino
