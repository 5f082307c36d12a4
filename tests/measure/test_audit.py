"""The audit: a session that does not do the work it is timed for is out, an honest one is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray

from vitdeploy.backends.session import Arrays, CheckedSession
from vitdeploy.measure.audit import Auditor
from vitdeploy.measure.timing import Contestant, TurnOptions, time_in_turns
from vitdeploy.sessions import TensorSpec

IMAGES = np.random.default_rng(0).standard_normal((16, 3, 4, 4)).astype(np.float32)
WEIGHT = np.random.default_rng(1).standard_normal((48, 5)).astype(np.float32)
LOGITS = IMAGES.reshape(16, -1) @ WEIGHT
SPAN = float(LOGITS.max() - LOGITS.min())
CALL_MS = 10.0


@dataclass
class Clock:
    """Seconds that pass only when a session says so."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


class Honest(CheckedSession):
    """A linear classifier whose call takes ``CALL_MS``."""

    def __init__(self, clock: Clock) -> None:
        image = TensorSpec("input", np.dtype(np.float32), (None, 3, 4, 4))
        super().__init__("fake", "fake", [image], [TensorSpec("logits", np.dtype(np.float32), (None, 5))])
        self.clock = clock

    def _run(self, arrays: Arrays) -> Arrays:
        self.clock.now += CALL_MS / 1000
        return self.answer(arrays["input"])

    def answer(self, images: NDArray[np.float32]) -> Arrays:
        return {"logits": images.reshape(len(images), -1) @ WEIGHT}

    def _time_end_to_end(self, arrays: Arrays, warmup: int, iterations: int) -> NDArray[np.float64]:
        elapsed = []
        for _ in range(warmup + iterations):
            start = self.clock.now
            self._run(arrays)
            elapsed.append((self.clock.now - start) * 1000)
        return np.array(elapsed[warmup:])

    def _release(self) -> None:
        pass


@dataclass
class _Memory:
    answers: dict[bytes, Arrays] = field(default_factory=dict)


class Caching(Honest):
    """Remembers what it has answered once."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.memory = _Memory()

    def _run(self, arrays: Arrays) -> Arrays:
        key = arrays["input"].tobytes()
        if key not in self.memory.answers:
            self.memory.answers[key] = super()._run(arrays)
        self.clock.now += 1e-5
        return self.memory.answers[key]


class Stale(Honest):
    """Answers with the outputs of the images before."""

    last: Arrays | None = None

    def answer(self, images: NDArray[np.float32]) -> Arrays:
        outputs = self.last or super().answer(images)
        self.last = super().answer(images)
        return outputs


class Boasting(Honest):
    """Reports a tenth of the time that a call takes."""

    def _time_end_to_end(self, arrays: Arrays, warmup: int, iterations: int) -> NDArray[np.float64]:
        return super()._time_end_to_end(arrays, warmup, iterations) / 10


class Disturbed(Honest):
    """Takes longer where nobody times it, as on a machine that other processes use between turns."""

    longer = 2.5
    is_timing = False

    def _time_end_to_end(self, arrays: Arrays, warmup: int, iterations: int) -> NDArray[np.float64]:
        self.is_timing = True
        try:
            return super()._time_end_to_end(arrays, warmup, iterations)
        finally:
            self.is_timing = False

    def _run(self, arrays: Arrays) -> Arrays:
        if not self.is_timing:
            self.clock.now += (self.longer - 1) * CALL_MS / 1000
        return super()._run(arrays)


class NotANumber(Honest):
    """Gives NaN from the fifth call on."""

    calls = 0

    def answer(self, images: NDArray[np.float32]) -> Arrays:
        self.calls += 1
        factor = np.float32(np.nan if self.calls > 5 else 1.0)
        return {"logits": super().answer(images)["logits"] * factor}


def _failure(make: Callable[[Clock], Honest], batch: int, rounds: int = 3) -> str | None:
    clock = Clock()
    session = make(clock)
    auditor = Auditor(session, IMAGES, LOGITS, SPAN, batch, wall=clock)
    options = TurnOptions(rounds=rounds, warmup=1, iterations=3, fill_s=0)
    contestant = Contestant(session, auditor.feed, after_turn=auditor.after_turn)
    return time_in_turns({"it": contestant}, options, rest=lambda: None, wall=clock).failures.get("it")


@pytest.mark.parametrize("batch", [1, 4, 16, 20])
def test_an_honest_session_passes(batch: int) -> None:
    assert _failure(Honest, batch) is None


@pytest.mark.parametrize("longer", [1.7, 2.5, 20.0])
def test_a_session_is_not_accused_of_what_other_processes_did(monkeypatch: pytest.MonkeyPatch, longer: float) -> None:
    monkeypatch.setattr(Disturbed, "longer", longer)
    assert _failure(Disturbed, 1) is None


@pytest.mark.parametrize("batch", [1, 4, 16])
def test_a_cache_of_answers_is_caught(batch: int) -> None:
    assert "it answers from a cache" in (_failure(Caching, batch) or "nothing was found")


@pytest.mark.parametrize("batch", [1, 4])
def test_outputs_of_other_images_are_caught(batch: int) -> None:
    assert "differ from those of the accuracy run" in (_failure(Stale, batch) or "nothing was found")


def test_durations_that_a_clock_beside_them_contradicts_are_caught() -> None:
    assert "reports 1 ms per call, and a clock beside it takes 10 ms" in (_failure(Boasting, 1) or "nothing was found")


def test_outputs_that_break_down_while_they_are_timed_are_caught() -> None:
    assert "differ from those of the accuracy run" in (_failure(NotANumber, 1) or "nothing was found")


def test_a_few_slow_calls_are_no_cache() -> None:
    class Interrupted(Honest):
        calls = 0

        def _run(self, arrays: Arrays) -> Arrays:
            self.calls += 1
            self.clock.now += 0.1 if self.calls % 4 == 0 else 0.0  # another process took the core
            return super()._run(arrays)

    assert _failure(Interrupted, 1, rounds=10) is None


def test_what_was_found_is_kept() -> None:
    clock = Clock()
    session = Honest(clock)
    auditor = Auditor(session, IMAGES, LOGITS + np.float32(0.01 * SPAN), SPAN, 2, wall=clock)
    assert auditor.after_turn(np.full(3, CALL_MS)) is None
    found = auditor.result()
    assert found.calls == 9
    assert found.outputs_off == pytest.approx(0.01, rel=1e-3)
    assert found.new_image_ratio == pytest.approx(1.0)
