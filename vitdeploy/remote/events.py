"""A job's progress as lines of JSON: written on the machine that runs it, shown on the one that started it."""

from __future__ import annotations

import json
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, TextIO

from vitdeploy import errors
from vitdeploy.errors import FidelityWarning, RemoteError, VitdeployError
from vitdeploy.progress import Progress, Task
from vitdeploy.text import one_line

EVERY_S = 0.2
"""Steps are gathered so long, so that a link is not filled with them."""


class EventProgress:
    """A ``Progress`` that writes tasks, their advances and notes as events."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._opened = 0

    def write(self, event: str, **content: Any) -> None:
        """Write one event; it is on its way when this returns."""
        with self._lock:
            self._stream.write(json.dumps({"event": event, **content}) + "\n")
            self._stream.flush()

    @contextmanager
    def task(self, description: str, total: float | None = None) -> Iterator[Task]:
        """See ``Progress.task``."""
        with self._lock:
            self._opened += 1
            number = self._opened
        self.write("task", number=number, text=description, total=total)
        task = _EventTask(self, number)
        try:
            yield task
        finally:
            task.flush()
            self.write("close", number=number)

    def note(self, text: str) -> None:
        """See ``Progress.note``."""
        self.write("note", text=text)


class _EventTask:
    def __init__(self, events: EventProgress, number: int) -> None:
        self._events = events
        self._number = number
        self._steps = 0.0
        self._last = time.monotonic()
        self._lock = threading.Lock()

    def advance(self, steps: float = 1) -> None:
        with self._lock:
            self._steps += steps
            if time.monotonic() - self._last < EVERY_S:
                return
        self.flush()

    def describe(self, text: str) -> None:
        self._events.write("describe", number=self._number, text=text)

    def flush(self) -> None:
        with self._lock:
            steps, self._steps, self._last = self._steps, 0.0, time.monotonic()
        if steps:
            self._events.write("advance", number=self._number, steps=steps)


class Replay:
    """Shows a job's events in a ``Progress`` here; a context, within which the bars are open."""

    def __init__(self, host: str, progress: Progress) -> None:
        self._host = host
        self._progress = progress
        self._open: dict[int, tuple[Task, ExitStack]] = {}
        self.files: list[dict[str, Any]] | None = None
        """Name, size and digest of each result, once the job is done."""

    def __enter__(self) -> Replay:
        return self

    def __exit__(self, *exception: object) -> None:
        for _, stack in reversed(self._open.values()):
            stack.close()

    def show(self, event: Mapping[str, Any]) -> None:
        """Show one event.

        Raises:
            VitdeployError: The job failed: the error that it raised there.
        """
        kind = event["event"]
        if kind == "task":
            stack = ExitStack()
            self._open[event["number"]] = (
                stack.enter_context(self._progress.task(event["text"], event["total"])),
                stack,
            )
        elif kind == "close":
            self._open.pop(event["number"])[1].close()
        elif kind == "advance":
            self._open[event["number"]][0].advance(event["steps"])
        elif kind == "describe":
            self._open[event["number"]][0].describe(event["text"])
        elif kind == "note":
            self._progress.note(f"{self._host}: {event['text']}")
        elif kind == "warning":
            warnings.warn(event["text"], _category(event["category"]), stacklevel=2)
        elif kind == "done":
            self.files = event["files"]
        elif kind == "error":
            raise _error(self._host, event)
        elif kind == "died":
            log = [line for line in str(event["log"]).splitlines() if line.strip()]
            why = f"; its last line: {one_line(log[-1])}" if log else ""
            raise RemoteError(f"the job on {self._host!r} was killed, as where memory runs out{why}")


def _category(name: str) -> type[FidelityWarning]:
    found = getattr(errors, name, FidelityWarning)
    return found if isinstance(found, type) and issubclass(found, FidelityWarning) else FidelityWarning


def _error(host: str, event: Mapping[str, Any]) -> VitdeployError:
    """Return a job's error, of the class that it had there."""
    found = getattr(errors, str(event["type"]), None)
    text = str(event["text"])
    if isinstance(found, type) and issubclass(found, VitdeployError) and found is not errors.BudgetError:
        return found(f"on {host}: {text}")
    return RemoteError(f"on {host}: unexpected {event['type']}: {one_line(text)}")
