"""An artifact: a file that the ecosystem's own tools open, and the manifest that says what it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vitdeploy.records import Manifest


@dataclass(frozen=True)
class Artifact:
    """A verified file and its manifest; made by ``open_artifact`` or by a writer, never by hand."""

    path: Path
    manifest: Manifest

    @property
    def digest(self) -> str:
        """The payload digest, by which other artifacts name this one as their parent."""
        return self.manifest.payload_sha256
