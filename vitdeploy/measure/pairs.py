"""Whether one graph is faster than another on this machine: both timed in turns, at a small and a larger batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vitdeploy.measure.statistics import speedup
from vitdeploy.measure.timing import Contestant, TurnOptions, time_in_turns
from vitdeploy.progress import SILENT, Progress
from vitdeploy.records import PairedSpeed
from vitdeploy.sessions import Opener, Session
from vitdeploy.wording import speed_text

if TYPE_CHECKING:
    import onnx_ir as ir

BATCHES = (1, 8)
TURNS = TurnOptions(rounds=15, warmup=1, iterations=10, block_s=0.2, fill_s=0.05)

Speeds = tuple[PairedSpeed, ...]
TimePair = Callable[["ir.Model", "ir.Model"], Speeds]
"""(before, after) → how many times as fast the second graph is where latency counts, at each batch size."""


def pair_timer(open_graph: Opener, images: NDArray[np.generic], progress: Progress = SILENT) -> TimePair:
    """Return what times two graphs that are in memory.

    Args:
        open_graph: Opens them where latency counts.
        images: [n, ...] as the graphs take them; repeated to fill a batch.
        progress: Shows the turns.
    """

    def timed(before: ir.Model, after: ir.Model) -> Speeds:
        with open_graph(before) as one, open_graph(after) as other:
            return time_pair(one, other, images, progress)

    return timed


def time_pair(before: Session, after: Session, images: NDArray[np.generic], progress: Progress = SILENT) -> Speeds:
    """Return how many times as fast the second session is at each of ``BATCHES``, timed in turns.

    A graph with a fixed batch is timed at that one; a batch at which either fails is left out.

    Args:
        before: The graph without a step.
        after: The graph with it.
        images: [n, ...] as the graph takes them; repeated to fill a batch.
        progress: Shows the turns.
    """
    (spec,) = before.inputs.values()
    found = []
    for batch in BATCHES if spec.shape[0] is None else (spec.shape[0],):
        feed = {spec.name: np.resize(images, (batch, *images.shape[1:])).astype(spec.dtype)}
        pair = {"before": Contestant(before, feed), "after": Contestant(after, feed)}
        turns = time_in_turns(pair, TURNS, progress=progress)
        if not turns.failures:
            ratio, interval = speedup(turns.blocks["after"], turns.blocks["before"])
            found.append(PairedSpeed(batch=batch, speedup=ratio, interval=interval))
    return tuple(found)


def gains(speeds: Sequence[PairedSpeed]) -> bool:
    """Return whether a step is faster at some batch size and slower at none, by the 95 % intervals of its ratios."""
    known = [one.interval for one in speeds if one.interval is not None]
    return any(low > 1 for low, _ in known) and not loses(speeds)


def loses(speeds: Sequence[PairedSpeed]) -> bool:
    """Return whether a step is slower at some batch size, by the 95 % intervals of its ratios."""
    return any(one.interval is not None and one.interval[1] < 1 for one in speeds)


def speeds_text(speeds: Sequence[PairedSpeed]) -> str:
    """Return in words how fast: ``1.26× [1.22, 1.38] as fast at batch 1, slower: 1.1× [1.05, 1.2] the time at 8``."""
    parts = [f"{speed_text(one.speedup, one.interval, digits=3)} at batch {one.batch}" for one in speeds]
    return ", ".join(parts) or "not timed"
