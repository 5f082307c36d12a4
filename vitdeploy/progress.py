"""How long work tells that it goes on, without knowing where it is shown.

A verb takes ``progress``: by default bars where somebody watches (``vitdeploy.terminal_progress``), None for silence.
The command line hands in one that draws bars on a terminal and prints plain lines into a log. What lies below the verbs
is handed a ``Progress``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Task(Protocol):
    """One bar."""

    def advance(self, steps: float = 1) -> None:
        """Move the bar on by ``steps`` of the total it was opened with."""
        ...

    def describe(self, text: str) -> None:
        """Replace the text beside the bar (a loss, the layer in work)."""
        ...


class Progress(Protocol):
    """Opens bars and prints single lines."""

    @contextmanager
    def task(self, description: str, total: float | None = None) -> Iterator[Task]:
        """Show a bar while the block runs; ``total=None`` means that the length is unknown."""
        ...

    def note(self, text: str) -> None:
        """Print one line that stays: a choice that was made, a thing that was skipped, and why."""
        ...


class _SilentTask:
    def advance(self, steps: float = 1) -> None:
        pass

    def describe(self, text: str) -> None:
        pass


class _SilentProgress:
    @contextmanager
    def task(self, description: str, total: float | None = None) -> Iterator[Task]:
        yield _SilentTask()

    def note(self, text: str) -> None:
        pass


SILENT: Progress = _SilentProgress()
