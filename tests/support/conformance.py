"""What every session must do, whatever runs behind it. A backend's test class inherits this and gives the fixtures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from small_vit import images

from vitdeploy.errors import BackendError, UsageError
from vitdeploy.sessions import Scope, Session

Expected = Callable[[NDArray[np.float32]], NDArray[np.float32]]


class SessionConformance:
    """Fixtures that a subclass gives: ``session`` (open, batch dynamic) and ``expected``, a function batch → logits.

    ``tolerance`` is the largest difference to ``expected``, None where the backend computes something else on purpose.
    """

    tolerance: float | None = 1e-5

    def test_inputs_and_outputs_are_described(self, session: Session) -> None:
        assert list(session.inputs) == ["input"]
        assert list(session.outputs) == ["logits"]
        assert session.inputs["input"].dtype == np.float32
        assert session.inputs["input"].shape == (None, 1, 8, 8)
        assert session.outputs["logits"].shape in ((None, 10), (None, None))

    def test_logits_are_those_of_the_model_at_any_batch(self, session: Session, expected: Expected) -> None:
        for batch in (1, 2, 5, 1):
            images_ = images(batch, seed=batch)
            logits = session.run({"input": images_})["logits"]
            assert logits.shape == (batch, 10)
            assert logits.dtype == np.float32
            assert np.isfinite(logits).all()
            if self.tolerance is not None:
                np.testing.assert_allclose(logits, expected(images_), rtol=0, atol=self.tolerance)

    def test_samples_of_a_batch_do_not_influence_each_other(self, session: Session) -> None:
        batch = images(4)
        together = session.run({"input": batch})["logits"]
        alone = np.concatenate([session.run({"input": batch[i : i + 1]})["logits"] for i in range(4)])
        np.testing.assert_allclose(together, alone, rtol=0, atol=1e-4)
        assert not np.allclose(together[0], together[1])

    def test_results_belong_to_the_caller(self, session: Session) -> None:
        first = session.run({"input": images(2, seed=1)})["logits"]
        kept = first.copy()
        assert first.flags.writeable
        second = session.run({"input": images(2, seed=2)})["logits"]
        np.testing.assert_array_equal(first, kept)
        first[:] = 0
        assert second.any()

    def test_input_is_left_as_it_was(self, session: Session) -> None:
        batch = images(2)
        session.run({"input": batch})
        np.testing.assert_array_equal(batch, images(2))

    def test_input_need_not_be_contiguous(self, session: Session) -> None:
        wide = images(4)
        strided = session.run({"input": wide[::2]})["logits"]
        np.testing.assert_array_equal(strided, session.run({"input": wide[::2].copy()})["logits"])

    @pytest.mark.parametrize(
        ("feed", "message"),
        [
            ({}, r"needs input 'input', the feed has nothing"),
            ({"pixels": images(1)}, r"has no input 'pixels', expected 'input'"),
            ({"input": images(1), "mask": images(1)}, r"has no input 'mask'"),
            ({"input": images(1).astype(np.float64)}, r"dtype 'float64', expected 'float32'"),
            ({"input": images(1)[0]}, r"shape \(1, 8, 8\), expected \[batch, 1, 8, 8\]"),
            ({"input": np.zeros((1, 3, 8, 8), np.float32)}, r"shape \(1, 3, 8, 8\)"),
            ({"input": np.zeros((1, 1, 8, 7), np.float32)}, r"shape \(1, 1, 8, 7\)"),
        ],
    )
    def test_wrong_feed_is_one_clear_line(self, session: Session, feed: dict[str, Any], message: str) -> None:
        with pytest.raises(BackendError, match=message) as caught:
            session.run(feed)
        assert "\n" not in str(caught.value)
        with pytest.raises(BackendError, match=message):
            session.time(feed, warmup=0, iterations=1)

    def test_empty_batch_is_refused(self, session: Session) -> None:
        with pytest.raises(BackendError, match=r"empty|was built for batch"):
            session.run({"input": np.zeros((0, 1, 8, 8), np.float32)})

    @pytest.mark.parametrize("scope", ["device", "end_to_end"])
    def test_times_are_positive_milliseconds_one_per_call(self, session: Session, scope: Scope) -> None:
        times = session.time({"input": images(2)}, warmup=1, iterations=7, scope=scope)
        assert times.shape == (7,)
        assert times.dtype == np.float64
        assert (times > 0).all()
        assert (times < 60_000).all()

    def test_timing_asks_for_at_least_one_call(self, session: Session) -> None:
        for warmup, iterations in ((0, 0), (-1, 1)):
            with pytest.raises(UsageError, match="expected at least 0 and at least 1"):
                session.time({"input": images(1)}, warmup=warmup, iterations=iterations)

    def test_closing_twice_is_fine_and_running_after_is_not(self, session: Session) -> None:
        session.close()
        session.close()
        with pytest.raises(BackendError, match="session is closed"):
            session.run({"input": images(1)})
        with pytest.raises(BackendError, match="session is closed"):
            session.time({"input": images(1)}, warmup=0, iterations=1)

    def test_context_manager_closes(self, session: Session) -> None:
        with session as entered:
            assert entered is session
            entered.run({"input": images(1)})
        with pytest.raises(BackendError, match="session is closed"):
            session.run({"input": images(1)})
