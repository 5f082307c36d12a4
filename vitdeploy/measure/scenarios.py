"""The scenarios of MLPerf Inference: single stream, multi stream, offline, and a server with Poisson arrivals.

Counts, durations and percentiles are those of LoadGen's ``mlperf.conf`` (mlcommons/inference, for image
classification); the estimate from few queries is that of its ``early_stopping.cc`` (confidence 0.99, tolerance 0). A
run never ends before both the least number of queries and the least duration are reached, or its time is up.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vitdeploy.records.scenario import ScenarioName, ScenarioResult, ServerTrial

RULE_SECONDS = 600.0
CONFIDENCE = 0.99
PERCENTILES: dict[ScenarioName, float] = {"single-stream": 0.9, "multi-stream": 0.99, "server": 0.99}
STREAMS = 8
OFFLINE_SAMPLES = 24_576
SERVER_BOUND_MS = 15.0
TRIALS = 8
ALONE = 5
LEAST_TRIAL_S = 1.0
CONFIRMATIONS = 5
STEP_BACK = 0.95
RATE_TOLERANCE = 0.02

Run = Callable[[Sequence[int]], None]
"""Computes the samples with these numbers, of a library; returns when all answers are there."""


class Clock(Protocol):
    """A clock that can be waited for; a test has one of its own."""

    def now(self) -> float: ...
    def wait_until(self, moment: float) -> None: ...


class WallClock:
    """The machine's own: sleeps most of the way and spins the rest, as a sleep ends up to a millisecond late."""

    def now(self) -> float:
        return time.perf_counter()

    def wait_until(self, moment: float) -> None:
        while (left := moment - time.perf_counter()) > 0:
            if left > 0.002:
                time.sleep(left - 0.001)


@dataclass(frozen=True)
class Load:
    """What a scenario is run on.

    ``library`` is the number of samples that ``run`` knows, ``batch`` how many of them it takes at once at most.
    ``seconds`` is the time for one run: that of the rules where it is 600.
    """

    run: Run
    library: int
    batch: int = 1
    seconds: float = RULE_SECONDS
    bound_ms: float = SERVER_BOUND_MS
    seed: int = 0
    clock: Clock = WallClock()  # noqa: RUF009  # it has no state


def least_queries(percentile: float, late: int = 1) -> int:
    """Return how many queries must run so that ``late`` of them above a bound show that the percentile keeps it.

    The least n for which at most ``late`` of n queries would be late with less than 1 % chance, were the share of late
    queries that of the percentile: 64 for the 90th and 662 for the 99th with one late query.
    """
    low, high = late + 1, 2 * late + 2
    while not _shown(high, late, percentile):
        low, high = high, 2 * high
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _shown(middle, late, percentile) else (middle + 1, high)
    return low


def _shown(queries: int, late: int, percentile: float) -> bool:
    """Return whether P(at most ``late`` of ``queries`` are late | a share of 1 − percentile is) is below 1 %."""
    logs = [
        math.lgamma(queries + 1) - math.lgamma(k + 1) - math.lgamma(queries - k + 1)
        + k * math.log(1 - percentile) + (queries - k) * math.log(percentile)
        for k in range(late + 1)
    ]  # fmt: skip
    largest = max(logs)
    return largest + math.log(sum(math.exp(one - largest) for one in logs)) <= math.log(1 - CONFIDENCE)


def early_stopping_ms(latencies_ms: NDArray[np.float64], percentile: float) -> float | None:
    """Return a latency that the percentile does not exceed with 99 % confidence; None where queries are too few."""
    count = len(latencies_ms)
    if count < least_queries(percentile):
        return None
    low, high = 1, count - 1
    while low < high:  # the most late queries that still show it
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _shown(count, middle, percentile) else (low, middle - 1)
    return float(np.sort(latencies_ms)[count - low])


def run_scenario(name: ScenarioName, load: Load) -> ScenarioResult:
    """Run one scenario and return what it gave, or how long it would take where it could not be finished."""
    if name == "offline":
        return _offline(load)
    if name == "server":
        return _server(load)
    return _stream(name, load, 1 if name == "single-stream" else STREAMS)


def _stream(name: ScenarioName, load: Load, size: int) -> ScenarioResult:
    """Send a query as soon as the one before it is answered."""
    random, clock, percentile = np.random.default_rng(load.seed), load.clock, PERCENTILES[name]
    needed, found = least_queries(percentile), list[float]()
    start = clock.now()
    while not found or clock.now() - start < load.seconds:
        query = random.integers(0, load.library, size).tolist()
        before = clock.now()
        _compute(load, query)
        found.append(1000 * (clock.now() - before))
    seconds, latencies = clock.now() - start, np.array(found)
    short = len(found) < needed
    return ScenarioResult(
        name=name,
        metric=early_stopping_ms(latencies, percentile),
        percentile_ms=float(np.quantile(latencies, percentile)),
        queries=len(found),
        samples=len(found) * size,
        samples_per_query=size,
        batch=min(load.batch, size),
        seconds=seconds,
        needed_queries=needed,
        needed_seconds=RULE_SECONDS,
        sample_seed=load.seed,
        by_the_rules=not short and seconds >= RULE_SECONDS,
        shortfall=_shortfall(len(found), needed, seconds) if short else "",
    )


def _offline(load: Load) -> ScenarioResult:
    """Send all samples at once: they are computed in batches, back to back."""
    random, clock = np.random.default_rng(load.seed), load.clock
    done, start = 0, clock.now()
    while not done or clock.now() - start < load.seconds:
        load.run(random.integers(0, load.library, load.batch).tolist())
        done += load.batch
    seconds = clock.now() - start
    short = done < OFFLINE_SAMPLES
    return ScenarioResult(
        name="offline",
        metric=None if short else done / seconds,
        queries=1,
        samples=done,
        samples_per_query=done,
        batch=load.batch,
        seconds=seconds,
        needed_queries=OFFLINE_SAMPLES,
        needed_seconds=RULE_SECONDS,
        sample_seed=load.seed,
        by_the_rules=not short and seconds >= RULE_SECONDS,
        shortfall=_shortfall(done, OFFLINE_SAMPLES, seconds) if short else "",
    )


def _server(load: Load) -> ScenarioResult:
    """Find the highest rate of Poisson arrivals at which the bound holds, and confirm it in a run of the whole time.

    The search halves an interval below the rate that the row can compute at all; its runs take a tenth of the time. A
    rate that does not hold over the whole time is lowered by a twentieth, five times at most.
    """
    trials: list[ServerTrial] = []
    latencies = np.concatenate([_arrivals(load, 0.0, 1, load.seconds) for _ in range(ALONE)])
    service_s = float(latencies.min()) / 1000
    if service_s * 1000 > load.bound_ms:
        return _served(
            load, None, trials, latencies, f"one query alone takes {service_s * 1000:.1f} ms, more than the bound"
        )
    low, high = 0.0, load.batch * _rate(load)
    trial_s = max(load.seconds / 10, LEAST_TRIAL_S)
    for _ in range(TRIALS):
        rate = (low + high) / 2
        trial, latencies = _trial(load, rate, min(trial_s, load.seconds))
        trials.append(trial)
        low, high = (rate, high) if trial.passed else (low, rate)
        if high - low <= RATE_TOLERANCE * high:
            break
    for _ in range(CONFIRMATIONS):
        if low <= 0:
            break
        trial, latencies = _trial(load, low, load.seconds)
        trials.append(trial)
        if trial.passed:
            return _served(load, low, trials, latencies, "")
        needed = least_queries(PERCENTILES["server"], max(trial.late, 1))
        if trial.late <= trial.queries * (1 - PERCENTILES["server"]) and trial.queries < needed:
            return _served(load, None, trials, latencies, _shortfall(trial.queries, needed, trial.seconds))
        low *= STEP_BACK
    why = "no rate held the bound over the whole time: allow more time or a higher bound"
    return _served(load, None, trials, latencies, why)


def _rate(load: Load) -> float:
    """Return how many calls of the largest batch fit into a second, from a short burst."""
    clock, calls, start = load.clock, 0, load.clock.now()
    while calls < 3 or clock.now() - start < min(0.5, load.seconds):
        load.run([index % load.library for index in range(load.batch)])
        calls += 1
    return calls / (clock.now() - start)


def _trial(load: Load, rate: float, seconds: float) -> tuple[ServerTrial, NDArray[np.float64]]:
    count = max(1, math.ceil(rate * seconds))
    latencies = _arrivals(load, rate, count, seconds)
    late = int(np.sum(latencies > load.bound_ms))
    percentile = PERCENTILES["server"]
    trial = ServerTrial(
        queries_per_s=rate,
        seconds=count / rate,
        queries=len(latencies),
        late=late,
        percentile_ms=float(np.quantile(latencies, percentile)),
        passed=len(latencies) == count and _shown_or_few(count, late, percentile, seconds >= load.seconds),
    )
    return trial, latencies


def _shown_or_few(queries: int, late: int, percentile: float, whole: bool) -> bool:
    """Return whether a run passes: the confirming one with confidence, one of the search by its own share."""
    return _shown(queries, max(late, 1), percentile) if whole else late <= (1 - percentile) * queries


def _arrivals(load: Load, rate: float, count: int, seconds: float) -> NDArray[np.float64]:
    """Return the latencies in ms of ``count`` queries that arrive at ``rate`` (0: at once), one worker answering them.

    What waits is answered in order, up to ``batch`` queries at once. A queue that grows beyond twice the time of the
    arrivals is given up: the bound is long broken then.
    """
    arrivals_random, samples = np.random.default_rng([load.seed, 1]), np.random.default_rng(load.seed)
    gaps = arrivals_random.exponential(1 / rate, count) if rate else np.zeros(count)
    due = load.clock.now() + np.cumsum(gaps)
    limit = due[-1] + 2 * max(seconds, LEAST_TRIAL_S)
    latencies: list[float] = []
    while len(latencies) < count and (not latencies or load.clock.now() < limit):
        head = len(latencies)
        load.clock.wait_until(float(due[head]))
        waiting = int(np.searchsorted(due, load.clock.now(), side="right")) - head
        taken = max(1, min(waiting, load.batch))
        load.run(samples.integers(0, load.library, taken).tolist())
        done = load.clock.now()
        latencies.extend((1000 * (done - due[head : head + taken])).tolist())
    return np.array(latencies)


def _served(
    load: Load, rate: float | None, trials: Sequence[ServerTrial], latencies: NDArray[np.float64], why: str
) -> ScenarioResult:
    last = trials[-1] if trials else None
    seconds = last.seconds if last is not None else float(latencies.sum()) / 1000
    percentile = PERCENTILES["server"]
    return ScenarioResult(
        name="server",
        metric=rate,
        percentile_ms=float(np.quantile(latencies, percentile)),
        bound_ms=load.bound_ms,
        queries=len(latencies),
        samples=len(latencies),
        samples_per_query=1,
        batch=load.batch,
        seconds=seconds,
        needed_queries=least_queries(percentile, max(last.late if last is not None else 1, 1)),
        needed_seconds=RULE_SECONDS,
        sample_seed=load.seed,
        schedule_seed=load.seed,
        by_the_rules=rate is not None and seconds >= RULE_SECONDS * (1 - RATE_TOLERANCE),
        shortfall=why,
        search=tuple(trials),
    )


def _compute(load: Load, query: Sequence[int]) -> None:
    for start in range(0, len(query), load.batch):
        load.run(query[start : start + load.batch])


def _shortfall(done: int, needed: int, seconds: float) -> str:
    total = seconds * needed / max(done, 1)
    return f"{done} of {needed} in {seconds:.0f} s: it would need about {math.ceil(total)} s"
