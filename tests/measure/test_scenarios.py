"""The scenarios of MLPerf Inference, on a clock of the test's own: no machine's speed is in these numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from vitdeploy.measure.scenarios import (
    OFFLINE_SAMPLES,
    Load,
    early_stopping_ms,
    least_queries,
    run_scenario,
)
from vitdeploy.records.scenario import ScenarioName

pytestmark = pytest.mark.slow

Cost = Callable[[int, int], float]
"""Number of a call and of its samples → seconds."""


class VirtualMachine:
    """A clock, and a model that takes what a script says; ``calls`` are the samples of each call."""

    def __init__(self, cost: Cost) -> None:
        self.time, self.cost = 100.0, cost
        self.calls: list[list[int]] = []

    def now(self) -> float:
        return self.time

    def wait_until(self, moment: float) -> None:
        self.time = max(self.time, moment)

    def run(self, samples: Sequence[int]) -> None:
        self.time += self.cost(len(self.calls), len(samples))
        self.calls.append(list(samples))

    def load(self, **fields: float) -> Load:
        return Load(self.run, 50, clock=self, **{"seconds": 60.0, "seed": 3, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(("percentile", "late", "count"), [(0.9, 1, 64), (0.99, 1, 662), (0.9, 2, 81)])
def test_least_counts_are_loadgens(percentile: float, late: int, count: int) -> None:
    assert least_queries(percentile, late) == count


def test_early_stopping_gives_the_worst_of_few_and_comes_close_with_many() -> None:
    values = np.random.default_rng(0).permutation(np.arange(1.0, 100_001.0))
    assert early_stopping_ms(values[:63], 0.9) is None
    assert early_stopping_ms(values[:64], 0.9) == values[:64].max()
    estimate = early_stopping_ms(values, 0.9)
    assert estimate is not None
    assert 90_000 < estimate < 90_400


@pytest.mark.parametrize(("name", "size", "percentile"), [("single-stream", 1, 0.9), ("multi-stream", 8, 0.99)])
def test_a_stream_sends_one_query_after_the_other_and_reports_its_tail(
    name: ScenarioName, size: int, percentile: float
) -> None:
    machine = VirtualMachine(lambda call, count: 0.004 * count if call % 200 < 196 else 0.050)
    found = run_scenario(name, machine.load(seconds=600.0, batch=8))
    assert found.samples_per_query == size
    assert found.by_the_rules
    assert found.shortfall == ""
    assert all(len(call) == size for call in machine.calls)
    assert found.queries == len(machine.calls)
    assert found.seconds >= 600
    assert found.percentile_ms == pytest.approx(4.0 if name == "single-stream" else 50.0)
    assert found.metric == pytest.approx(found.percentile_ms)
    assert {sample for call in machine.calls for sample in call} == set(range(50))


def test_a_query_of_eight_goes_in_pieces_where_a_row_takes_no_batch_of_eight() -> None:
    machine = VirtualMachine(lambda _, count: 0.001 * count)
    found = run_scenario("multi-stream", machine.load(batch=3))
    assert [len(call) for call in machine.calls[:3]] == [3, 3, 2]
    assert found.percentile_ms == pytest.approx(8.0)


@pytest.mark.parametrize(
    ("name", "needed", "seconds_each", "said"),
    [
        ("single-stream", 64, 2.0, "30 of 64 in 60 s: it would need about 128 s"),
        ("multi-stream", 662, 2.0, "30 of 662 in 60 s: it would need about 1324 s"),
        ("offline", OFFLINE_SAMPLES, 0.5, "120 of 24576 in 60 s: it would need about 12288 s"),
    ],
)
def test_a_scenario_that_cannot_reach_its_count_says_how_long_it_would_need(
    name: ScenarioName, needed: int, seconds_each: float, said: str
) -> None:
    machine = VirtualMachine(lambda *_: seconds_each)
    found = run_scenario(name, machine.load(batch=8 if name == "multi-stream" else 1))
    assert found.metric is None
    assert found.needed_queries == needed
    assert found.shortfall == said
    assert not found.by_the_rules


def test_enough_queries_in_a_shorter_time_are_a_number_but_not_by_the_rules() -> None:
    machine = VirtualMachine(lambda *_: 0.01)
    found = run_scenario("single-stream", machine.load(seconds=5.0))
    assert found.metric == pytest.approx(10.0)
    assert not found.by_the_rules
    assert found.needed_seconds == 600


def test_offline_is_samples_per_second_of_the_largest_batch() -> None:
    machine = VirtualMachine(lambda _, count: 0.002 + 0.001 * count)
    found = run_scenario("offline", machine.load(seconds=600.0, batch=8))
    assert found.metric == pytest.approx(800.0)
    assert found.by_the_rules
    assert {len(call) for call in machine.calls} == {8}


def test_a_server_finds_the_rate_at_which_the_bound_holds() -> None:
    """An M/D/1 queue: at a service of 10 ms its 99th percentile passes 100 ms at a load of about 0.8."""
    machine = VirtualMachine(lambda *_: 0.010)
    found = run_scenario("server", machine.load(seconds=100.0, bound_ms=100.0))
    assert found.metric is not None
    assert 70 < found.metric < 90
    assert found.search[-1].passed
    assert found.search[-1].queries_per_s == found.metric
    assert found.search[-1].late <= 0.01 * found.search[-1].queries
    assert any(not trial.passed for trial in found.search)
    assert found.queries >= found.needed_queries


def test_a_server_that_may_batch_serves_more() -> None:
    alone, batched = (
        run_scenario("server", VirtualMachine(lambda _, count: 0.008 + 0.002 * count).load(bound_ms=100.0, batch=batch))
        for batch in (1, 8)
    )
    assert alone.metric is not None
    assert batched.metric is not None
    assert batched.metric > 2 * alone.metric


def test_arrivals_are_those_of_their_seed() -> None:
    def served(seed: int) -> tuple[object, list[list[int]]]:
        machine = VirtualMachine(lambda *_: 0.010)
        return run_scenario("server", machine.load(seconds=20.0, bound_ms=100.0, seed=seed)).search, machine.calls

    assert served(1) == served(1)
    assert served(1) != served(2)


@pytest.mark.parametrize(
    ("service_s", "seconds", "said"),
    [(0.2, 60.0, "one query alone takes 200.0 ms, more than the bound"), (0.01, 2.0, "it would need about")],
)
def test_a_server_that_cannot_keep_or_show_the_bound_says_why(service_s: float, seconds: float, said: str) -> None:
    machine = VirtualMachine(lambda *_: service_s)
    found = run_scenario("server", machine.load(seconds=seconds, bound_ms=100.0))
    assert found.metric is None
    assert said in found.shortfall
    assert not found.by_the_rules
