"""What a row costs over seconds and minutes: energy per image, and how it holds its speed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vitdeploy.benching.measuring import Entry
from vitdeploy.errors import VitdeployError
from vitdeploy.measure.sensors import Reading, Sensors, joules_of
from vitdeploy.progress import Progress
from vitdeploy.records.report import Device, Sustained
from vitdeploy.sessions import Feed
from vitdeploy.text import one_line

IDLE_S = 2.0
SLICES = 60
MIN_SLICE_S = 0.2
PART_OF_SLICE = 0.1


def measure_energy(
    entries: Sequence[Entry],
    sensors: Mapping[Device, Sensors],
    seconds: float,
    progress: Progress,
    wall: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[Device, float]:
    """Let each row run for ``seconds`` at its first batch size and meter it; return each device's idle watts.

    Rows on a device without a meter are left alone.
    """
    idle: dict[Device, float] = {}
    for device, meter in sensors.items():
        found = joules_of(meter, lambda: sleep(IDLE_S), wall=wall)
        if found is not None:
            idle[device] = found[0] / found[1]
    metered = [entry for entry in entries if entry.alive and entry.blocks and entry.candidate.device in idle]
    with progress.task("Energy", total=len(metered)) as task:
        for entry in metered:
            task.describe(entry.candidate.name)
            batch, feed = _first_feed(entry)
            images = 0

            def work(entry: Entry = entry, feed: Feed = feed, batch: int = batch) -> None:
                nonlocal images
                assert entry.session is not None
                until = wall() + seconds
                while not images or wall() < until:
                    entry.session.run(feed)
                    images += batch

            try:
                found = joules_of(sensors[entry.candidate.device], work, wall=wall)
            except VitdeployError as error:
                entry.notes.append(f"its energy is unknown: {one_line(error)}")
                continue
            if found is None:
                entry.notes.append("its energy is unknown: the device's meter stopped or gave impossible values")
            else:
                entry.energy_mj_per_image = 1000 * found[0] / images
            task.advance()
    return idle


def measure_sustained(
    entries: Sequence[Entry],
    sensors: Mapping[Device, Sensors],
    seconds: float,
    progress: Progress,
    wall: Callable[[], float] = time.perf_counter,
) -> None:
    """Let each row run for ``seconds`` without a pause at its first batch size, in slices whose medians are kept."""
    alive = [entry for entry in entries if entry.alive and entry.blocks]
    slice_s = max(seconds / SLICES, MIN_SLICE_S)
    with progress.task("Sustained", total=len(alive) * max(1, math.ceil(seconds / slice_s))) as task:
        for entry in alive:
            task.describe(entry.candidate.name)
            batch, feed = _first_feed(entry)
            try:
                entry.sustained = _sustain(entry, batch, feed, sensors[entry.candidate.device], seconds, slice_s, wall)
            except Exception as error:  # any runtime's own exception type; the candidate fails, the bench goes on
                entry.failure = f"{type(error).__name__} after a while of running without a pause: {one_line(error)}"
            task.advance(max(1, math.ceil(seconds / slice_s)))


def _sustain(
    entry: Entry,
    batch: int,
    feed: Feed,
    sensors: Sensors,
    seconds: float,
    slice_s: float,
    wall: Callable[[], float],
) -> Sustained:
    assert entry.session is not None
    at_s: list[float] = []
    medians: list[float] = []
    readings: list[Reading] = []
    start = wall()
    calls = 1
    while not at_s or wall() - start < seconds:
        until = wall() + slice_s
        blocks: list[NDArray[np.float64]] = []
        while not blocks or wall() < until:
            blocks.append(entry.session.time(feed, warmup=0, iterations=calls))
            calls = max(1, int(PART_OF_SLICE * slice_s * 1000 / max(float(blocks[-1].max()), 1e-3)))
        at_s.append(round(wall() - start, 3))
        medians.append(float(np.median(np.concatenate(blocks))))
        readings.append(sensors.read())
    tenth = max(1, len(medians) // 10)
    return Sustained(
        batch=batch,
        seconds=at_s[-1],
        at_s=tuple(at_s),
        p50_ms=tuple(medians),
        clock_mhz=tuple(one.clock_mhz for one in readings),
        temperature_c=tuple(one.temperature_c for one in readings),
        throttled=tuple(dict.fromkeys(reason for one in readings for reason in one.throttled)),
        slowdown=float(np.median(medians[-tenth:]) / np.median(medians[:tenth])),
    )


def _first_feed(entry: Entry) -> tuple[int, Feed]:
    """Return the first batch size at which a row was timed, and what it was timed on."""
    assert entry.session is not None
    batch = next(batch for batch, _ in entry.blocks)
    return batch, entry.feeds[batch]
