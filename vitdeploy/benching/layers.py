"""Where the time of each row goes: its layers, profiled beside the turns so that no latency is disturbed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vitdeploy.artifacts import OnnxModel
from vitdeploy.artifacts.lineage import ancestors
from vitdeploy.benching.measuring import Entry
from vitdeploy.benching.options import BenchOptions
from vitdeploy.progress import Progress
from vitdeploy.records import LayerCost, LayerProfile
from vitdeploy.records.layer_profile import Part
from vitdeploy.sessions import Feed, LayerTimes
from vitdeploy.text import one_line

CALLS = 40


def measure_layers(entries: Sequence[Entry], options: BenchOptions, progress: Progress) -> None:
    """Profile every row that was timed at its first batch size; one that cannot be profiled gets a note."""
    timed = [entry for entry in entries if entry.alive and entry.blocks]
    with progress.task("Layers", total=len(timed)) as task:
        for entry in timed:
            task.describe(entry.candidate.name)
            batch = next(batch for batch, _ in entry.blocks)
            try:
                times = _times(entry, entry.feeds[batch], options)
                if times is None:
                    entry.notes.append("its runtime does not tell how long each layer takes")
                else:
                    entry.layer_profile = summarize(times, _parts(entry), batch)
            except Exception as error:  # any runtime's own exception type; the row keeps what was measured before
                entry.notes.append(f"how long its layers take is unknown: {one_line(error)}")
            task.advance()


def summarize(times: LayerTimes, parts: dict[str, Part], batch: int) -> LayerProfile:
    """Return the profile of a row; ``parts`` is what ``graph.parts.parts_of`` gives of its model."""
    from vitdeploy.graph.parts import part_of_layer

    return LayerProfile(
        batch=batch,
        calls=len(times.call_ms),
        call_ms=float(np.median(times.call_ms)),
        layers=tuple(
            LayerCost(
                name=layer.name,
                operator=layer.operator,
                precision=layer.precision,
                part=part_of_layer(layer.operator, layer.sources, parts),
                ms=interquartile_mean(layer.ms),
                sources=layer.sources,
            )
            for layer in times.layers
        ),
    )


def interquartile_mean(values: NDArray[np.float64]) -> float:
    """Return the mean of the middle half: as steady as a median, and finer where a clock counts whole microseconds."""
    cut = len(values) // 4
    return float(np.sort(values)[cut : len(values) - cut].mean())


def _times(entry: Entry, feed: Feed, options: BenchOptions) -> LayerTimes | None:
    assert entry.session is not None
    if entry.candidate.device == "cpu":
        return entry.session.layer_times(feed, warmup=options.warmup, iterations=CALLS)
    with entry.candidate.open(
        tf32=options.tf32, cuda_graph=False, cpu_fallback=options.cpu_fallback
    ) as session:  # a recorded graph is one launch, whose layers no profiler reports
        return session.layer_times(feed, warmup=options.warmup, iterations=CALLS)


def _parts(entry: Entry) -> dict[str, Part]:
    """Return the part of each node of the graph that a row runs, or was built from; empty where that is not there."""
    from vitdeploy.graph.parts import parts_of

    artifact = entry.candidate.artifact
    graph = next((one for one in ancestors([artifact]) if isinstance(one, OnnxModel)), None) if artifact else None
    return {} if graph is None else parts_of(graph.load())
