"""The folder of a run: a lock, so that two runs do not mix; a record of what was made from what; no stray files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vitdeploy.artifacts import write_atomically
from vitdeploy.artifacts.files import TEMPORARY_PREFIX
from vitdeploy.artifacts.locks import hold_folder
from vitdeploy.artifacts.run_record import RUN, Provenance, read_run_record
from vitdeploy.errors import ArtifactError


class Memory:
    """``run.json``: stage → ``Provenance``, written after each stage.

    Whether a stage is fresh does not hang on it, that is in the artifacts; it says in words what has changed.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / RUN
        self.is_of_a_run = True
        """Whether the folder has such a record, so that what lies in it is a run's own."""
        try:
            self._entries = read_run_record(self._path)
        except ArtifactError:
            self._entries, self.is_of_a_run = {}, False  # it decides nothing else

    def get(self, stage: str) -> Provenance | None:
        """Return what the stage made last, None where that is not known."""
        return self._entries.get(stage)

    def put(self, stage: str, provenance: Provenance) -> None:
        """Remember, and write ``run.json`` atomically where that is new."""
        if self._entries.get(stage) == provenance:
            return
        self._entries[stage] = provenance
        text = json.dumps({name: entry.model_dump(mode="json") for name, entry in self._entries.items()}, indent=1)
        write_atomically(self._path, text + "\n")


def changes(old: Provenance, new: Provenance) -> list[str]:
    """Return in words what differs between two."""
    parents = [
        f"{role} changed"
        for role in sorted(set(old.parents) | set(new.parents))
        if old.parents.get(role) != new.parents.get(role)
    ]
    return [*_differences(old.options, new.options), *parents]


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> list[str]:
    words: list[str] = []
    for name in sorted(set(old) | set(new)):
        before, after = old.get(name), new.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            words += _differences(before, after, f"{path}{name}.")
        elif before != after:
            words.append(f"{path}{name} changed from {before!r} to {after!r}")
    return words


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder for one run and clear what a killed run left; the lock goes with the process, however it ends.

    Raises:
        ArtifactError: Another run holds it, or the folder cannot be written.
    """
    with hold_folder(folder):
        for leftover in folder.glob(f"{TEMPORARY_PREFIX}*"):
            if leftover.is_file():
                leftover.unlink(missing_ok=True)
        yield
