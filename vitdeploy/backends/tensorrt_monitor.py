"""Listening to TensorRT: its messages are collected instead of printed, its phases become one progress bar.

TensorRT calls both from threads of its own, and a Python exception that left such a call would end the process. So the
two listeners only write into plain state under a lock; the thread that asked for the build reads it, draws, and passes
a cancellation on.
"""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from vitdeploy.errors import BackendError
from vitdeploy.progress import Progress, Task

T = TypeVar("T")
ERROR_LEVELS = ("INTERNAL_ERROR", "ERROR")
POLL_SECONDS = 0.1
KEPT_MESSAGES = 10_000
STARTS_NOT = re.compile(r"CUDA initialization failure|CUDA driver version is insufficient|no CUDA-capable device")
# on a machine with no driver TensorRT-RTX reports this beside every real error
NOISE = ("cudaError 35", "The logger passed into", "Begin node", "End node", "Node name:", "While parsing node number")


class Messages:
    """What TensorRT logged at warning level and above.

    A library has one logger for the whole process, so whoever calls it takes a ``mark`` first and asks for what came
    after it: else one session would report another's error.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: list[tuple[str, str]] = []
        self._dropped = 0

    def add(self, severity: str, text: str) -> None:
        """Keep a message; lower levels (thousands of lines per build) are dropped."""
        if severity in ERROR_LEVELS or severity == "WARNING":
            with self._lock:
                self._kept.append((severity, text))
                surplus = len(self._kept) - KEPT_MESSAGES
                if surplus > 0:
                    del self._kept[:surplus]
                    self._dropped += surplus

    def mark(self) -> int:
        """Return the place of the next message."""
        with self._lock:
            return self._dropped + len(self._kept)

    def _since(self, mark: int, *severities: str) -> list[str]:
        with self._lock:
            return [text for severity, text in self._kept[max(0, mark - self._dropped) :] if severity in severities]

    def first_error(self, mark: int = 0) -> str:
        """Return the first error after ``mark`` that says something, as one clean line; empty where there is none.

        The first is the cause; what follows are its consequences.
        """
        errors = self._since(mark, *ERROR_LEVELS)
        specific = [text for text in errors if not any(noise in text for noise in NOISE)]
        return clean_message((specific or errors or [""])[0])

    def driver_error(self, mark: int = 0) -> str:
        """Return what the library said after ``mark`` about a CUDA that does not start; empty where it does."""
        return next((clean_message(text) for text in self._since(mark, *ERROR_LEVELS) if STARTS_NOT.search(text)), "")

    def warnings(self, mark: int = 0) -> list[str]:
        """Return distinct warnings after ``mark`` in order."""
        kept = [text for text in self._since(mark, "WARNING") if not any(noise in text for noise in NOISE)]
        return list(dict.fromkeys(clean_message(text) for text in kept))


def clean_message(text: str) -> str:
    """Return the sentence in TensorRT's message, without function, error code and source line.

    ``IBuilder::build…: Error Code 4: API Usage Error (SENTENCE In validate at /_src/x.cpp:1)`` → ``SENTENCE``; of a
    parser's ``Invalid Node - NAME`` followed by such lines, the first that says more.
    """
    for line in text.splitlines():
        match = re.search(r"Error Code \d+: [^(]*\((.*)\)\s*$", line)
        if match and not any(noise in line for noise in NOISE):
            text = match.group(1)
            break
    text = re.sub(r"\s*In \w+ at \S+:\d+.*$", "", text, flags=re.DOTALL)
    text = re.sub(r"^\[[^\]]*::[^\]]*\]\s*|^\[[\w.]+:\d+: \w+\]\s*", "", text.strip())
    return " ".join(text.split()).rstrip(". ")


def started(make: Callable[[Any], Any], logger: Any, messages: Messages, title: str) -> Any:
    """Return a builder or a runtime of TensorRT.

    Where CUDA does not start, the library either lets pybind raise a ``TypeError`` about a null pointer, or logs the
    error and returns an object that ends the process when it is used. Both are the same refusal here.

    Raises:
        BackendError: In one line, with what the library logged.
    """
    mark = messages.mark()
    try:
        created = make(logger)
    except TypeError as error:
        raise BackendError(
            f"{title} could not start: {messages.first_error(mark) or clean_message(str(error))}"
        ) from error
    reason = messages.driver_error(mark) or (
        messages.first_error(mark) or "it gave no reason" if created is None else ""
    )
    if reason:
        raise BackendError(f"{title} could not start: {reason}")
    return created


@functools.cache
def listening_logger(trt: Any) -> tuple[Any, Messages]:
    """Return the one logger of a TensorRT library and what it collects.

    One per library and process, because TensorRT keeps the first logger that it is given and ignores later ones.
    """
    messages = Messages()

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            messages.add(severity.name, text)

    return Logger(), messages


@dataclass
class _Phase:
    steps: int
    parent: str | None
    done: int = 0


@dataclass
class BuildState:
    """The tree of phases that are open, and how far the outermost has come."""

    cancelled: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _phases: dict[str, _Phase] = field(default_factory=dict)
    _finished: float = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        with self._lock:
            self._phases[name] = _Phase(max(1, steps), parent)

    def step(self, name: str, number: int) -> bool:
        """Return whether the build goes on, after counting a step, whose number is from 0."""
        with self._lock:
            if name in self._phases:
                self._phases[name].done = max(self._phases[name].done, number + 1)
            return not self.cancelled

    def finish(self, name: str) -> None:
        with self._lock:
            phase = self._phases.pop(name, None)
            if phase is not None and phase.parent is None:
                self._finished = 1.0

    def position(self) -> tuple[float, str]:
        """Return how much of the outermost phase is done, 0…1, and the name of the innermost one."""
        with self._lock:
            roots = [name for name, phase in self._phases.items() if phase.parent not in self._phases]
            if not roots:
                return self._finished, ""
            inner = list(self._phases)[-1]
            return min(1.0, self._fraction(roots[0])), inner

    def _fraction(self, name: str) -> float:
        phase = self._phases[name]
        inside = [self._fraction(child) for child, other in self._phases.items() if other.parent == name]
        return min(1.0, (phase.done + max(inside, default=0.0)) / phase.steps)


def build_monitor(trt: Any, state: BuildState) -> Any:
    """Return an ``IProgressMonitor`` that writes into ``state``."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            state.start(name, parent, steps)

        def step_complete(self, name: str, number: int) -> bool:
            return state.step(name, number)

        def phase_finish(self, name: str) -> None:
            state.finish(name)

    return Monitor()


def run_watched(work: Callable[[], T], state: BuildState, progress: Progress, description: str) -> T:
    """Run ``work`` in a thread of its own while this one draws its progress; return or raise what it did.

    Ctrl-C, or a fault in ``progress``, cancels the build: TensorRT gives up at its next step, and only then the
    exception goes on, so that nothing of the library is still running.
    """
    result: list[T] = []
    failure: list[BaseException] = []

    def target() -> None:
        try:
            result.append(work())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=target, name="vitdeploy-build")
    with _cancelling(thread, state), progress.task(description, total=1.0) as task:
        thread.start()
        shown = 0.0
        while thread.is_alive():
            thread.join(POLL_SECONDS)
            shown = _draw(task, state, shown)
        if not failure:
            task.advance(1.0 - shown)
    if failure:
        raise failure[0]
    return result[0]


@contextmanager
def _cancelling(thread: threading.Thread, state: BuildState) -> Iterator[None]:
    try:
        yield
    except BaseException:
        state.cancelled = True
        if thread.ident is not None:
            thread.join()
        raise


def _draw(task: Task, state: BuildState, shown: float) -> float:
    fraction, phase = state.position()
    if phase:
        task.describe(phase)
    if fraction > shown:
        task.advance(fraction - shown)
        return fraction
    return shown
