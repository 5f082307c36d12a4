from __future__ import annotations

import pytest

from vitdeploy.training.schedule import Schedule, seed_of


def test_the_rate_rises_to_its_peak_and_falls_to_its_end() -> None:
    schedule = Schedule(peak=1.0, final=0.1, warmup=10, total=110)
    rates = [schedule.learning_rate(update) for update in range(110)]
    assert 0 < rates[0] < rates[5] < rates[9] < rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[60] == pytest.approx(0.55)
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)


def test_without_warmup_the_first_rate_is_the_peak() -> None:
    assert Schedule(peak=0.5, final=0.0, warmup=0, total=4).learning_rate(0) == 0.5


def test_seeds_differ_by_every_number_and_by_order() -> None:
    seeds = {seed_of(0, "a", 1, 2), seed_of(0, "a", 2, 1), seed_of(1, "a", 1, 2), seed_of(0, "b", 1, 2), seed_of(0)}
    assert len(seeds) == 5
    assert all(0 <= seed < 1 << 63 for seed in seeds)
    assert seed_of(0, "a", 1, 2) == seed_of(0, "a", 1, 2)
