"""The folder of a run: a lock, so that two runs do not mix; a memory of what was made from what; no leftovers."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pydantic import ValidationError

from vitdeploy.artifacts import write_atomically
from vitdeploy.artifacts.files import TEMPORARY_PREFIX
from vitdeploy.errors import ArtifactError
from vitdeploy.reading import read_json
from vitdeploy.records import Record

MEMORY = "run.json"
LOCK = ".lock"
ORPHANS_S = 15.0  # torch's loader processes look every 5 s whether their parent is there


class Made(Record):
    """What a stage was told and given when it made its artifact: options as in the recipe, parents' payload digests."""

    options: dict[str, Any] = {}
    parents: dict[str, str] = {}


class Memory:
    """``run.json``: stage → ``Made``, written after each stage.

    Whether a stage is fresh does not hang on it, that is in the artifacts; it says in words what has changed.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / MEMORY
        self._made = _read(self._path)

    def get(self, stage: str) -> Made | None:
        """Return what the stage made last, None where that is not known."""
        return self._made.get(stage)

    def put(self, stage: str, made: Made) -> None:
        """Remember, and write ``run.json`` atomically where that is new."""
        if self._made.get(stage) == made:
            return
        self._made[stage] = made
        text = json.dumps({name: entry.model_dump(mode="json") for name, entry in self._made.items()}, indent=1)
        write_atomically(self._path, text + "\n")


def changes(old: Made, new: Made) -> list[str]:
    """Return in words what differs between two."""
    given = [
        f"{role} changed"
        for role in sorted(set(old.parents) | set(new.parents))
        if old.parents.get(role) != new.parents.get(role)
    ]
    return [*_differences(old.options, new.options), *given]


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> list[str]:
    words: list[str] = []
    for name in sorted(set(old) | set(new)):
        before, after = old.get(name), new.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            words += _differences(before, after, f"{path}{name}.")
        elif before != after:
            words.append(f"{path}{name} changed from {before!r} to {after!r}")
    return words


def _read(path: Path) -> dict[str, Made]:
    try:
        return {name: Made.model_validate(entry) for name, entry in read_json(path).items()}
    except (ArtifactError, AttributeError, ValidationError):
        return {}


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder for one run and clear what a killed run left; the lock goes with the process, however it ends.

    Raises:
        ArtifactError: Another run holds it, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / LOCK).open("a+")
    except OSError as error:
        raise ArtifactError(f"cannot write in {str(folder)!r}: {error.strerror}") from error
    with stream:
        if not _wait_for_lock(stream):
            raise ArtifactError(
                f"another 'vitdeploy run' is at work in {str(folder)!r} (process {_holder(stream) or 'unknown'}): "
                f"wait for it, or take another folder with --output"
            )
        stream.truncate(0)
        stream.write(f"{os.getpid()}\n")
        stream.flush()
        for leftover in folder.glob(f"{TEMPORARY_PREFIX}*"):
            if leftover.is_file():
                leftover.unlink(missing_ok=True)
        yield


def _wait_for_lock(stream: IO[str]) -> bool:
    """Take the lock; where its holder was killed, wait for the processes that it had started to notice."""
    until = time.monotonic() + ORPHANS_S
    while not _try_lock(stream):
        holder = _holder(stream)
        if holder is None or _lives(holder) or time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def _holder(stream: IO[str]) -> int | None:
    stream.seek(0)
    text = stream.read().strip()
    return int(text) if text.isdigit() else None


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _try_lock(stream: IO[str]) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
