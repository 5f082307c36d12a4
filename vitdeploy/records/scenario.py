"""What a row does under the load of a scenario of MLPerf Inference."""

from __future__ import annotations

from typing import Literal

from vitdeploy.records.base import Record

ScenarioName = Literal["single-stream", "multi-stream", "offline", "server"]
SCENARIO_NAMES: tuple[ScenarioName, ...] = ("single-stream", "multi-stream", "offline", "server")


class ServerTrial(Record):
    """One run of the search for the highest rate: whether the latency bound held at ``queries_per_s``."""

    queries_per_s: float
    seconds: float
    queries: int
    late: int
    percentile_ms: float
    passed: bool


class ScenarioResult(Record):
    """One scenario. Latency is from when a query was due to its answer, for all of its samples.

    ``metric`` is the scenario's own number: the 90th percentile of a single stream's latency in ms, the 99th of a query
    of eight samples in ms, samples per second offline, queries per second of a server that keeps ``bound_ms`` for 99 %
    of its queries. None where too few queries were run to say; ``shortfall`` says then how long it would take.
    ``percentile_ms`` is that of the sample; ``metric`` of the first two is LoadGen's early-stopping estimate, which is
    at least as large with 99 % confidence. ``by_the_rules`` says whether count and duration are those that MLPerf asks
    for; nothing here is a result of MLPerf, whose rules ask for more than that.
    """

    name: ScenarioName
    metric: float | None
    percentile_ms: float | None = None
    bound_ms: float | None = None
    queries: int
    samples: int
    samples_per_query: int
    batch: int
    seconds: float
    needed_queries: int
    needed_seconds: float
    sample_seed: int
    schedule_seed: int | None = None
    by_the_rules: bool
    shortfall: str = ""
    search: tuple[ServerTrial, ...] = ()
