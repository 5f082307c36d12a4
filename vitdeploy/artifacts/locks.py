"""Locks on what is being written: a run holds its folder, a training its checkpoint. They go with their process.

The lock itself is filelock's; beside it lies who holds it, so that a refusal can say so, and so that the processes that
a killed holder has left behind are waited for and not taken for another run.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from vitdeploy.artifacts.files import write_error
from vitdeploy.environment import is_helping_process
from vitdeploy.errors import ArtifactError

FOLDER_LOCK = ".lock"
HOLDER = ".pid"
ORPHANS_S = 15.0  # torch's loader processes look every 5 s whether their parent is there


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Hold a folder, which is made where it is not there; nobody else then writes what it holds.

    Where the block fails and has written nothing, folder and lock are as before.

    Raises:
        ArtifactError: Another process holds it, or it cannot be written.
    """
    created = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    lock = folder / FOLDER_LOCK
    existed = lock.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(folder, error) from error
    try:
        with _held(lock, f"in {str(folder)!r}", "take another folder"):
            try:
                yield
            except BaseException:
                if not existed:
                    lock.unlink(missing_ok=True)
                raise
    except BaseException:
        with suppress(OSError):  # a folder in which something was written stays
            for parent in created:
                parent.rmdir()
        raise


@contextmanager
def hold_file(path: Path) -> Iterator[None]:
    """Hold the name of a file that is being made over a long time; the lock is removed at the end.

    Raises:
        ArtifactError: Another process holds it.
    """
    lock = _lock_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path, error) from error
    with _held(lock, f"on {str(path)!r}", "take another name"):
        try:
            yield
        finally:  # while it is held: whoever opened it before finds that it is gone, and makes it anew
            lock.unlink(missing_ok=True)


def remove_left_lock(path: Path) -> None:
    """Remove the lock of a file whose holder was killed when the file was made; nothing is done where there is none.

    Raises:
        ArtifactError: Another process holds it.
    """
    if _lock_of(path).exists():
        with hold_file(path):
            pass


def is_held_here(folder: Path) -> bool:
    """Return whether this process, or one that it works for, holds a folder."""
    lock = folder / FOLDER_LOCK
    return lock.is_file() and _is_ours(_holder(lock))


def refuse_held(path: Path) -> None:
    """Raise where another process holds a file, or the folder that it lies in.

    Raises:
        ArtifactError: It is held; the line has the number of the process.
    """
    for lock in (_lock_of(path), path.parent / FOLDER_LOCK):
        if not lock.is_file() or _is_ours(_holder(lock)):
            continue
        try:
            with FileLock(lock, blocking=False):
                pass
        except Timeout:
            process = _holder(lock)
            raise ArtifactError(
                f"another vitdeploy is at work on {str(path)!r} (process {process or 'unknown'}): wait for it, or take "
                f"another name"
            ) from None
        except OSError:
            continue  # a lock that may not be opened is no lock of ours


@contextmanager
def _held(lock: Path, where: str, advice: str) -> Iterator[None]:
    held, existed = FileLock(lock), lock.exists()
    try:
        _acquire(held, lock)
    except Timeout:
        raise ArtifactError(
            f"another vitdeploy is at work {where} (process {_holder(lock) or 'unknown'}): wait for it, or {advice}"
        ) from None
    except OSError as error:
        raise write_error(lock.parent, error) from error
    holder = lock.with_name(lock.name + HOLDER)
    try:
        try:
            holder.write_text(f"{os.getpid()}\n")
        except OSError as error:  # a full disk takes the lock, which is empty, and no number
            if not existed:
                lock.unlink(missing_ok=True)
            raise write_error(lock.parent, error) from error
        yield
    finally:
        holder.unlink(missing_ok=True)
        held.release()


def _acquire(held: FileLock, lock: Path) -> None:
    """Take the lock; where its holder was killed, wait for the processes that it had started to notice."""
    until = time.monotonic() + ORPHANS_S
    while True:
        try:
            held.acquire(blocking=False)
            return
        except Timeout:
            holder = _holder(lock)
            if holder is None or psutil.pid_exists(holder) or time.monotonic() > until:
                raise
        time.sleep(0.1)


def _holder(lock: Path) -> int | None:
    with suppress(OSError, ValueError):
        return int(lock.with_name(lock.name + HOLDER).read_text())
    return None


def _is_ours(holder: int | None) -> bool:
    """Return whether this process holds a lock, or the one that started it, or the first of a training of several."""
    if is_helping_process():
        return True
    if holder is None:
        return False
    if holder == os.getpid():
        return True
    with suppress(psutil.Error):
        return any(parent.pid == holder for parent in psutil.Process().parents())
    return False


def _lock_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")
