"""A progress that keeps its notes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vitdeploy.progress import SILENT, Task


class Notes:
    """Draws nothing; ``lines`` are the notes in their order."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    @contextmanager
    def task(self, description: str, total: float | None = None) -> Iterator[Task]:
        with SILENT.task(description, total) as task:
            yield task

    def note(self, text: str) -> None:
        self.lines.append(text)
