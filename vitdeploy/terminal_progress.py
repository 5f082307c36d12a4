"""How work shows that it goes on: bars on a terminal or in a notebook, plain lines in a log; always on stderr."""

from __future__ import annotations

import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from vitdeploy.progress import SILENT, Progress, Task
from vitdeploy.text import printable

if TYPE_CHECKING:
    import rich.progress

LOG_EVERY_S = 10.0


def make_progress(stream: TextIO | None = None) -> Progress:
    """Return bars where ``stream`` (stderr) is a terminal, else lines."""
    stream = stream if stream is not None else sys.stderr
    return TerminalProgress(stream) if stream.isatty() else LogProgress(stream)


class _AutoProgress:
    """Bars where somebody watches, on a terminal or in a notebook, else nothing; what a verb takes by default."""

    def __init__(self) -> None:
        self._stream: TextIO | None = None
        self._bars: Progress = SILENT

    def __repr__(self) -> str:
        return "AUTO"

    @contextmanager
    def task(self, description: str, total: float | None = None) -> Iterator[Task]:
        """See ``Progress.task``."""
        with self._chosen().task(description, total) as task:
            yield task

    def note(self, text: str) -> None:
        """See ``Progress.note``."""
        self._chosen().note(text)

    def _chosen(self) -> Progress:
        """Return the bars that are drawn already, so that tasks nest, unless stderr is another stream by now."""
        if self._stream is not sys.stderr:
            self._stream = sys.stderr
            watched = _in_notebook() or (self._stream is not None and self._stream.isatty())
            self._bars = TerminalProgress(self._stream) if watched else SILENT
        return self._bars


AUTO: Progress = _AutoProgress()


def shown(progress: Progress | None) -> Progress:
    """Return the progress that a verb was handed; None is silence."""
    return SILENT if progress is None else progress


def _in_notebook() -> bool:
    """Return whether a Jupyter kernel runs this, whose notebook rich draws into."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and hasattr(shell, "kernel")


class LogProgress:
    """Plain lines: one when a task takes longer than ten seconds, then one every ten seconds, one per note."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock

    @contextmanager
    def task(self, description: str, total: float | None = None) -> Iterator[Task]:
        """See ``Progress.task``."""
        task = _LogTask(self.note, description, total, self._clock)
        yield task
        task.finish()

    def note(self, text: str) -> None:
        """See ``Progress.note``."""
        print(printable(text), file=self._stream, flush=True)


class _LogTask:
    def __init__(
        self, write: Callable[[str], None], description: str, total: float | None, clock: Callable[[], float]
    ) -> None:
        self._write = write
        self._name = description
        self._detail = ""
        self._total = total
        self._done = 0.0
        self._clock = clock
        self._start = self._last = clock()
        self._lock = threading.Lock()

    def advance(self, steps: float = 1) -> None:
        with self._lock:
            self._done += steps
            self._report()

    def describe(self, text: str) -> None:
        with self._lock:
            self._detail = text
            self._report()

    def finish(self) -> None:
        now = self._clock()
        if now - self._start >= LOG_EVERY_S:
            self._write(f"{self._name}: done in {now - self._start:.0f} s")

    def _report(self) -> None:
        now = self._clock()
        if now - self._last < LOG_EVERY_S:
            return
        self._last = now
        share = f" {100 * self._done / self._total:.0f} %" if self._total else ""
        left = ""
        if self._total and 0 < self._done < self._total:
            left = f", about {(now - self._start) * (self._total / self._done - 1):.0f} s left"
        detail = f" ({self._detail})" if self._detail and self._detail != self._name else ""
        self._write(f"{self._name}:{share} after {now - self._start:.0f} s{left}{detail}")


class TerminalProgress:
    """Bars drawn by rich, on a terminal or in a notebook; they vanish when done, notes stay above them.

    Tasks may be nested and shared by threads. ``stream`` is stderr by default; ``console`` are arguments of rich's.
    """

    def __init__(self, stream: TextIO | None = None, **console: Any) -> None:
        from rich.console import Console

        self._console = Console(file=stream if stream is not None else sys.stderr, **console)
        self._bars: rich.progress.Progress | None = None
        self._open = 0
        self._lock = threading.Lock()

    @contextmanager
    def task(self, description: str, total: float | None = None) -> Iterator[Task]:
        """See ``Progress.task``."""
        bars = self._enter()
        identity = bars.add_task(printable(description), total=total, detail="")
        try:
            yield _BarTask(bars, identity)
        finally:
            bars.remove_task(identity)
            self._leave()

    def note(self, text: str) -> None:
        """See ``Progress.note``."""
        for line in textwrap.wrap(printable(text), self._console.width, break_long_words=False, break_on_hyphens=False):
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _enter(self) -> rich.progress.Progress:
        from rich import progress

        with self._lock:
            if self._bars is None:
                self._bars = progress.Progress(
                    progress.TextColumn("{task.description}", markup=False),
                    progress.BarColumn(),
                    progress.TaskProgressColumn(),
                    progress.TimeElapsedColumn(),
                    progress.TimeRemainingColumn(compact=True),
                    progress.TextColumn("{task.fields[detail]}", markup=False, style="dim"),
                    console=self._console,
                    transient=True,
                    # what a library prints must not tear the bars, and stdout belongs to the result
                    redirect_stdout=False,
                )
                self._bars.start()
            self._open += 1
            return self._bars

    def _leave(self) -> None:
        with self._lock:
            self._open -= 1
            if self._open == 0 and self._bars is not None:
                self._bars.stop()
                self._bars = None


class _BarTask:
    def __init__(self, bars: rich.progress.Progress, identity: rich.progress.TaskID) -> None:
        self._bars = bars
        self._identity = identity

    def advance(self, steps: float = 1) -> None:
        self._bars.advance(self._identity, steps)

    def describe(self, text: str) -> None:
        self._bars.update(self._identity, detail=printable(text))
