"""How many samples it takes to be certain that accuracy dropped by no more than a limit."""

from __future__ import annotations

from vitdeploy.measure.statistics import tango_interval

MOST_SAMPLES = 10**9


def drop_is_within(gained: int, lost: int, n: int, max_drop: float) -> bool:
    """Return whether the whole 95 % interval of the paired drop (lost - gained) / n is within ``max_drop``, in 0…1."""
    return tango_interval(gained, lost, n)[0] >= -max_drop


def samples_needed(gained: int, lost: int, n: int, max_drop: float) -> int | None:
    """Return about how many samples would make ``drop_is_within`` true, if predictions went on to change at this rate.

    None where the drop itself is not below ``max_drop``: then no number would do.
    """
    if (lost - gained) / n >= max_drop:
        return None

    def is_enough(count: int) -> bool:
        return tango_interval(gained * count / n, lost * count / n, count)[0] >= -max_drop

    low, high = 0, 1
    while not is_enough(high):
        low, high = high, 2 * high
        if high > MOST_SAMPLES:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


def least_samples(max_drop: float) -> int:
    """Return how many samples certify a drop of at most ``max_drop`` (in 0…1) where no prediction changes at all."""
    found = samples_needed(0, 0, 1, max_drop)
    assert found is not None
    return found
