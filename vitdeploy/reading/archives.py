"""Zip archives: what they claim to hold is compared with what they are before any of it is unpacked."""

from __future__ import annotations

import math
import shutil
import stat
import tokenize
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.errors import ArtifactError
from vitdeploy.reading.leftovers import is_of_system
from vitdeploy.reading.regular import require_regular
from vitdeploy.text import one_line, size_text

ALWAYS_FINE = 256 << 20
MOST_MEMBERS = 1000
MOST_GROWTH = 30
"""Trained weights shrink to nine tenths in a zip archive; zeros, of which bombs are made, to a thousandth."""
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""How members may be compressed: what bundles, NumPy and PyTorch write. LZMA claims gigabytes for its dictionary."""
LONGEST_NAME = 255
"""Bytes of a file's name, of which most file systems keep no more."""


def check_zip(path: Path | str) -> list[zipfile.ZipInfo]:
    """Return the members of an archive that unpacks to a size in proportion to its own.

    Raises:
        ArtifactError: It is missing, is not a whole zip archive, is compressed otherwise than by deflate, or claims to
            unpack to more than thirty times its size and more than 256 MB.
    """
    size = require_regular(path).st_size
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
        if any(member.header_offset >= size for member in members):
            raise zipfile.BadZipFile("a member begins behind the end")
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError) as error:
        raise ArtifactError(f"{str(path)!r} is a truncated or damaged archive") from error
    claimed = sum(member.file_size for member in members)
    if claimed > max(ALWAYS_FINE, MOST_GROWTH * size):
        raise ArtifactError(
            f"{str(path)!r} has {size_text(size)} and claims to unpack to {size_text(claimed)}: weights do not "
            f"compress so far, so it is refused"
        )
    if other := [member for member in members if member.compress_type not in METHODS]:
        raise ArtifactError(
            f"{str(path)!r} holds {other[0].filename!r}, compressed by method {other[0].compress_type} of zip, "
            "expected deflate (8) or none: refused"
        )
    return members


def top_folder(names: Iterable[str]) -> str:
    """Return the one folder in which all files of an archive lie, with its slash; "" where they lie at the top.

    File browsers make an archive of a folder so. What systems leave in archives does not count.
    """
    own = [name for name in map(plain_name, names) if not _is_left(name)]
    tops = {name.partition("/")[0] for name in own if "/" in name}
    (top,) = tops if len(tops) == 1 else ("",)
    is_plain = top not in ("", ".", "..") and "\\" not in top and ":" not in top
    return f"{top}/" if is_plain and all("/" in name for name in own) else ""


def plain_name(name: str) -> str:
    """Return the name of a member with ``/`` between its parts, and without ``./`` in front.

    Archives made by PowerShell 5 have backslashes there.
    """
    return name.replace("\\", "/").removeprefix("./")


def _is_left(name: str) -> bool:
    return any(map(is_of_system, name.split("/")))


def unpack_zip(path: Path | str, folder: Path) -> None:
    """Unpack an archive of plain files into an empty folder; nothing is written elsewhere.

    All of them are at its top, or in one folder there. What systems leave in archives is passed over.

    Raises:
        ArtifactError: It is refused by ``check_zip`` or damaged, holds more than 1000 files, or a folder, a link, an
            encrypted file, a path, a name that no terminal shows, or one name twice, on any file system.
        OSError: A file cannot be written.
    """
    members = check_zip(path)
    if len(members) > MOST_MEMBERS:
        raise ArtifactError(f"{str(path)!r} holds {len(members)} files, expected at most {MOST_MEMBERS}: refused")
    top, seen = top_folder(member.orig_filename for member in members), dict[str, str]()
    files: list[tuple[str, zipfile.ZipInfo]] = []
    for member in members:
        name = plain_name(member.orig_filename)
        if not _is_left(name) and (name != top or not member.orig_filename):
            _check_member(member, name.removeprefix(top), seen, repr(str(path)))
            files.append((name.removeprefix(top), member))
    try:
        with zipfile.ZipFile(path) as archive:
            for name, member in files:
                target = folder / name
                with archive.open(member) as source, target.open("xb") as stream:
                    shutil.copyfileobj(source, stream, 1 << 20)
                if target.stat().st_size != member.file_size:
                    raise ArtifactError(f"{str(path)!r} is damaged: {member.filename!r} is shorter than it claims")
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        raise ArtifactError(f"{str(path)!r} is a truncated or damaged archive") from error


def _check_member(member: zipfile.ZipInfo, name: str, seen: dict[str, str], where: str) -> None:
    """Refuse what is no plain file; ``name`` is the member's as it is written: Python ends one at a NUL."""
    mode = member.external_attr >> 16
    if name in ("", ".", "..") or any(character in name for character in "/\\:"):
        raise ArtifactError(f"{where} holds {name!r}, expected plain names without folders: refused")
    if not name.isprintable() or len(name.encode("utf8", "surrogatepass")) > LONGEST_NAME:
        raise ArtifactError(
            f"{where} holds {one_line(repr(name), 80)}, expected names of printable characters and at most "
            f"{LONGEST_NAME} bytes: refused"
        )
    if mode and not stat.S_ISREG(mode) and stat.S_IFMT(mode):
        raise ArtifactError(f"{where} holds {name!r}, which is a link or no plain file: refused")
    if member.flag_bits & 1:
        raise ArtifactError(f"{where} holds {name!r}, which is encrypted: refused")
    folded = unicodedata.normalize("NFC", name).casefold()
    if folded in seen:
        other = seen[folded]
        twice = f"{name!r} twice" if other == name else f"{other!r} and {name!r}, which some disks take for one name"
        raise ArtifactError(f"{where} holds {twice}: refused")
    seen[folded] = name


def read_npz(path: Path | str) -> dict[str, NDArray[Any]]:
    """Return the arrays of an ``.npz``; each is as large as its member of the archive before memory is taken for it.

    Raises:
        ArtifactError: The archive is refused by ``check_zip`` or damaged, or holds objects, which are code.
    """
    members = check_zip(path)
    where = repr(str(path))
    try:
        with zipfile.ZipFile(path) as archive:
            for member in members:
                _check_array(archive, member, where)
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except ArtifactError:
        raise
    except (
        *(zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, KeyError, TypeError),
        *(NotImplementedError, SyntaxError, OverflowError, RuntimeError),
    ) as error:
        raise ArtifactError(f"{where} is a truncated or damaged .npz") from error


def _check_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, where: str) -> None:
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        try:
            shape, _, dtype = read(stream)
        except (tokenize.TokenError, MemoryError) as error:  # NumPy reads a header as Python, and it may be none
            raise ArtifactError(f"{where} is a truncated or damaged .npz") from error
        if dtype.hasobject:
            raise ArtifactError(f"{where} holds object arrays, which are code, not weights: refused")
        claimed, held = math.prod(shape) * dtype.itemsize, member.file_size - stream.tell()
    if claimed != held:
        raise ArtifactError(
            f"{where} is damaged: {member.filename!r} claims {size_text(claimed)} and holds {size_text(held)}"
        )
