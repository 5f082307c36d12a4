"""The timing of a bench: entries take turns, are audited between them, and are compared with their baseline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.benching.candidates import batch_fits
from vitdeploy.benching.image_to_label import ImageToLabel
from vitdeploy.benching.measuring import Entry
from vitdeploy.benching.options import BenchOptions
from vitdeploy.datasets import Dataset, batches
from vitdeploy.measure import statistics
from vitdeploy.measure.audit import POOL_IMAGES, Auditor
from vitdeploy.measure.sensors import Sensors, summarize
from vitdeploy.measure.timing import Contestant, Turns, time_in_turns
from vitdeploy.progress import Progress
from vitdeploy.records import Preprocess, Timing
from vitdeploy.records.report import Device, SelfCheck, TimedScope

GPU_WARM_S = 0.2  # an H100 idles at 345 MHz and works at 1980 MHz
TWICE = "a second time"


@dataclass(frozen=True)
class _Place:
    """Whose turns a contestant's are; ``auditor`` where outputs are sampled between them."""

    entry: Entry
    scope: TimedScope
    auditor: Auditor | None = None


def measure_latency(
    entries: Sequence[Entry],
    batch: int,
    dataset: Dataset,
    options: BenchOptions,
    sensors: Mapping[Device, Sensors],
    progress: Progress,
) -> SelfCheck | None:
    """Time all entries that take this batch in turns; entries on a GPU also without the copies to and from it.

    Returns:
        What a self-check found of the first entry, which then took part twice; None without one.
    """
    contestants: dict[str, Contestant] = {}
    places: dict[str, _Place] = {}
    pools: dict[Preprocess, NDArray[np.float32]] = {}
    for entry in entries:
        session, preprocess = entry.session, entry.candidate.preprocess
        if session is None or preprocess is None or entry.failure is not None or entry.logits is None:
            continue
        obstacle = batch_fits(entry.candidate, session, batch)
        if obstacle is not None:
            entry.notes.append(obstacle)
            continue
        if preprocess not in pools:
            pools[preprocess] = next(batches(dataset, preprocess, max(POOL_IMAGES, batch)))
        images = pools[preprocess]
        span = float(entry.logits.max() - entry.logits.min())
        auditor = Auditor(session, images, entry.logits[: len(images)], span, batch)
        entry.feeds[batch] = auditor.feed
        warm_s = GPU_WARM_S if entry.candidate.device == "cuda" else 0.0
        name = f"{entry.candidate.name} batch {batch}"
        meter = sensors[entry.candidate.device]
        phases = _phases(entry, batch, "end_to_end", meter, auditor)
        contestants[name] = Contestant(session, auditor.feed, "end_to_end", warm_s, phases)
        places[name] = _Place(entry, "end_to_end", auditor)
        if entry.candidate.device != "cpu":
            title = f"{name} device"
            phases = _phases(entry, batch, "device", meter)
            contestants[title] = Contestant(session, auditor.feed, "device", warm_s, phases)
            places[title] = _Place(entry, "device")
        if options.image_to_label and all(scope != "image_to_label" for _, scope in entry.blocks):
            title, limits = f"{name} image to label", entry.candidate.limits
            whole = ImageToLabel(session, dataset, preprocess, entry.candidate.model, batch, limits)
            phases = _phases(entry, batch, "image_to_label", meter)
            contestants[title] = Contestant(whole, auditor.feed, "end_to_end", warm_s, phases)
            places[title] = _Place(entry, "image_to_label")
    first = next(iter(places), None)
    if options.self_check and first is not None:
        contestants[f"{first} {TWICE}"] = replace(contestants[first], after_turn=None)
    turns = time_in_turns(contestants, options.turns, progress=progress)
    for name, place in places.items():
        if name in turns.failures:
            place.entry.failure = turns.failures[name]
        else:
            place.entry.blocks[batch, place.scope] = turns.blocks[name]
    for place in places.values():
        if place.entry.alive:
            _record(place, entries, batch, options.seed)
    if not options.self_check or first is None:
        return None
    _time_alone(contestants, places, turns, batch, options, progress)
    return _twice(first, places[first].entry, turns, batch, options.seed)


def _phases(
    entry: Entry, batch: int, scope: TimedScope, meter: Sensors, auditor: Auditor | None = None
) -> Callable[[NDArray[np.float64]], str | None]:
    """Return what is done after each turn: a look at the device's sensors, and the audit."""
    readings = entry.readings.setdefault((batch, scope), [])

    def look(block: NDArray[np.float64]) -> str | None:
        readings.append(meter.read())
        return auditor.after_turn(block) if auditor is not None else None

    return look


def _record(place: _Place, entries: Sequence[Entry], batch: int, seed: int) -> None:
    entry, scope = place.entry, place.scope
    blocks = entry.blocks[batch, scope]
    latency = statistics.latency(blocks, seed=seed)
    seen = summarize(entry.readings[batch, scope])
    other = _latency_baseline(entry, entries, batch, scope)
    ratio, interval = None, None
    if other is not None and other is not entry:
        ratio, interval = statistics.speedup(blocks, other.blocks[batch, scope], seed=seed)
        entry.against = other.candidate.name
    entry.timings.append(
        Timing(
            batch=batch,
            scope=scope,
            **asdict(latency),
            images_per_s=1000 * batch / latency.mean_ms,
            audit=place.auditor.result() if place.auditor is not None else None,
            clock_mhz=seen.clock_mhz,
            temperature_c=seen.temperature_c,
            power_w=seen.power_w,
            throttled=seen.throttled,
            enqueue_ms=entry.session.enqueue_ms(batch) if entry.session is not None and scope == "device" else None,
            launch=entry.session.launch_mode(batch) if entry.session is not None else None,
            speedup=ratio,
            speedup_ci95=interval,
        )
    )


def _latency_baseline(entry: Entry, entries: Sequence[Entry], batch: int, scope: TimedScope) -> Entry | None:
    """Return whose time this one's is compared with.

    The baseline on the same device; without one, the FP32 graph on the same runtime. Never across devices.
    """
    timed = [
        one
        for one in entries
        if one.alive and (batch, scope) in one.blocks and one.candidate.device == entry.candidate.device
    ]
    baselines = [one for one in timed if one.is_baseline]
    same_runtime = [
        one
        for one in timed
        if one.candidate.precision == "fp32"
        and (one.candidate.backend, one.candidate.provider) == (entry.candidate.backend, entry.candidate.provider)
    ]
    return next(iter(baselines or same_runtime), None)


def _time_alone(
    contestants: Mapping[str, Contestant],
    places: Mapping[str, _Place],
    turns: Turns,
    batch: int,
    options: BenchOptions,
    progress: Progress,
) -> None:
    """Time each contestant with no other in between, and put the ratio beside its timing."""
    for name, place in places.items():
        if not place.entry.alive:
            continue
        alone = time_in_turns({name: replace(contestants[name], after_turn=None)}, options.turns, progress=progress)
        if name in alone.failures:
            place.entry.failure = alone.failures[name]
            continue
        ratio, interval = statistics.speedup(alone.blocks[name], turns.blocks[name], seed=options.seed)
        found: dict[str, Any] = {"alone_ratio": ratio, "alone_ci95": interval}
        place.entry.timings = [
            timing.model_copy(update=found) if (timing.batch, timing.scope) == (batch, place.scope) else timing
            for timing in place.entry.timings
        ]


def _twice(first: str, entry: Entry, turns: Turns, batch: int, seed: int) -> SelfCheck | None:
    again = f"{first} {TWICE}"
    if first in turns.failures or again in turns.failures:
        return None
    ratio, interval = statistics.speedup(turns.blocks[again], turns.blocks[first], seed=seed)
    return SelfCheck(row=entry.candidate.name, batch=batch, ratio=ratio, ratio_ci95=interval)
