"""Files that are either the old one or the whole new one, never half of it."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy.errors import ArtifactError

if TYPE_CHECKING:
    from numpy.typing import NDArray

TEMPORARY_PREFIX = ".vitdeploy-"
KIND_OF_SUFFIX = {
    ".safetensors": "a checkpoint",
    ".onnx": "an ONNX file",
    ".engine": "an engine file",
    ".plan": "an engine file",
}


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is synced and renamed to ``path``, else removed.

    Raises:
        ArtifactError: The folder cannot be written, or the disk is full; ``path`` is as it was before.
    """
    path = Path(path)
    try:
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

    A folder that was there is moved aside first and removed last: a kill at any point leaves the old one, the new one,
    or (between two renames) neither, never half of one. Whether it may be replaced is the caller's question.

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
        temporary.chmod(0o777 & ~_umask())
        if path.exists():
            path.replace(aside)
        try:
            temporary.replace(path)
        except OSError:
            if aside.exists():
                aside.replace(path)
            raise
        _sync(path.parent)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if aside.is_symlink():
            aside.unlink()
        shutil.rmtree(aside, ignore_errors=True)


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write ``data`` (text as UTF-8) to ``path``, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


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


def refuse_unwritable(path: Path, what: str) -> None:
    """Raise now, rather than after minutes of work, where ``what`` (``an engine file``) could not be written.

    A name that belongs to another kind of file is refused too: most often it is the input, named by mistake.

    Raises:
        ArtifactError: ``path`` is a folder, lies where nothing can be written, or is called like another kind of file.
    """
    belongs = KIND_OF_SUFFIX.get(path.suffix, what)
    if belongs != what:
        raise ArtifactError(f"{str(path)!r} is the name of {belongs}, and this writes {what}: choose another name")
    if path.is_dir():
        raise ArtifactError(f"{str(path)!r} is a folder, expected the name of {what}")
    _refuse_unwritable_parent(path)


def refuse_unwritable_folder(path: Path) -> None:
    """Raise now where no files could be written into the folder ``path``, which need not be there yet.

    Raises:
        ArtifactError: ``path`` is a file, or lies where nothing can be written.
    """
    if path.exists() and not path.is_dir():
        raise ArtifactError(f"{str(path)!r} is a file, expected a folder")
    _refuse_unwritable_parent(path / "file")


def _refuse_unwritable_parent(path: Path) -> None:
    folder = next((parent for parent in path.absolute().parents if parent.exists()), Path("/"))
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ArtifactError(f"cannot write {str(path)!r}: {str(folder)!r} is not a folder that can be written")


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
