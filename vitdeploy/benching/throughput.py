"""Images per second of rows that can keep several execution contexts at work at once."""

from __future__ import annotations

from collections.abc import Sequence

from vitdeploy.benching.measuring import Entry
from vitdeploy.benching.options import BenchOptions
from vitdeploy.progress import Progress
from vitdeploy.records.report import Throughput
from vitdeploy.sessions import Scope
from vitdeploy.text import one_line

SECONDS = 3.0
SCOPES: tuple[Scope, ...] = ("device", "end_to_end")


def measure_throughput(entries: Sequence[Entry], options: BenchOptions, progress: Progress) -> None:
    """Run each row with each number of streams at each batch size that it was timed at, alone, for three seconds."""
    alive = [entry for entry in entries if entry.alive and entry.blocks]
    with progress.task("Throughput", total=len(alive)) as task:
        for entry in alive:
            task.describe(entry.candidate.name)
            try:
                if not _measure(entry, options):
                    entry.notes.append(
                        "it was not run with several streams: only engines on a GPU have contexts for them"
                    )
            except Exception as error:  # any runtime's own exception type; the row keeps what was measured before
                entry.notes.append(f"its throughput with several streams is unknown: {one_line(error)}")
            task.advance()


def _measure(entry: Entry, options: BenchOptions) -> bool:
    """Return whether the row's runtime has streams; what they gave is kept in the entry."""
    assert entry.session is not None
    for batch, feed in entry.feeds.items():
        if not any(timed == batch for timed, _ in entry.blocks):
            continue
        for streams in options.streams:
            for scope in SCOPES:
                rate = entry.session.throughput(feed, streams=streams, seconds=SECONDS, scope=scope)
                if rate is None:
                    return False
                entry.throughput.append(
                    Throughput(batch=batch, streams=streams, scope=scope, images_per_s=rate, seconds=SECONDS)
                )
    return True
