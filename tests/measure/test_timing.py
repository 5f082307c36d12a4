from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from vitdeploy.measure import statistics
from vitdeploy.measure.timing import (
    MAX_CALLS_PER_TURN,
    PILOT_CALLS,
    Contestant,
    TurnOptions,
    Turns,
    time_in_turns,
    wait_for_rest,
)
from vitdeploy.sessions import TensorSpec


@dataclass
class Machine:
    """A clock that all sessions share, and the log of turns in the order in which they happened."""

    turns: list[tuple[str, int, int]] = field(default_factory=list)
    last: str = ""


@dataclass
class ScriptedSession:
    """Takes ``call_ms`` per call; the first ``disturbed`` calls after another's turn take 2.2 times as long."""

    name: str
    machine: Machine
    call_ms: float
    disturbed: int = 0
    slower_per_turn: float = 0.0
    fails_in_turn: int | None = None
    inputs: dict[str, TensorSpec] = field(default_factory=dict)
    outputs: dict[str, TensorSpec] = field(default_factory=dict)
    taken: int = 0

    def time(self, feed, *, warmup: int, iterations: int, scope: str = "end_to_end") -> np.ndarray:
        self.machine.turns.append((self.name, warmup, iterations))
        self.taken += 1
        if self.fails_in_turn is not None and self.taken > self.fails_in_turn:
            raise RuntimeError(f"device lost\nin turn {self.taken}")
        calls = np.full(warmup + iterations, self.call_ms + self.slower_per_turn * self.taken)
        if self.machine.last != self.name:
            calls[: self.disturbed] *= 2.2
        self.machine.last = self.name
        return calls[warmup:]

    def run(self, feed):
        return {}

    def close(self) -> None:
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        pass


def _contest(*sessions: ScriptedSession) -> dict[str, Contestant]:
    return {session.name: Contestant(session, {}) for session in sessions}


def _time(sessions, **options: Any) -> Turns:
    return time_in_turns(_contest(*sessions), TurnOptions(**options), rest=lambda: None)


def test_each_contestant_has_one_turn_in_each_round_and_rounds_are_shuffled() -> None:
    machine = Machine()
    _time([ScriptedSession(name, machine, 5.0) for name in "abcd"], rounds=8)
    names = [name for name, _, _ in machine.turns]
    assert names[:4] == list("abcd")  # the pilot
    rounds = [tuple(names[start : start + 4]) for start in range(4, len(names), 4)]
    assert len(rounds) == 8
    assert all(sorted(order) == list("abcd") for order in rounds)
    assert len(set(rounds)) > 3


def test_order_is_the_same_for_the_same_seed_and_another_for_another() -> None:
    orders = []
    for seed in (1, 1, 2):
        machine = Machine()
        _time([ScriptedSession(name, machine, 5.0) for name in "abcd"], rounds=8, seed=seed)
        orders.append([name for name, _, _ in machine.turns])
    assert orders[0] == orders[1] != orders[2]


def test_a_turn_is_a_block_of_twenty_calls_whose_first_calls_are_thrown_away() -> None:
    machine = Machine()
    fast = ScriptedSession("fast", machine, 8.0, disturbed=5)
    other = ScriptedSession("other", machine, 16.0, disturbed=5)
    turns = _time([fast, other], rounds=6)
    for name, expected in (("fast", 8.0), ("other", 16.0)):
        assert [block.size for block in turns.blocks[name]] == [20] * 6
        assert np.concatenate(turns.blocks[name]).max() == expected


@pytest.mark.parametrize(
    ("call_ms", "thrown", "counted"),
    [
        (10.0, 10, 20),  # an ordinary model: 20 calls, the warm-up fills 0.1 s
        (0.5, 200, 200),  # a quick one: as many as fill 0.1 s
        (0.001, MAX_CALLS_PER_TURN, MAX_CALLS_PER_TURN),
        (100.0, 5, 5),  # a slow one: half a second instead of 20 calls
        (2000.0, 1, 1),
    ],
)
def test_length_of_a_turn_follows_the_length_of_a_call(call_ms: float, thrown: int, counted: int) -> None:
    assert TurnOptions().calls(call_ms) == (thrown, counted)
    machine = Machine()
    _time([ScriptedSession("model", machine, call_ms)], rounds=2)
    assert machine.turns == [("model", 5, PILOT_CALLS), *[("model", thrown, counted)] * 2]


def test_drift_of_the_machine_meets_both_alike() -> None:
    """Both slow down by 1 % per turn: absolute times are off by half, their ratio is right."""
    machine = Machine()
    slow = ScriptedSession("slow", machine, 10.0, slower_per_turn=0.5)
    fast = ScriptedSession("fast", machine, 4.0, slower_per_turn=0.2)
    turns = _time([slow, fast], rounds=10)
    ratio, interval = statistics.speedup(turns.blocks["fast"], turns.blocks["slow"])
    assert ratio == pytest.approx(2.5)
    assert interval == pytest.approx((2.5, 2.5))


def test_one_that_fails_is_out_and_the_others_are_measured_in_full() -> None:
    machine = Machine()
    good = ScriptedSession("good", machine, 5.0)
    early = ScriptedSession("early", machine, 5.0, fails_in_turn=0)
    late = ScriptedSession("late", machine, 5.0, fails_in_turn=4)
    turns = _time([early, good, late], rounds=6)
    assert set(turns.blocks) == {"good"}
    assert len(turns.blocks["good"]) == 6
    assert turns.failures == dict.fromkeys(("early", "late"), "") | {
        "early": "RuntimeError while it was timed: device lost",
        "late": "RuntimeError while it was timed: device lost",
    }
    assert early.taken == 1
    assert late.taken == 5


@pytest.mark.parametrize("impossible", [np.zeros(3), np.full(3, np.nan), np.ones(2)])
def test_durations_that_cannot_be_are_refused(impossible: np.ndarray) -> None:
    class Liar(ScriptedSession):
        def time(self, feed, *, warmup: int, iterations: int, scope: str = "end_to_end") -> np.ndarray:
            return impossible

    turns = _time([Liar("liar", Machine(), 1.0)], rounds=2)
    assert turns.blocks == {}
    assert "impossible ones" in turns.failures["liar"]


def test_every_turn_waits_for_rest() -> None:
    machine, rests = Machine(), []
    time_in_turns(
        _contest(ScriptedSession("a", machine, 5.0), ScriptedSession("b", machine, 5.0)),
        TurnOptions(rounds=3),
        rest=lambda: rests.append(len(machine.turns)),
    )
    assert rests == list(range(8))


def test_rest_is_waited_for_while_threads_spin_and_no_longer_than_two_seconds() -> None:
    def at(spins_s: float) -> tuple[bool, float]:
        now = itertools.count()
        clock = {"wall": 0.0}

        def sleep(seconds: float) -> None:
            next(now)
            clock["wall"] += seconds

        rested = wait_for_rest(wall=lambda: clock["wall"], cpu=lambda: min(clock["wall"], spins_s) * 1.9, sleep=sleep)
        return rested, clock["wall"]

    assert at(0.0) == (True, pytest.approx(0.005))
    assert at(0.05) == (True, pytest.approx(0.055, abs=0.006))
    assert at(60.0) == (False, pytest.approx(2.0, abs=0.01))


def test_options_that_measure_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one round"):
        TurnOptions(rounds=0)


def test_turns_become_shorter_when_the_machine_slows_down() -> None:
    machine = Machine()

    class Slowing(ScriptedSession):
        def time(self, feed, *, warmup: int, iterations: int, scope: str = "end_to_end") -> np.ndarray:
            self.call_ms = 1.0 if self.taken < 3 else 40.0
            return super().time(feed, warmup=warmup, iterations=iterations, scope=scope)

    _time([Slowing("model", machine, 1.0)], rounds=5)
    assert [counted for _, _, counted in machine.turns[1:]] == [100, 100, 100, 13, 13]


class Cold:
    """A session on a GPU that idles: a call takes 5 ms until it has worked for 100 ms, then 1 ms."""

    def __init__(self) -> None:
        self.clock_ms = 0.0
        self.worked_ms = 0.0
        self.blocks: list[int] = []

    def time(self, feed, *, warmup: int, iterations: int, scope: str = "end_to_end") -> np.ndarray:
        taken = []
        for _ in range(warmup + iterations):
            taken.append(1.0 if self.worked_ms >= 100 else 5.0)
            self.worked_ms += taken[-1]
            self.clock_ms += taken[-1]
        self.blocks.append(iterations)
        return np.array(taken[warmup:])


def test_a_gpu_is_warm_before_calls_are_counted_and_their_number_follows_from_warm_calls() -> None:
    cold = Cold()

    def wall() -> float:
        return cold.clock_ms / 1000

    def idle() -> None:
        cold.worked_ms = 0.0

    contestants = {"gpu": Contestant(cold, {}, warm_s=0.2)}
    turns = time_in_turns(contestants, TurnOptions(rounds=3, fill_s=0.1), rest=idle, wall=wall)
    assert [len(block) for block in turns.blocks["gpu"]] == [100, 100, 100]
    assert all((block == 1.0).all() for block in turns.blocks["gpu"])


def test_turns_become_longer_again_when_calls_become_faster() -> None:
    cold = Cold()
    options = TurnOptions(rounds=4, warmup=1, iterations=5, block_s=0.05, fill_s=0.02)
    turns = time_in_turns({"a": Contestant(cold, {})}, options, rest=lambda: None)
    lengths = [len(block) for block in turns.blocks["a"]]
    assert lengths[0] < lengths[-1] == 20
