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
_HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_SIGNATURES = {
    b"\xff\x0a": "JPEG XL",
    b"\x00\x00\x00\x0cJXL ": "JPEG XL",
    b"%PDF-": "PDF",
    b"%!PS": "PostScript",
    b"8BPS": "a document of Photoshop",
    b"v/1\x01": "OpenEXR",
    b"SIMPLE  =": "FITS",
    b"\x93NUMPY": "an array of NumPy",
    b"PK\x03\x04": "a zip archive",
    b"\x1a\x45\xdf\xa3": "a video of Matroska or WebM",
    b"\x00\x00\x01\x00": "an icon of Windows",
}
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


def format_of(head: bytes) -> str | None:
    """Return the name of a file's format, by its first bytes, where it is one that Pillow or vitdeploy does not read.

    Source: the signatures in ISO/IEC 23008-12 (the brands of HEIF) and 18181-2 (JPEG XL), RFC 8118, RFC 9559 and the
    formats' own documents.
    """
    if head[4:8] == b"ftyp":
        brand = head[8:12]
        return "HEIC" if brand in _HEIF else "AVIF" if brand in (b"avif", b"avis") else "a video of MP4 or QuickTime"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "a video of AVI"
    if b"<svg" in head[:_HEAD].lower():
        return "SVG"
    return next((name for signature, name in _SIGNATURES.items() if head.startswith(signature)), None)


def refuse_stand_in(path: Path | str) -> None:
    """Refuse a file that stands in place of another.

    Raises:
        ArtifactError: It does; the line says what it is, and the way to that one.
    """
    if (found := stands_for_a_file(read_head(path, _HEAD))) is not None:
        raise ArtifactError(f"{str(path)!r} is {found[0]}: {found[1]}")
