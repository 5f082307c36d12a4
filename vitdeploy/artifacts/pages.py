"""Pages beside the JSON that they show: which JSON a page is of, as its digest in the page.

Files cannot be renamed together, so a process that is killed may leave new JSON beside an earlier page. The JSON comes
first, whoever reads it next says so, and the page can be written again from it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from vitdeploy.artifacts.files import FilesTogether, together, write_atomically
from vitdeploy.errors import FidelityWarning, warn
from vitdeploy.reading import sha256_of_file

_STAMP = re.compile(rb"record-sha256: ([0-9a-f]{64})")
_ENDS = 4096
_HEAD = "<head>\n"


def write_with_pages(
    record: Path, text: str, pages: Iterable[tuple[Path, str]], files: FilesTogether | None = None
) -> None:
    """Write JSON and the pages that show it, each with the digest of the JSON.

    Args:
        record: The JSON file.
        text: Its content.
        pages: Path and text of each page.
        files: Others with which they take their places, None for none.
    Raises:
        ArtifactError: They cannot be written, or the disk is full; what was there is untouched.
    """
    digest = hashlib.sha256(text.encode()).hexdigest()
    with together(files) as written:
        for path, page in pages:
            written.write(path, _stamped(page, digest))
        written.write(record, text)


def write_page(path: Path, page: str, record: Path) -> None:
    """Write one page of JSON that is there.

    Raises:
        ArtifactError: It cannot be written.
    """
    write_atomically(path, _stamped(page, hashlib.sha256(record.read_bytes()).hexdigest()))


def _stamped(page: str, digest: str) -> str:
    """Return a page with a comment, which HTML and Markdown have alike: in its head, or at its end."""
    stamp = f"<!-- record-sha256: {digest} -->\n"
    return page.replace(_HEAD, f"{_HEAD}{stamp}", 1) if _HEAD in page else f"{page}\n{stamp}"


def other_pages(record: Path, pages: Iterable[Path]) -> list[Path]:
    """Return the pages that are there and show another JSON than ``record``; such as have no digest are not known."""
    there = [page for page in pages if page.is_file()]
    digest = hashlib.sha256(record.read_bytes()).hexdigest() if there else ""
    return [page for page in there if (found := _digest_of(page)) is not None and found != digest]


def other_files(record: Path, digests: Mapping[str, str]) -> list[Path]:
    """Return the files beside JSON that are not those which it names with their SHA-256; what is gone is none."""
    there = [(record.with_name(name), digest) for name, digest in digests.items()]
    return [path for path, digest in there if path.is_file() and sha256_of_file(path) != digest]


def _digest_of(page: Path) -> str | None:
    with page.open("rb") as stream:
        found = _STAMP.search(stream.read(_ENDS))
        if found is None:
            stream.seek(max(0, page.stat().st_size - _ENDS))
            found = _STAMP.search(stream.read())
    return None if found is None else found[1].decode()


def warn_of_other_pages(record: Path, pages: Iterable[Path], remedy: str) -> None:
    """Warn where pages show another JSON; ``remedy`` writes them again."""
    if names := " and ".join(page.name for page in other_pages(record, pages)):
        warn(f"writing was interrupted: beside {str(record)!r}, {names} of an earlier one: {remedy}", FidelityWarning)
