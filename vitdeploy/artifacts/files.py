"""Files that are either the old one or the whole new one, never half of it."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy.errors import ArtifactError

if TYPE_CHECKING:
    from types import TracebackType

    from numpy.typing import NDArray

TEMPORARY_PREFIX = ".vitdeploy-"


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is synced and renamed to ``path``, else removed.

    Raises:
        ArtifactError: ``path`` is no regular file, the folder cannot be written, or the disk is full; ``path`` is as it
            was before.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():  # a device, which the rename below would replace
            raise ArtifactError(f"{str(path)!r} is no regular file, so nothing is written there")
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, suffix=path.suffix, dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise write_error(path, error) from error
    temporary = Path(name)
    try:
        yield temporary
        _sync(temporary)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``path``; on success its files are synced and it takes the place of ``path``.

    Modes are those of the umask, whoever wrote a file into it: safetensors keeps its own for the owner alone.
    A folder that was there exchanges its name with the new one in a single step, and is removed last: a kill at any
    point leaves the old one or the new one. Where the file system knows no such step, the old one is moved aside first,
    and a kill between the two renames leaves it there. Whether it may be replaced is the caller's question.

    Raises:
        ArtifactError: The place cannot be written, or the disk is full; ``path`` is as it was before.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=path.parent))
    except OSError as error:
        raise write_error(path, error) from error
    aside = temporary.with_name(temporary.name + "-old")
    try:
        yield temporary
        for entry in [*temporary.rglob("*"), temporary]:
            _sync(entry)
            entry.chmod((0o777 if entry.is_dir() else 0o666) & ~_umask())
        if path.exists() and _exchange(temporary, path):
            aside = temporary
        else:
            _replace(temporary, path, aside)
        _sync(path.parent)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if aside.is_symlink():
            aside.unlink()
        shutil.rmtree(aside, ignore_errors=True)


def _replace(temporary: Path, path: Path, aside: Path) -> None:
    if path.exists():
        path.replace(aside)
    try:
        temporary.replace(path)
    except OSError:
        if aside.exists():
            aside.replace(path)
        raise


def _exchange(one: Path, other: Path) -> bool:
    """Let two names change places in one step; return whether the system did: Linux can on most of its file systems."""
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename is not None and rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write ``data`` (text as UTF-8) to ``path``, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


class FilesTogether:
    """Files that take their places together: at the end of a ``with`` block, when all of them are on the disk.

    Where the block fails, on a full disk too, what was there stays. No system renames several files at once, so a kill
    may come between two of them: the file that was written last takes its place first, and should be the one that says
    what the others are.
    """

    def __init__(self) -> None:
        self._written = ExitStack()

    def __enter__(self) -> FilesTogether:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return self._written.__exit__(kind, error, traceback)

    @contextmanager
    def path(self, path: Path) -> Iterator[Path]:
        """Yield a temporary path beside ``path``; what the block has written there is on the disk after it.

        Raises:
            ArtifactError: As ``atomic_path``.
        """
        with ExitStack() as this:
            temporary = this.enter_context(atomic_path(path))
            yield temporary
            _sync(temporary)
            self._written.push(this.pop_all())

    def write(self, path: Path, data: bytes | str) -> str:
        """Write ``data`` (text as UTF-8), and return its SHA-256.

        Raises:
            ArtifactError: As ``atomic_path``.
        """
        content = data.encode() if isinstance(data, str) else data
        with self.path(path) as temporary:
            temporary.write_bytes(content)
        return hashlib.sha256(content).hexdigest()


def together(files: FilesTogether | None) -> AbstractContextManager[FilesTogether]:
    """Return files whose block a caller ends, or new ones that take their places at the end of this block."""
    return FilesTogether() if files is None else nullcontext(files)


def save_tensors(path: Path, tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file; what the system refuses is an ``OSError``, which safetensors itself hides.

    Raises:
        OSError: It cannot be written, for instance because the disk is full.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        save_file(dict(tensors), path, metadata=None if metadata is None else dict(metadata))
    except SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise
        raise OSError(int(code.group(1)), os.strerror(int(code.group(1))), str(path)) from error


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_error(path: Path, error: OSError) -> ArtifactError:
    """Return the one-line error for a file that cannot be written."""
    if error.errno == errno.ENOSPC:
        return ArtifactError(f"the disk is full: {str(path)!r} was not written, what was there before is untouched")
    return ArtifactError(f"cannot write {str(path)!r}: {error.strerror or error}")
