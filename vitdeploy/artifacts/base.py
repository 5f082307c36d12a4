"""An artifact: a file that the ecosystem's own tools open, and the manifest that says what it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from vitdeploy.records import Manifest
from vitdeploy.text import printable, size_text

DIGITS = 12  # of a digest, where it is shown


@dataclass(frozen=True, eq=False, repr=False)
class Artifact:
    """A verified file and its manifest; made by ``open_artifact`` or by a writer, never by hand.

    Artifacts are values: two are equal where kind and payload digest are, wherever the files lie.
    """

    path: Path
    manifest: Manifest
    _stamp: tuple[int, int, int] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_stamp", _stamp(self.path))

    @property
    def digest(self) -> str:
        """The payload digest, by which other artifacts name this one as their parent."""
        return self.manifest.payload_sha256

    @property
    def is_current(self) -> bool:
        """Whether the file has not been written since it was verified, by its size, time and inode."""
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


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ino
