"""``NewestFrames``: of a camera that is faster than the model, always the newest frame, and how many were dropped."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

FrameT = TypeVar("FrameT")


class NewestFrames(Generic[FrameT]):
    """An iterator over a live source: a thread reads it, and the frame that came last is the next one.

    What the source raises, the reader of the frames meets after the last of them. Each frame must be an array of its
    own, which the source does not fill again.

    ``taken`` is how many frames came so far, ``dropped`` how many of them were replaced before anyone asked for them.
    """

    def __init__(self, source: Iterable[FrameT]) -> None:
        self.taken = 0
        self.dropped = 0
        self._held: list[FrameT] = []
        self._error: BaseException | None = None
        self._ended = False
        self._changed = threading.Condition()
        # a daemon: a camera that never returns must not keep the process alive
        threading.Thread(target=self._read, args=(source,), name="vitdeploy-frames", daemon=True).start()

    def __iter__(self) -> Iterator[FrameT]:
        return self

    def __next__(self) -> FrameT:
        with self._changed:
            while not self._held and not self._ended:
                self._changed.wait()
            if self._held:
                return self._held.pop()
            error, self._error = self._error, None
        if error is not None:
            raise error
        raise StopIteration

    def close(self) -> None:
        """End the frames; the source is read no further than its next one."""
        with self._changed:
            self._ended = True
            self._held.clear()
            self._changed.notify_all()

    def _read(self, source: Iterable[FrameT]) -> None:
        error: BaseException | None = None
        try:
            for frame in source:
                with self._changed:
                    if self._ended:
                        return
                    self.taken += 1
                    self.dropped += len(self._held)
                    self._held[:] = [frame]
                    self._changed.notify_all()
        except BaseException as raised:  # met by the reader, who is the one to handle it
            error = raised
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()
