"""Pages beside the JSON that they show: which JSON a page is of, as its digest in the page.

Files cannot be renamed together, so a process that is killed may leave new JSON beside an earlier page. The JSON comes
first, whoever reads it next says so, and the page can be written again from it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from vitdeploy.artifacts.files import write_together
from vitdeploy.errors import FidelityWarning, warn

_STAMP = re.compile(rb"record-sha256: ([0-9a-f]{64})")
_ENDS = 4096
_HEAD = "<head>\n"


def write_with_pages(record: Path, text: str, pages: Iterable[tuple[Path, str]]) -> None:
    """Write JSON and the pages that show it, each with the digest of the JSON.

    Raises:
        ArtifactError: They cannot be written, or the disk is full; what was there is untouched.
    """
    digest = hashlib.sha256(text.encode()).hexdigest()
    write_together({record: text, **{path: _stamped(page, digest) for path, page in pages}})


def write_page(path: Path, page: str, record: Path) -> None:
    """Write one page of JSON that is there.

    Raises:
        ArtifactError: It cannot be written.
    """
    write_together({path: _stamped(page, hashlib.sha256(record.read_bytes()).hexdigest())})


def _stamped(page: str, digest: str) -> str:
    """Return a page with a comment, which HTML and Markdown have alike: in its head, or at its end."""
    stamp = f"<!-- record-sha256: {digest} -->\n"
    return page.replace(_HEAD, f"{_HEAD}{stamp}", 1) if _HEAD in page else f"{page}\n{stamp}"


def other_pages(record: Path, pages: Iterable[Path]) -> list[Path]:
    """Return the pages that are there and show another JSON than ``record``; such as have no digest are not known."""
    there = [page for page in pages if page.is_file()]
    digest = hashlib.sha256(record.read_bytes()).hexdigest() if there else ""
    return [page for page in there if (found := _digest_of(page)) is not None and found != digest]


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
