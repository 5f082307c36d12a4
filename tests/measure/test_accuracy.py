from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import pytest
from PIL import Image

from vitdeploy.datasets.base import DatasetBase
from vitdeploy.measure.accuracy import collect_logits, judge, run_batch
from vitdeploy.records import Preprocess
from vitdeploy.sessions import Session, TensorSpec

PREPROCESS = Preprocess(size=(8, 8), channels=1, resize="none", crop="none", mean=(0.5,), std=(0.25,))
N = 37


class Images(DatasetBase):
    """Greyscale 8×8 images whose brightness is their index."""

    def __init__(self) -> None:
        labels = np.array([int(i >= N // 2) for i in range(N)], dtype=np.int64)
        super().__init__("images", [str(i) for i in range(N)], labels, ("dark", "light"))

    def image(self, index):
        return Image.new("L", (8, 8), index)


@dataclass
class BrightnessSession:
    """Two logits: minus and plus the brightness relative to the middle, so the class is known for each image."""

    batch: int | None = None
    fails_at: int | None = None
    nan_at: int | None = None
    input_name: str = "input"
    output_name: str = "logits"
    dtype: type = np.float32
    sizes: list[int] = field(default_factory=list)

    @property
    def inputs(self):
        return {self.input_name: TensorSpec(self.input_name, np.dtype(self.dtype), (self.batch, 1, 8, 8))}

    @property
    def outputs(self):
        return {self.output_name: TensorSpec(self.output_name, np.dtype(np.float32), (self.batch, 2))}

    def run(self, feed):
        images = feed[self.input_name]
        assert images.dtype == self.dtype
        assert self.batch in (None, len(images))
        self.sizes.append(len(images))
        if self.fails_at is not None and len(self.sizes) > self.fails_at:
            raise RuntimeError("out of memory")
        level = images.astype(np.float64).mean(axis=(1, 2, 3)) * 0.25 + 0.5  # undo Preprocess
        index = np.rint(level * 255)
        logits = np.stack([-(index - N // 2 + 0.5), index - N // 2 + 0.5], axis=1).astype(np.float32)
        if self.nan_at is not None:
            logits[index == self.nan_at] = np.nan
        return {self.output_name: logits}


def as_sessions(fakes: Mapping[str, BrightnessSession]) -> dict[str, Session]:
    """Return sessions that have no more than is called here."""
    return {name: cast(Session, fake) for name, fake in fakes.items()}


def test_logits_come_in_the_order_of_the_dataset_for_dynamic_and_fixed_batches() -> None:
    sessions = {
        "dynamic": BrightnessSession(),
        "one": BrightnessSession(batch=1),
        "five": BrightnessSession(batch=5),
        "larger than the batch": BrightnessSession(batch=64),
        "half": BrightnessSession(dtype=np.float16, output_name="output_0"),
    }
    outputs = collect_logits(as_sessions(sessions), Images(), PREPROCESS, batch=16)
    assert outputs.failures == {}
    expected = np.arange(N) - N // 2 + 0.5
    for name, logits in outputs.logits.items():
        assert logits.dtype == np.float32
        np.testing.assert_array_equal(logits, np.stack([-expected, expected], axis=1), err_msg=name)
    assert set(sessions["five"].sizes) == {5}
    assert sessions["dynamic"].sizes == [16, 16, 5]


def test_batches_stay_within_the_profile_of_an_engine() -> None:
    session = BrightnessSession()
    sessions = as_sessions({"engine": session})
    outputs = collect_logits(sessions, Images(), PREPROCESS, batch=16, limits={"engine": (2, 6)})
    assert session.sizes == [6, 6, 4, 6, 6, 4, 5]
    assert outputs.logits["engine"][:, 1].tolist() == (np.arange(N) - N // 2 + 0.5).tolist()
    padded = BrightnessSession()
    collect_logits(as_sessions({"engine": padded}), Images(), PREPROCESS, batch=16, limits={"engine": (8, 8)})
    assert set(padded.sizes) == {8}


def test_one_that_fails_is_out_and_the_others_go_on() -> None:
    outputs = collect_logits(
        as_sessions(
            {
                "good": BrightnessSession(),
                "late": BrightnessSession(fails_at=1),
                "nan": BrightnessSession(nan_at=3),
                "wrong name": BrightnessSession(input_name="pixels", output_name="logits"),
            }
        ),
        Images(),
        PREPROCESS,
        batch=8,
    )
    assert set(outputs.logits) == {"good", "wrong name"}
    assert outputs.failures["late"] == "RuntimeError while its accuracy was measured: out of memory"
    assert outputs.failures["nan"] == f"its logits are NaN or infinite for 1 of {N} images"


def test_a_session_that_returns_no_matrix_of_logits_is_refused() -> None:
    class Flat(BrightnessSession):
        def run(self, feed):
            return {"logits": np.zeros(len(feed["input"]), np.float32)}

    with pytest.raises(ValueError, match=r"shape \(3,\) for 3 images"):
        run_batch(cast(Session, Flat()), np.zeros((3, 1, 8, 8), np.float32))


def test_a_session_with_two_inputs_or_unnamed_outputs_is_refused() -> None:
    class Two(BrightnessSession):
        @property
        def inputs(self):
            return {name: TensorSpec(name, np.dtype(np.float32), (None, 1, 8, 8)) for name in ("a", "b")}

        @property
        def outputs(self):
            return {name: TensorSpec(name, np.dtype(np.float32), (None, 2)) for name in ("c", "d")}

    images = np.zeros((3, 1, 8, 8), np.float32)
    with pytest.raises(ValueError, match=r"inputs \['a', 'b'\]"):
        run_batch(cast(Session, Two()), images)

    class TwoOutputs(BrightnessSession):
        outputs = Two.outputs

    with pytest.raises(ValueError, match=r"outputs \['c', 'd'\]"):
        run_batch(cast(Session, TwoOutputs()), images)


def test_judging_counts_right_answers_and_pairs_them_with_the_baseline() -> None:
    labels = np.array([0, 1, 1, 0])
    logits = np.array([[2, 1], [1, 2], [2, 1], [2, 1]], np.float32)  # third wrong
    reference = np.array([[2, 1], [1, 2], [1, 2], [1, 2]], np.float32)  # fourth wrong
    found = judge(logits, labels, reference)
    assert found.top1 == 0.75
    assert found.delta_top1_pp == 0.0
    assert found.agreement == 0.5
    assert found.logits_sqnr_db == pytest.approx(10 * math.log10(20 / 4))
    assert found.logits_identical is False
    assert found.top1_ci95 is not None
    assert found.delta_ci95_pp is not None
    assert found.delta_ci95_pp[0] < -20 < 20 < found.delta_ci95_pp[1]


def test_without_labels_accuracy_is_unknown_and_fidelity_is_still_there() -> None:
    logits = np.eye(4, dtype=np.float32)
    found = judge(logits, None, logits * 2)
    assert (found.top1, found.top1_ci95, found.delta_top1_pp, found.delta_ci95_pp) == (None, None, None, None)
    assert found.agreement == 1.0
    assert found.logits_sqnr_db == pytest.approx(6.0206, abs=1e-3)


def test_without_a_baseline_only_accuracy_is_known() -> None:
    found = judge(np.eye(4, dtype=np.float32), np.arange(4))
    assert found.top1 == 1.0
    assert found.agreement is None
    assert found.logits_identical is None


def test_identical_logits_are_said_to_be_so_as_json_has_no_infinity() -> None:
    logits = np.eye(4, dtype=np.float32)
    found = judge(logits, np.arange(4), logits.copy())
    assert found.logits_sqnr_db is None
    assert found.logits_identical is True
