"""Threads of the CPU: which processors they are pinned to, and which runtimes have such settings."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from vitdeploy.errors import BackendError
from vitdeploy.records.report import backend_title
from vitdeploy.sessions import THREAD_SETTINGS, SessionOptions, ThreadSetting

TOPOLOGY = Path("/sys/devices/system/cpu")


def thread_settings_of(backend: Any) -> tuple[ThreadSetting, ...]:
    """Return the thread settings that a backend has; none for one of another package that does not say."""
    return tuple(getattr(backend, "thread_settings", ()))


def refuse_thread_settings(backend: str, options: SessionOptions, known: Collection[ThreadSetting] = ()) -> None:
    """Pass options whose thread settings a runtime has, or that leave them to it.

    Raises:
        BackendError: One is set that the runtime does not have.
    """
    for setting in THREAD_SETTINGS:
        if getattr(options, setting) is not None and setting not in known:
            raise BackendError(
                f"{backend_title(backend)} has no setting for {setting} of CPU threads here: leave {setting}= out"
            )


def cores() -> list[int]:
    """Return one processor of each core that this process may use, by the operating system's numbers.

    Raises:
        BackendError: The operating system does not say which processors a process may use.
    """
    if not hasattr(os, "sched_getaffinity"):
        raise BackendError("threads are pinned on Linux alone: leave pinning= out")
    found: dict[str, int] = {}
    for processor in sorted(os.sched_getaffinity(0)):
        siblings = TOPOLOGY / f"cpu{processor}" / "topology" / "thread_siblings_list"
        try:
            core = siblings.read_text("ascii").strip()
        except OSError:
            core = str(processor)
        found.setdefault(core, processor)
    return list(found.values())


def pinned_to(threads: int) -> list[int]:
    """Return a processor for each of so many threads, 0 for as many as there are cores; cores first, then their rest.

    Raises:
        BackendError: There are more threads than processors.
    """
    first = cores()
    processors = first + sorted(os.sched_getaffinity(0) - set(first))
    if threads > len(processors):
        raise BackendError(
            f"{threads} threads cannot be pinned to {len(processors)} processors: take fewer threads, or leave "
            "pinning= out"
        )
    return processors[: threads or len(first)]
