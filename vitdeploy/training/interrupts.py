"""Ctrl-C and SIGTERM as a request that the loop answers between two updates, where the state is whole."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

ONE_REQUEST_S = 0.5


@dataclass
class Interrupt:
    """Whether the training was asked to stop, and when (``time.monotonic``)."""

    requested: bool = False
    at: float = 0.0


@contextmanager
def deferred_interrupts() -> Iterator[Interrupt]:
    """Note the first SIGINT or SIGTERM while the block runs; a second one later raises KeyboardInterrupt at once.

    One request may come twice, from the terminal and from the process that started this one, so what follows within
    ``ONE_REQUEST_S`` is the same request. Outside the main thread, where Python delivers no signals, nothing changes.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return

    def request(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not interrupt.requested:
            interrupt.requested, interrupt.at = True, now
        elif now - interrupt.at > ONE_REQUEST_S:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
