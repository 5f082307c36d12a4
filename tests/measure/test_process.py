from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitdeploy.measure.process import ANSWER_MARK, ProcessCost, answer, measure_in_child, observe, peak_memory_bytes

MIB = 1 << 20


@pytest.fixture(name="child")
def _child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that writes a module for the child and measures with it."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def run(body: str, request: dict | None = None, **options: Any) -> ProcessCost:
        (tmp_path / "child_of_a_test.py").write_text(body)
        return measure_in_child("child_of_a_test", request or {}, **options)

    return run


ANSWERS = """
import json, sys
from vitdeploy.measure.process import ProcessCost, answer, peak_memory_bytes
request = json.load(sys.stdin)
block = bytearray(request["mib"] << 20)
block[::4096] = b"x" * len(block[::4096])
print("a runtime that talks")
answer(ProcessCost(1.5, 2.5, peak_memory_bytes()), sys.stdout)
print("and talks on")
"""


def test_answer_is_found_whatever_a_runtime_prints_around_it(child) -> None:
    cost = child(ANSWERS, {"mib": 0})
    assert (cost.load_ms, cost.first_inference_ms, cost.reason) == (1.5, 2.5, "")


def test_peak_memory_is_the_childs_own_and_not_what_the_parent_holds(child) -> None:
    held = np.ones(400 * MIB, np.uint8)
    small, large = child(ANSWERS, {"mib": 0}), child(ANSWERS, {"mib": 150})
    assert held[-1] == 1
    assert small.peak_memory_bytes is not None
    assert large.peak_memory_bytes is not None
    assert small.peak_memory_bytes < 200 * MIB
    assert 140 * MIB < large.peak_memory_bytes - small.peak_memory_bytes < 170 * MIB


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise ValueError('no such provider')", "ended with code 1 and no answer: ValueError: no such provider"),
        ("import sys; sys.exit(3)", "ended with code 3 and no answer"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ended by SIGSEGV"),
        (f"print({ANSWER_MARK!r} + '{{')", "an answer that cannot be read"),
        (f"print({ANSWER_MARK!r} + '{{\"unknown\": 1}}')", "an answer that cannot be read"),
    ],
)
def test_a_child_that_fails_gives_a_reason_and_no_number(child, body: str, reason: str) -> None:
    cost = child(body)
    assert (cost.load_ms, cost.first_inference_ms, cost.peak_memory_bytes) == (None, None, None)
    assert reason in cost.reason
    assert "\n" not in cost.reason


def test_a_child_that_hangs_is_stopped(child) -> None:
    cost = child("import time; time.sleep(60)", timeout_s=0.5)
    assert cost == ProcessCost(reason="its process was stopped after 0.5 s")


def test_a_child_that_cannot_be_started_gives_a_reason(child) -> None:
    assert "could not be started" in child("", python="/nowhere/python").reason


def test_observing_times_opening_and_running_apart() -> None:
    log: list[str] = []

    class Logged:
        def run(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            log.append(f"run {feed}")
            return {}

        def __enter__(self):
            return self

        def __exit__(self, *_) -> None:
            log.append("closed")

    def open_session() -> Any:
        log.append("open")
        return Logged()

    cost = observe(open_session, lambda session: {"input": np.ones(1)})
    assert log == ["open", "run {'input': array([1.])}", "closed"]
    assert cost.load_ms is not None
    assert cost.first_inference_ms is not None
    assert cost.peak_memory_bytes == pytest.approx(peak_memory_bytes(), rel=0.2)


def test_answer_is_one_line_of_json_after_the_mark() -> None:
    stream = io.StringIO()
    answer(ProcessCost(reason="why"), stream)
    (line,) = [line for line in stream.getvalue().splitlines() if line]
    assert line.startswith(ANSWER_MARK + "{")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="VmHWM is in Linux's /proc alone")
def test_peak_memory_falls_back_where_the_system_has_no_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = peak_memory_bytes()
    monkeypatch.setattr("vitdeploy.measure.process.PROC_STATUS", Path("/nowhere/status"))
    other = peak_memory_bytes()
    assert exact is not None
    assert other is not None
    assert other >= 0.5 * exact
