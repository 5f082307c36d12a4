"""Latency over the number of threads and the batch, of what runs on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from vitdeploy.benching.measuring import Entry
from vitdeploy.benching.options import BenchOptions
from vitdeploy.measure import statistics
from vitdeploy.measure.timing import Contestant, time_in_turns
from vitdeploy.progress import Progress
from vitdeploy.records.report import ThreadTiming
from vitdeploy.text import one_line


def measure_thread_counts(entries: Sequence[Entry], options: BenchOptions, progress: Progress) -> None:
    """Open each row of the CPU once for each number of threads, and time all of them in turns, batch by batch."""
    alive = [entry for entry in entries if entry.alive and entry.candidate.device == "cpu" and entry.feeds]
    for batch in options.batches:
        timed = [entry for entry in alive if (batch, "end_to_end") in entry.blocks]
        places: dict[str, tuple[Entry, int]] = {}
        contestants: dict[str, Contestant] = {}
        with ExitStack() as stack:
            for entry in timed:
                for threads in options.thread_counts:
                    try:
                        session = stack.enter_context(entry.candidate.open(threads=threads, tf32=options.tf32))
                    except Exception as error:  # any runtime's own exception type; the row keeps what it has
                        entry.notes.append(f"with {threads} threads it was not timed: {one_line(error)}")
                        continue
                    name = f"{entry.candidate.name} batch {batch}, threads {threads}"
                    places[name] = entry, threads
                    contestants[name] = Contestant(session, entry.feeds[batch])
            turns = time_in_turns(contestants, options.turns, progress=progress)
        for name, (entry, threads) in places.items():
            if name in turns.failures:
                entry.notes.append(f"with {threads} threads it was not timed: {turns.failures[name]}")
                continue
            found = statistics.latency(turns.blocks[name], seed=options.seed)
            entry.by_threads.append(
                ThreadTiming(
                    threads=threads,
                    batch=batch,
                    p50_ms=found.p50_ms,
                    p50_ci95=found.p50_ci95,
                    images_per_s=1000 * batch / found.mean_ms,
                )
            )
