"""The script for the first GPU: asked of fakes, of this machine, and of a machine where everything breaks."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from machine import be, fake_gpu, machine
from small_vit import write_small_vit

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(name="script")
def _script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = importlib.import_module("gpu_first_run")
    monkeypatch.setattr(module, "IDLE_S", (0.0,))
    monkeypatch.setattr(module, "CALLS", 4)
    return module


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    write_small_vit(tmp_path / "model.onnx", "fp32")
    write_small_vit(tmp_path / "model.fp16.onnx", "fp16")
    write_small_vit(tmp_path / "model.int8.onnx", "int8")
    return tmp_path


def _answers(script: Any, folder: Path, *more: str) -> tuple[int, dict[str, Any]]:
    code = script.main([str(folder), "--output", str(folder / "answers.json"), *more])
    return code, json.loads((folder / "answers.json").read_text())["experiments"]


@pytest.mark.parametrize(
    ("release", "library", "elsewhere"), [("11.4", "tensorrt", "BCFG"), ("rtx", "tensorrt-rtx", "CFG")]
)
def test_every_question_is_asked_of_a_gpu(
    script: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, release: str, library: str, elsewhere: str
) -> None:
    fakes = fake_gpu(monkeypatch, release)
    code, answers = _answers(script, folder)
    assert "".join(answers) == "ABCDEFGHIJK"
    statuses = {letter: one["status"] for letter, one in answers.items()}
    assert {letter for letter in statuses if statuses[letter] == "not possible"} == set(elsewhere)
    assert {letter for letter in statuses if statuses[letter] == "failed"} == set()
    assert code == 0
    assert answers["A"]["answer"][f"{library} fp16"]["products"] == {"fp16": 14}
    assert answers["D"]["answer"][f"{library} fp32"]["status"] == "passed"
    detailed = answers["E"]["answer"][f"{library}, no graph, NVTX DETAILED"]["device_p50_ms"]
    assert detailed > answers["E"]["answer"][f"{library}, no graph, NVTX NONE"]["device_p50_ms"]
    assert answers["H"]["answer"]["what"] == library
    assert answers["J"]["answer"][library]["unnamed_by_the_inspector"] == 0
    assert answers["K"]["answer"][library]["4"] > 0
    if release == "rtx":
        assert answers["B"]["answer"]["recorded"] is False  # the fake refuses it, as the library's notes say
    assert not fakes.cuda.alive


def test_without_a_gpu_each_answer_is_the_reason(
    script: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    be(monkeypatch, machine(None))
    monkeypatch.setitem(sys.modules, "torch", None)
    code, answers = _answers(script, folder)
    assert code == 0
    assert {one["status"] for one in answers.values()} == {"not possible"}
    assert all(one["reason"] for one in answers.values())
    printed = capsys.readouterr().out
    assert printed.count("not possible") == len(script.QUESTIONS)


def test_models_that_are_not_there_are_named(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpu(monkeypatch, "11.4")
    _, answers = _answers(script, tmp_path, "--only", "A")
    assert answers["A"]["status"] == "not possible"
    assert answers["A"]["reason"] == f"there is no {tmp_path / 'model.fp16.onnx'}"


def test_a_question_that_breaks_down_does_not_stop_the_others(
    script: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes = fake_gpu(monkeypatch, "11.4")
    fakes.trt.record.inspector = "no JSON"
    code, answers = _answers(script, folder, "--only", "A", "D")
    assert code == 1
    assert answers["A"]["status"] == "failed"
    assert "cannot be read" in answers["A"]["reason"]
    assert answers["D"]["status"] == "answered"


def test_hopper_is_asked_for_the_words_of_tensorrt_rtx(
    script: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_gpu(monkeypatch, "rtx", "9.0")
    _, answers = _answers(script, folder, "--only", "C")
    assert answers["C"]["status"] == "answered"
    assert "9.0" in answers["C"]["answer"]["refused"]
