from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import NoReturn

import pytest

from vitdeploy.backends.tensorrt_monitor import BuildState, Messages, clean_message, run_watched
from vitdeploy.progress import SILENT

DRIVER = (
    "[checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime (In catchCudaError at /_src/common/x.cpp:250 "
    "(cudaError 35: CUDA driver version is insufficient for CUDA runtime version))"
)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (
            "IBuilder::buildSerializedNetwork: Error Code 4: API Usage Error (Network has dynamic inputs, but no "
            "profile has been defined. In validate at /_src/optimizer/api/network.cpp:4023)",
            "Network has dynamic inputs, but no profile has been defined",
        ),
        (
            "Invalid Node - blocks.1/add\nITensor::getDimensions: Error Code 4: API Usage Error (blocks.1/add: SUM "
            f"must have same input types. In validateTypes at /_src/x.cpp:40)\n{DRIVER}",
            "blocks.1/add: SUM must have same input types",
        ),
        (
            "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([pass.cpp:1500: run_passes] Cannot compile for "
            "target(s) sm86: fp8_e4m3. In compileGraph at /_src/optimizer/myelin/codeGenerator.cpp:2012)",
            "Cannot compile for target(s) sm86: fp8_e4m3",
        ),
        ("a plain sentence", "a plain sentence"),
        ("", ""),
    ],
)
def test_sentence_is_taken_out_of_tensorrts_message(text: str, clean: str) -> None:
    assert clean_message(text) == clean


def test_first_error_is_the_cause_and_not_the_missing_driver() -> None:
    messages = Messages()
    messages.add("VERBOSE", "thousands of these")
    messages.add("ERROR", DRIVER)
    messages.add("ERROR", "the cause")
    messages.add("INTERNAL_ERROR", "a consequence")
    assert messages.first_error() == "the cause"
    assert messages.first_error(messages.mark()) == ""


def test_warnings_are_told_once_each() -> None:
    messages = Messages()
    for text in ("slow path", "slow path", "The logger passed into createInferBuilder differs", "other"):
        messages.add("WARNING", text)
    assert messages.warnings() == ["slow path", "other"]


def test_position_counts_phases_inside_phases() -> None:
    state = BuildState()
    assert state.position() == (0.0, "")
    state.start("build", None, 4)
    state.step("build", 0)
    assert state.position() == (0.25, "build")
    state.start("timing", "build", 2)
    state.step("timing", 0)
    assert state.position() == (0.375, "timing")
    state.start("kernels", "timing", 10)
    state.step("kernels", 4)
    assert state.position() == (pytest.approx(0.4375), "kernels")
    state.finish("kernels")
    state.finish("timing")
    state.step("build", 1)
    assert state.position() == (0.5, "build")
    state.finish("build")
    assert state.position() == (1.0, "")


def test_odd_phases_do_no_harm() -> None:
    state = BuildState()
    state.finish("never started")
    assert state.step("never started", 3)
    state.start("orphan", "no such parent", 0)
    state.step("orphan", 5)
    assert state.position() == (1.0, "orphan")


def test_steps_ask_for_the_end_after_cancellation() -> None:
    state = BuildState()
    state.start("build", None, 4)
    assert state.step("build", 0)
    state.cancelled = True
    assert not state.step("build", 1)


def build_until_cancelled(state: BuildState, ended: list[str]):
    def work() -> str:
        state.start("build", None, 1000)
        for number in range(1000):
            time.sleep(0.005)
            if not state.step("build", number):
                ended.append("cancelled")
                return "cancelled"
        ended.append("whole")
        return "whole"

    return work


@pytest.mark.parametrize("error", [KeyboardInterrupt, BrokenPipeError])
def test_interrupt_and_broken_progress_end_the_build_before_they_go_on(error: type[Exception]) -> None:
    class Failing:
        @contextmanager
        def task(self, description, total=None):
            yield self

        def describe(self, text) -> None:
            raise error

        def advance(self, steps: float = 1.0) -> None:
            pass

        def note(self, text) -> None:
            pass

    ended: list[str] = []
    state = BuildState()
    with pytest.raises(error):
        run_watched(build_until_cancelled(state, ended), state, Failing(), "build")
    assert ended == ["cancelled"]


def test_progress_that_cannot_even_start_starts_no_build() -> None:
    class Broken:
        def task(self, description: str, total: float | None = None) -> NoReturn:
            raise OSError("no terminal")

        def note(self, text) -> None:
            pass

    ended: list[str] = []
    state = BuildState()
    with pytest.raises(OSError, match="no terminal"):
        run_watched(build_until_cancelled(state, ended), state, Broken(), "build")
    assert ended == []


def test_failure_of_the_work_is_raised_in_the_callers_thread() -> None:
    def work() -> None:
        assert threading.current_thread().name == "vitdeploy-build"
        raise MemoryError("too large")

    with pytest.raises(MemoryError, match="too large"):
        run_watched(work, BuildState(), SILENT, "build")


def test_result_of_the_work_is_returned() -> None:
    assert run_watched(lambda: b"plan", BuildState(), SILENT, "build") == b"plan"
