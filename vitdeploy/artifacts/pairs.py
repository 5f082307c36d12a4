"""Two files that belong together: a payload, and the JSON that says which payload it is."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from vitdeploy.artifacts.files import atomic_path, write_atomically
from vitdeploy.errors import ArtifactError
from vitdeploy.reading import read_json

DescriptionT = TypeVar("DescriptionT")

PREVIOUS = "previous"
"""Key of the earlier JSON within the new one, while the payload may still be the earlier."""


@contextmanager
def atomic_pair(description: Path, text: str, payload: Path, *, is_marked: bool = False) -> Iterator[Path]:
    """Yield a temporary path for the payload; on success both files take their places, else both are as before.

    No system renames two files at once. So an earlier pair is replaced in three steps: a description of both payloads,
    the new payload, its description alone. Whatever step a kill comes after, the payload has its description
    (``fitting_version``). All is on the disk under temporary names before the first step: a full disk changes nothing.

    A first pair has nothing to lose; its description comes first where the payload alone would not be known as ours.

    Args:
        description: The JSON file.
        text: What it is to hold, a JSON object.
        payload: The other file.
        is_marked: Whether the payload carries the mark of what vitdeploy writes.
    Raises:
        ArtifactError: As ``atomic_path``.
    """
    with atomic_path(description) as last, atomic_path(payload) as temporary:
        last.write_text(text, encoding="utf-8")
        yield temporary
        for path in (temporary, last):
            _sync(path)
        if payload.is_file() and (earlier := _earlier(description)) is not None:
            write_atomically(description, json.dumps({**json.loads(text), PREVIOUS: earlier}))
        elif not is_marked:
            write_atomically(description, text)


def fitting_version(
    raw: Any, read: Callable[[Any], DescriptionT], fits: Callable[[DescriptionT], bool]
) -> DescriptionT:
    """Return what a description says of the payload that is there, or of the newest where none fits.

    Args:
        raw: The JSON of the description.
        read: Makes of it what it says; its errors pass.
        fits: Whether that is about the payload.
    """
    newest = found = read(_alone(raw))
    while not fits(found) and isinstance(raw, dict) and PREVIOUS in raw:
        raw = raw[PREVIOUS]
        found = read(_alone(raw))
    return found if fits(found) else newest


def _alone(raw: Any) -> Any:
    return {key: value for key, value in raw.items() if key != PREVIOUS} if isinstance(raw, dict) else raw


def _earlier(description: Path) -> Any:
    """Return the description that is there; None where there is none, or nobody could read it anyway."""
    try:
        return read_json(description)
    except ArtifactError:
        return None


def _sync(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
