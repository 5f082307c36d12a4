"""How busy other processes kept the machine while something was timed: the condition that spoils most benchmarks."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

IDLE_FIELDS = ("idle", "iowait")
COUNTED_TWICE = ("guest", "guest_nice")  # Linux has them in user and nice already


@dataclass
class OtherLoad:
    """``cores`` is how many of the cores that this process may use others kept busy, None where it cannot be told."""

    cores: float | None = None


@contextmanager
def watch_other_load() -> Iterator[OtherLoad]:
    """Measure over the block: (busy time of the usable cores - this process' own CPU time) / wall-clock time.

    What a hypervisor took away (steal) counts as others' work.
    """
    found = OtherLoad()
    before, own_before, start = _busy_s(), time.process_time(), time.perf_counter()
    yield found
    after, own, wall = _busy_s(), time.process_time() - own_before, time.perf_counter() - start
    if before is not None and after is not None and wall > 0:
        found.cores = max(0.0, (after - before - own) / wall)


def _busy_s() -> float | None:
    """Return the seconds that the usable cores have been busy since the machine started."""
    import psutil

    try:
        cores = psutil.cpu_times(percpu=True)
    except (OSError, RuntimeError, NotImplementedError):
        return None
    if hasattr(os, "sched_getaffinity"):
        usable = os.sched_getaffinity(0)
        cores = [core for index, core in enumerate(cores) if index in usable] or cores
    return sum(
        seconds
        for core in cores
        for name, seconds in core._asdict().items()
        if name not in (*IDLE_FIELDS, *COUNTED_TWICE)
    )
