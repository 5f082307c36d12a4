"""Two graphs are timed in turns at each batch, and the intervals of their ratios decide."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest

from vitdeploy.measure import pairs
from vitdeploy.measure.pairs import gains, loses, speeds_text, time_pair
from vitdeploy.measure.timing import TurnOptions
from vitdeploy.records import PairedSpeed
from vitdeploy.sessions import Feed, TensorSpec


@dataclass
class Scripted:
    """A session whose calls take the milliseconds that are written for their batch size."""

    milliseconds: Mapping[int, float]
    batch: int | None = None
    inputs: dict[str, TensorSpec] = field(init=False)

    def __post_init__(self) -> None:
        self.inputs = {"input": TensorSpec("input", np.dtype(np.float32), (self.batch, 1, 8, 8))}

    def time(self, feed: Feed, *, warmup: int, iterations: int, scope: str = "end_to_end") -> np.ndarray:
        return np.full(iterations, self.milliseconds[len(feed["input"])])


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        (Scripted({1: 3.0, 8: 2.0}), Scripted({1: 2.0, 8: 2.0}), {1: 1.5, 8: 1.0}),
        (Scripted({4: 1.0}, 4), Scripted({4: 2.0}, 4), {4: 0.5}),
        (Scripted({1: 3.0, 8: 2.0}), Scripted({1: 2.0}), {1: 1.5}),
    ],
    ids=["any batch", "one batch", "fails at 8"],
)
def test_a_pair_is_timed_at_each_batch(
    before: Scripted, after: Scripted, found: dict[int, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs, "TURNS", TurnOptions(rounds=3, warmup=1, iterations=2, fill_s=0.0))
    speeds = time_pair(before, after, np.zeros((2, 1, 8, 8), np.float32))  # type: ignore[arg-type]
    assert {one.batch: one.speedup for one in speeds} == found
    assert all(one.interval == pytest.approx((one.speedup, one.speedup)) for one in speeds)


FASTER, SLOWER, EQUAL = (1.1, 1.3), (0.7, 0.9), (0.9, 1.1)


@pytest.mark.parametrize(
    ("intervals", "gain", "loss"),
    [
        ((FASTER, EQUAL), True, False),
        ((EQUAL, EQUAL), False, False),
        ((FASTER, SLOWER), False, True),
        ((None,), False, False),
        ((), False, False),
    ],
)
def test_a_step_gains_by_its_intervals(
    intervals: tuple[tuple[float, float] | None, ...], gain: bool, loss: bool
) -> None:
    speeds = [PairedSpeed(batch=1, speedup=1.5, interval=interval) for interval in intervals]
    assert (gains(speeds), loses(speeds)) == (gain, loss)


def test_speeds_are_said_for_each_batch() -> None:
    speeds = [PairedSpeed(batch=1, speedup=1.2, interval=FASTER), PairedSpeed(batch=8, speedup=0.8, interval=SLOWER)]
    assert speeds_text(speeds) == (
        "1.200× [1.100, 1.300] as fast at batch 1, slower: 1.250× [1.111, 1.429] the time at batch 8"
    )
    assert speeds_text(()) == "not timed"
