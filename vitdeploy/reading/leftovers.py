"""Files of nobody: what systems leave in folders and archives, and what stands in place of a file that is elsewhere.

A browser of files writes its own entries into every folder that it shows, and into every archive that it makes.
"""

from __future__ import annotations

from pathlib import Path

from vitdeploy.errors import ArtifactError
from vitdeploy.reading.regular import read_head

_NAMES = frozenset(
    {
        *("__macosx", "thumbs.db", "desktop.ini", "$recycle.bin", "system volume information", "lost+found"),
        *("@eadir", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "__pycache__"),  # of NAS systems
    }
)
_POINTER = b"version https://git-lfs"
_HEAD = 64
_PAGES = (b"<!doctype html", b"<html")


def is_of_system(name: str) -> bool:
    """Return whether an entry of a folder was left by a file system, a file browser or a NAS."""
    return name.lower() in _NAMES or name == ".DS_Store" or name.startswith("._")


def stands_for_a_file(head: bytes) -> tuple[str, str] | None:
    """Return what a file is that stands in place of another, by its first bytes, and the way to that one."""
    if head.startswith(_POINTER):
        return "the pointer that Git LFS leaves in place of a large file", "'git lfs pull' fetches it"
    if head.lstrip().lower().startswith(_PAGES):
        return "a web page, as a failed download leaves behind", "download the file again"
    return None


def refuse_stand_in(path: Path | str) -> None:
    """Refuse a file that stands in place of another.

    Raises:
        ArtifactError: It does; the line says what it is, and the way to that one.
    """
    if (found := stands_for_a_file(read_head(path, _HEAD))) is not None:
        raise ArtifactError(f"{str(path)!r} is {found[0]}: {found[1]}")
