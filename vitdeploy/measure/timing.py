"""Latency of several candidates in one process: they take turns, block by block, in shuffled rounds.

Whatever drifts (clocks, heat, other users of the machine) then meets every candidate alike. A turn is never a single
call: worker threads that spin after a call slow whoever comes next, so a turn starts when the process has come to rest
and its first calls are thrown away.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vitdeploy.progress import SILENT, Progress
from vitdeploy.sessions import Feed, Scope
from vitdeploy.text import one_line

PILOT_CALLS = 3
SLOWED_BY = 1.5
MAX_CALLS_PER_TURN = 2000
REST_POLL_S = 0.005
REST_LIMIT_S = 2.0
REST_CPU_SHARE = 0.1


@dataclass(frozen=True)
class TurnOptions:
    """How turns are taken.

    A turn has at least ``iterations`` counted calls, fewer where those would take more than ``block_s``, more where
    they would take less than ``fill_s`` (a call of 0.1 ms needs hundreds to be a sample of anything). Before them come
    ``warmup`` calls, or as many as fill ``fill_s``, that are not counted.
    """

    rounds: int = 10
    warmup: int = 5
    iterations: int = 20
    block_s: float = 0.5
    fill_s: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.warmup < 1 or self.iterations < 1:
            raise ValueError(f"{self}: expected at least one round, one warm-up call and one iteration")

    def calls(self, call_ms: float) -> tuple[int, int]:
        """Return how many calls of about ``call_ms`` a turn throws away, and how many it counts."""
        fill = math.ceil(self.fill_s * 1000 / call_ms)
        limit = max(1, math.ceil(self.block_s * 1000 / call_ms))
        thrown = max(min(self.warmup, limit), fill)
        counted = max(min(self.iterations, limit), fill)
        return min(thrown, MAX_CALLS_PER_TURN), min(counted, MAX_CALLS_PER_TURN)


class Timed(Protocol):
    """What can be timed: an open ``Session``, or more work around one."""

    def time(self, feed: Feed, *, warmup: int, iterations: int, scope: Scope = "end_to_end") -> NDArray[np.float64]: ...


@dataclass(frozen=True)
class Contestant:
    """An open session with the input it is timed on.

    ``warm_s`` is for a GPU, whose clocks fall within milliseconds of idleness: calls fill that time before each turn,
    and the last of them say how long a call takes now. ``after_turn`` looks at each counted turn and returns what is
    wrong, None where nothing is; its own time is not counted.
    """

    session: Timed
    feed: Feed
    scope: Scope = "end_to_end"
    warm_s: float = 0.0
    after_turn: Callable[[NDArray[np.float64]], str | None] | None = None


@dataclass(frozen=True)
class Turns:
    """What was measured: name → one block of milliseconds per round; and who dropped out, with the reason."""

    blocks: dict[str, list[NDArray[np.float64]]]
    failures: dict[str, str] = field(default_factory=dict)


def time_in_turns(
    contestants: Mapping[str, Contestant],
    options: TurnOptions = TurnOptions(),
    *,
    progress: Progress = SILENT,
    rest: Callable[[], object] | None = None,
    wall: Callable[[], float] = time.perf_counter,
) -> Turns:
    """Time every contestant once per round, in an order drawn anew for each round.

    How many calls a turn has follows from a few calls before the first round, and again when they have become slower
    or faster by half: neither a machine that others begin to use nor one that was cold changes the length of turns. A
    contestant that raises, or reports durations that cannot be, is out from then on: its blocks are discarded, the
    others go on. ``rest`` waits until the process is idle (a test hands in its own).
    """
    rest = rest or wait_for_rest
    random = np.random.default_rng(options.seed)
    names = list(contestants)
    turns = Turns({name: [] for name in names})
    expected_ms: dict[str, float] = {}
    with progress.task("Timing", total=(options.rounds + 1) * len(names)) as task:
        for order in (range(len(names)), *(random.permutation(len(names)) for _ in range(options.rounds))):
            for name in (names[index] for index in order):
                task.describe(name)
                pilot = name not in expected_ms
                calls = (options.warmup, PILOT_CALLS) if pilot else options.calls(expected_ms[name])
                if name not in turns.failures and contestants[name].warm_s:
                    warmed_ms = _warm_up(name, contestants[name], turns, wall)
                    calls = (options.warmup, PILOT_CALLS) if pilot or warmed_ms is None else options.calls(warmed_ms)
                block = None if name in turns.failures else _take_turn(name, contestants[name], calls, turns, rest)
                task.advance()
                if block is None:
                    continue
                if pilot:
                    expected_ms[name] = float(np.median(block))
                    continue
                _look_after(name, contestants[name], block, turns)
                turns.blocks[name].append(block)
                if not expected_ms[name] / SLOWED_BY <= block.mean() <= SLOWED_BY * expected_ms[name]:
                    expected_ms[name] = float(block.mean())
    for name in turns.failures:
        del turns.blocks[name]
    return turns


def _warm_up(name: str, contestant: Contestant, turns: Turns, wall: Callable[[], float]) -> float | None:
    """Call for ``warm_s`` and return the milliseconds of the last calls; a failure is noted in ``turns``."""
    start = wall()
    while True:
        try:
            block = contestant.session.time(contestant.feed, warmup=0, iterations=PILOT_CALLS, scope=contestant.scope)
        except Exception as error:  # any runtime's own exception type; the candidate fails, the bench goes on
            turns.failures[name] = f"{type(error).__name__} while it was timed: {one_line(error)}"
            return None
        call_ms = float(np.median(block))
        if not call_ms > 0 or wall() - start >= contestant.warm_s:
            return call_ms if call_ms > 0 else None


def _look_after(name: str, contestant: Contestant, block: NDArray[np.float64], turns: Turns) -> None:
    """Let the contestant's ``after_turn`` see the block; what it finds wrong is noted in ``turns``."""
    if contestant.after_turn is None:
        return
    try:
        wrong = contestant.after_turn(block)
    except Exception as error:  # any runtime's own exception type; the candidate fails, the bench goes on
        wrong = f"{type(error).__name__} while its outputs were sampled: {one_line(error)}"
    if wrong is not None:
        turns.failures[name] = wrong


def _take_turn(
    name: str, contestant: Contestant, calls: tuple[int, int], turns: Turns, rest: Callable[[], object]
) -> NDArray[np.float64] | None:
    """Return one block of milliseconds, after the process has come to rest; a failure is noted in ``turns``."""
    warmup, iterations = calls
    if not contestant.warm_s:  # a GPU would cool down
        rest()
    try:
        block = contestant.session.time(contestant.feed, warmup=warmup, iterations=iterations, scope=contestant.scope)
    except Exception as error:  # any runtime's own exception type; the candidate fails, the bench goes on
        turns.failures[name] = f"{type(error).__name__} while it was timed: {one_line(error)}"
        return None
    if block.size != iterations or not np.isfinite(block).all() or block.min() <= 0:
        turns.failures[name] = f"its session returned {block.size} durations for {iterations} calls, or impossible ones"
        return None
    return block


def wait_for_rest(
    wall: Callable[[], float] = time.perf_counter,
    cpu: Callable[[], float] = time.process_time,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Wait until this process uses hardly any CPU time, at most two seconds; return whether it came to rest.

    ONNX Runtime's workers spin for 5 ms to more than a second after a call, depending on the CPU and its settings, and
    OpenMP's for up to 200 ms, so no fixed pause is right.
    """
    start = wall()
    while wall() - start < REST_LIMIT_S:
        wall_before, cpu_before = wall(), cpu()
        sleep(REST_POLL_S)
        if cpu() - cpu_before < REST_CPU_SHARE * (wall() - wall_before):
            return True
    return False
