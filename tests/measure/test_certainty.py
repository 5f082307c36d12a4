"""How many samples certify a drop."""

from __future__ import annotations

import pytest

from vitdeploy.measure.certainty import drop_is_within, least_samples, samples_needed
from vitdeploy.measure.statistics import Z95


@pytest.mark.parametrize("limit", [0.001, 0.003, 0.01, 0.05])
def test_without_a_change_the_number_follows_from_the_quantile(limit: float) -> None:
    """With no discordant pair Tango's lower limit is −z² / (n + z²)."""
    exact = Z95**2 * (1 / limit - 1)
    assert least_samples(limit) == pytest.approx(exact, abs=1.01)
    assert drop_is_within(0, 0, least_samples(limit), limit)
    assert not drop_is_within(0, 0, least_samples(limit) - 1, limit)


@pytest.mark.parametrize(("gained", "lost", "n"), [(0, 1, 1000), (3, 4, 1000), (10, 8, 2000)])
def test_the_number_that_is_said_is_enough_and_few_less_are_not(gained: int, lost: int, n: int) -> None:
    needed = samples_needed(gained, lost, n, 0.003)
    assert needed is not None
    times = round(needed * 1.05 / n) + 1
    assert drop_is_within(gained * times, lost * times, n * times, 0.003)
    fewer = max(1, int(needed * 0.9 / n))
    assert fewer * n > needed or not drop_is_within(gained * fewer, lost * fewer, fewer * n, 0.003)


def test_a_drop_beyond_the_limit_is_never_certified() -> None:
    assert samples_needed(0, 3, 1000, 0.003) is None
    assert samples_needed(5, 20, 1000, 0.01) is None
    assert samples_needed(0, 2, 1000, 0.003) is not None
