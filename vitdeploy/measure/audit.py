"""Whether a session that is being timed does the work that it is timed for.

As MLPerf's compliance tests do (Inference rules, TEST01 and TEST04): outputs sampled between turns are compared with
those of the accuracy run for the same images, and calls on new images are timed beside calls on the same image again.
Beyond these, the durations that a session reports are compared with a clock of our own.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from vitdeploy.measure.accuracy import only_input, only_output
from vitdeploy.measure.statistics import fraction_of_range
from vitdeploy.records.report import Audit
from vitdeploy.sessions import Feed, Session

POOL_IMAGES = 16
PAIRS_PER_TURN = 3
MIN_PAIRS = 6
MOST = 0.9
TIMES = 1.5
CLOCK_SLACK_MS = 0.1
OUTPUTS_OFF = 0.1


class Auditor:
    """The audit of one session at one batch size, over all of its turns.

    Args:
        session: Open, with one input.
        images: The first images of the data as the model takes them, [n, C, H, W].
        logits: What the accuracy run gave for them, [n, classes].
        span: Largest minus smallest logit of the whole accuracy run.
        batch: Images in a call; where the pool has fewer, they repeat.
        wall: A clock in seconds (a test hands in its own).
    """

    def __init__(
        self,
        session: Session,
        images: NDArray[np.float32],
        logits: NDArray[np.float32],
        span: float,
        batch: int,
        wall: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._session, self._images, self._logits, self._span, self._wall = session, images, logits, span, wall
        self._input, self._output = only_input(session), only_output(session)
        self._batch = batch
        self._drawn = 0
        self._off = 0.0
        self._same_ms: list[float] = []
        self._new_ms: list[float] = []
        self._reported_ms: list[float] = []
        self._timed_ms: list[tuple[float, float]] = []
        self.feed, self._expected = self._draw()

    def after_turn(self, block: NDArray[np.float64]) -> str | None:
        """Sample outputs and times after a turn of ``block`` milliseconds; return what is wrong, None for nothing."""
        for _ in range(PAIRS_PER_TURN):
            self._call(self.feed, self._expected)
            self._same_ms.append(self._call(self.feed, self._expected))
            self._new_ms.append(self._call(*self._draw()))
            self._reported_ms.append(float(np.median(block)))
        start = self._wall()
        durations = self._session.time(self.feed, warmup=0, iterations=PAIRS_PER_TURN)
        self._timed_ms.append(((self._wall() - start) * 1000 / PAIRS_PER_TURN, float(np.mean(durations))))
        return self._wrong()

    def result(self) -> Audit:
        """Return what was found."""
        new, same = np.array(self._new_ms), np.array(self._same_ms)
        ratio = float(np.median(new / same)) if new.size else None
        return Audit(calls=3 * len(self._new_ms), outputs_off=self._off, new_image_ratio=ratio)

    def _wrong(self) -> str | None:
        if not self._off <= OUTPUTS_OFF:  # NaN too
            return (
                f"outputs sampled while it was timed differ from those of the accuracy run by {self._off:.0%} of the "
                f"logits' range"
            )
        if len(self._new_ms) < MIN_PAIRS:
            return None
        new, same, reported = (np.array(ms) for ms in (self._new_ms, self._same_ms, self._reported_ms))
        if np.mean(new > TIMES * same + CLOCK_SLACK_MS) >= MOST:
            return (
                f"a call on new images takes {np.median(new / same):.1f} times as long as a call on the same images "
                f"again: it answers from a cache, so its times are not those of the model"
            )
        # calls between turns may be slower where other processes come and go: then those that it times itself are not
        timed, own = np.array(self._timed_ms).T
        beside = np.mean(timed > TIMES * own + CLOCK_SLACK_MS) >= MOST
        if beside and np.mean(same > TIMES * reported + CLOCK_SLACK_MS) >= MOST:
            return (
                f"its session reports {np.median(reported):.3g} ms per call, and a clock beside it takes "
                f"{np.median(same):.3g} ms: its times cannot be believed"
            )
        return None

    def _draw(self) -> tuple[Feed, NDArray[np.float32]]:
        """Return the next images, which differ from those before in content or in order, and their logits."""
        chosen = (self._drawn + np.arange(self._batch)) % len(self._images)
        self._drawn += 1
        images = np.ascontiguousarray(self._images[chosen].astype(self._input.dtype, copy=False))
        return {self._input.name: images}, self._logits[chosen]

    def _call(self, feed: Feed, expected: NDArray[np.float32]) -> float:
        start = self._wall()
        found = self._session.run(feed)[self._output]
        elapsed_ms = (self._wall() - start) * 1000
        off = np.abs(found.astype(np.float32) - expected).max()
        self._off = float(np.fmax(self._off, np.inf if np.isnan(off) else fraction_of_range(float(off), self._span)))
        return elapsed_ms
