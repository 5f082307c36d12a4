"""Work on a stream of items ahead of whoever takes the results, in threads and in bounded memory."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

MAX_THREADS = 8
_END = object()


def thread_count() -> int:
    """Return how many threads decode images: one per core that this process may use, at most eight."""
    return min(MAX_THREADS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def map_ahead(function: Callable[[ItemT], ResultT], items: Iterable[ItemT], *, ahead: int) -> Iterator[ResultT]:
    """Yield ``function(item)`` in the order of the items, which are taken and worked on while the caller is busy.

    At most ``ahead`` items are taken further than the results that were asked for, so memory is bounded however long
    ``items`` is. A thread of its own takes them: one that waits (a camera) holds up no result that is ready. What
    ``items`` or ``function`` raises, the caller meets at its place in the order. A caller who stops early may leave the
    rest to the garbage collector, which runs in whichever thread it likes: in one of ours, too.
    """
    room: queue.SimpleQueue[bool] = queue.SimpleQueue()  # unlike a semaphore, it can be used by a collector anywhere
    results: queue.SimpleQueue[Future[ResultT] | BaseException | object] = queue.SimpleQueue()
    stopped = threading.Event()
    executor = ThreadPoolExecutor(thread_count(), thread_name_prefix="vitdeploy-images")
    for _ in range(ahead):
        room.put(True)

    def feed() -> None:
        try:
            source = iter(items)
            while room.get() and not stopped.is_set():
                item = next(source, _END)
                if item is _END or stopped.is_set():
                    break
                results.put(executor.submit(function, item))  # type: ignore[arg-type]
        except BaseException as error:  # met by the caller, who is the one to handle it
            results.put(error)
        results.put(_END)
        executor.shutdown(wait=False, cancel_futures=stopped.is_set())

    # a daemon: a source that never returns must not keep the process alive
    threading.Thread(target=feed, name="vitdeploy-feed", daemon=True).start()
    taker = threading.get_ident()
    try:
        while (entry := results.get()) is not _END:
            if isinstance(entry, BaseException):
                raise entry
            assert isinstance(entry, Future)
            result: ResultT = entry.result()
            room.put(True)
            yield result
            taker = threading.get_ident()
    finally:
        stopped.set()
        room.put(False)
        if threading.get_ident() == taker:  # a thread of ours can wait neither for itself nor for a lock that it holds
            executor.shutdown(cancel_futures=True)
