"""Regular files: a FIFO, a device, a socket or a folder is refused before anything waits for it."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path
from typing import BinaryIO

from vitdeploy.errors import ArtifactError
from vitdeploy.text import is_text, name_text, size_text

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def kind_of_mode(mode: int) -> str | None:
    """Return what a file is that is not a regular one (``a named pipe``), None for a regular file."""
    return next((words for test, words in _KINDS if test(mode)), None)


def require_regular(path: Path | str) -> os.stat_result:
    """Make sure that a path is a regular file, links followed, and return its status; nothing is opened.

    Raises:
        ArtifactError: There is no such file, it is no regular one, or its links lead in a circle.
    """
    try:
        status = Path(path).stat()
    except (OSError, ValueError) as error:
        raise missing(path, error) from error
    if (kind := kind_of_mode(status.st_mode)) is not None:
        raise ArtifactError(f"{str(path)!r} is {kind}, expected a file")
    return status


def require_text(path: Path | str) -> None:
    """Make sure that a path is text: records keep it, and runtimes open files by it.

    Raises:
        ArtifactError: It has bytes that are no UTF-8.
    """
    if not is_text(str(path)):
        raise ArtifactError(f"the name '{name_text(path)}' is no UTF-8: rename the file or folder")


def open_regular(path: Path | str) -> BinaryIO:
    """Open a regular file for reading; opening never waits for a writer at the other end.

    Raises:
        ArtifactError: It is missing, is no regular file, or may not be read.
    """
    require_regular(path)
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        stream = os.fdopen(os.open(path, flags), "rb")
    except OSError as error:
        raise missing(path, error) from error
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):  # replaced since it was looked at
        stream.close()
        raise ArtifactError(f"{str(path)!r} is not a regular file")
    return stream


def read_bytes(path: Path | str, limit: int | None = None) -> bytes:
    """Return the file's bytes.

    Raises:
        ArtifactError: There is no such file, it is no regular file, it cannot be read, or has more than ``limit``
            bytes.
    """
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if limit is not None and size > limit:
            raise ArtifactError(f"{str(path)!r} has {size_text(size)}, expected at most {size_text(limit)}")
        try:
            return stream.read() if limit is None else stream.read(limit)
        except OSError as error:
            raise missing(path, error) from error


def read_head(path: Path | str, size: int) -> bytes:
    """Return the first bytes of a file, from which its kind can be told.

    Raises:
        ArtifactError: As for ``open_regular``.
    """
    with open_regular(path) as stream:
        try:
            return stream.read(size)
        except OSError as error:
            raise missing(path, error) from error


def sha256_of_file(path: Path | str) -> str:
    """Return the hexadecimal SHA-256 of the file's bytes, read in blocks.

    Raises:
        ArtifactError: As for ``open_regular``.
    """
    digest = hashlib.sha256()
    with open_regular(path) as stream:
        try:
            while block := stream.read(1 << 20):
                digest.update(block)
        except OSError as error:
            raise missing(path, error) from error
    return digest.hexdigest()


def missing(path: Path | str, error: OSError | ValueError) -> ArtifactError:
    """Return the one-line error for a file that cannot be read."""
    if isinstance(error, FileNotFoundError):
        return ArtifactError(f"there is no file {str(path)!r}")
    if isinstance(error, IsADirectoryError):
        return ArtifactError(f"{str(path)!r} is a folder, expected a file")
    if isinstance(error, ValueError):  # an embedded NUL
        return ArtifactError(f"{str(path)!r} is not a name that a file can have")
    if error.errno == errno.ELOOP:
        return ArtifactError(f"cannot read {str(path)!r}: its symbolic links lead in a circle")
    return ArtifactError(f"cannot read {str(path)!r}: {error.strerror or error}")
