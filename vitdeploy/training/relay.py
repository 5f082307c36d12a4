"""Progress from a training process to the process that started it, which draws it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch.multiprocessing

from vitdeploy.progress import Progress, Task

END = "end"


@dataclass(frozen=True)
class SentTask:
    """A bar in the other process."""

    queue: Any

    def advance(self, steps: float = 1) -> None:
        """Move the bar on."""
        self.queue.put(("advance", steps))

    def describe(self, text: str) -> None:
        """Replace the text beside the bar."""
        self.queue.put(("describe", text))


@dataclass(frozen=True)
class SentProgress:
    """What a training process is handed; bars do not overlap, so messages need not say which they mean."""

    queue: Any

    @contextmanager
    def task(self, description: str, total: float | None = None) -> Iterator[Task]:
        """Open a bar in the other process."""
        self.queue.put(("open", description, total))
        try:
            yield SentTask(self.queue)
        finally:
            self.queue.put(("close",))

    def note(self, text: str) -> None:
        """Print a line in the other process."""
        self.queue.put(("note", text))


class Relay:
    """Draws what a training process sends, in a thread, while the block runs."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._queue: Any = torch.multiprocessing.get_context("spawn").SimpleQueue()
        self._thread = threading.Thread(target=self._draw, name="vitdeploy-progress", daemon=True)
        self.sender = SentProgress(self._queue)

    def __enter__(self) -> Relay:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._queue.put((END,))
        self._thread.join(timeout=5)  # a process that was killed while it wrote leaves the queue blocked

    def _draw(self) -> None:
        task: Task | None = None
        with ExitStack() as stack:
            while (message := self._queue.get())[0] != END:
                name, *values = message
                if name == "open":
                    task = stack.enter_context(self._progress.task(*values))
                elif name == "close":
                    stack.close()
                    task = None
                elif name == "note":
                    self._progress.note(*values)
                elif task is not None:
                    getattr(task, name)(*values)
