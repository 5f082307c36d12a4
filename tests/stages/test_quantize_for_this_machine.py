"""A graph for this machine: what goes to 8 bits is what is faster here, and the graph is timed beside FP32."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from notes import Notes
from quantized import FAST, check

from vitdeploy import environment
from vitdeploy.artifacts import OnnxModel
from vitdeploy.backends import get_backend
from vitdeploy.errors import FidelityWarning
from vitdeploy.quantization import search
from vitdeploy.records import PairedSpeed, Target
from vitdeploy.stages import quantize as stage
from vitdeploy.stages.quantize import QuantizeOptions, QuantizeRequest, quantize

HERE = QuantizeOptions(threads=1, samples=60, method="minmax", equalization="off", steps=(), cpu="auto")
pytestmark = pytest.mark.slow

CONVOLUTIONS, ATTENTION = "convolutions in 8 bits", "attention in 8 bits"
DEPTHWISE = f"depth-wise {CONVOLUTIONS}"
FASTER, SLOWER = (1.1, 1.3), (0.7, 0.9)
ANYTHING, NOTHING = math.inf, -math.inf


@pytest.fixture(scope="module")
def source(small_export: Callable[[str], OnnxModel]) -> OnnxModel:
    pytest.importorskip("torch", reason="the small graph is exported from PyTorch")
    return small_export("pvt_v2")


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[[float, tuple[float, float]], None]:
    """A function (decibels that a step may lose, interval of every pair) that decides what is measured."""

    def script(may_lose: float, interval: tuple[float, float]) -> None:
        speed = PairedSpeed(batch=1, speedup=sum(interval) / 2, interval=interval)
        monkeypatch.setattr(search, "MOST_LOSS_DB", may_lose)
        monkeypatch.setattr(search, "ENOUGH_DB", math.inf)
        monkeypatch.setattr(stage, "pair_timer", lambda *_: lambda *_: (speed,))

    return script


def made(
    source: OnnxModel, path: Path, target: Target | None, options: QuantizeOptions, notes: Notes | None = None
) -> Any:
    progress = notes or Notes()
    found = quantize(
        source, path, precision="int8", target=target, calibration="digits", options=options, progress=progress
    )
    assert found.manifest.plan is not None
    convolved = {entry.precision for entry in found.manifest.plan.entries if "dwconv" in entry.group}
    return found, convolved, progress.lines


@pytest.mark.filterwarnings("ignore::vitdeploy.errors.FidelityWarning")
@pytest.mark.parametrize(
    ("may_lose", "interval", "kept"),
    [(ANYTHING, FASTER, True), (ANYTHING, SLOWER, False), (NOTHING, FASTER, False)],
    ids=["kept", "slower", "less accurate"],
)
@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_convolutions_are_kept_in_8_bits_where_that_is_accurate_and_faster(
    source: OnnxModel, tmp_path: Path, scripted: Any, target: Target, may_lose: float, interval: Any, kept: bool
) -> None:
    if target == "openvino":
        pytest.importorskip("openvino", reason="openvino is an extra: pip install 'vitdeploy[openvino]'")
    scripted(may_lose, interval)
    found, convolved, lines = made(source, tmp_path / "a.onnx", target, HERE)
    assert convolved == {"int8" if kept else "fp32"}
    trials = {trial.step: trial for trial in found.manifest.calibration.trials}
    assert (ATTENTION in trials) == (target == "openvino")
    for step in (DEPTHWISE, CONVOLUTIONS):
        assert trials[step].kept == kept
        assert [one.interval for one in trials[step].speeds] == ([interval] if may_lose == ANYTHING else [])
    assert found.manifest.plan.profile == ("full" if kept else "linear")
    (tried,) = (line for line in lines if line.startswith("tried on"))
    assert ("slower" in tried) == (interval == SLOWER)
    assert not any("stay in FP32" in line for line in lines)
    if not kept:
        return
    replayed = replace(HERE, plan=found.path)
    again, _, _ = made(source, tmp_path / "b.onnx", target, replayed)
    assert again.digest == found.digest, "nothing is tried for what a plan has decided"
    assert again.manifest.plan.entries == found.manifest.plan.entries


def test_each_step_is_kept_for_itself_and_the_plan_says_what_it_is(
    source: OnnxModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scripted: Any
) -> None:
    pytest.importorskip("openvino", reason="openvino is an extra: pip install 'vitdeploy[openvino]'")
    scripted(ANYTHING, FASTER)
    left = [SLOWER, FASTER, SLOWER, FASTER]
    monkeypatch.setattr(
        stage, "pair_timer", lambda *_: lambda *_: (PairedSpeed(batch=1, speedup=1.0, interval=left.pop(0)),)
    )
    found, convolved, _ = made(source, tmp_path / "a.onnx", "openvino", HERE)
    assert convolved == {"int8"}
    assert {trial.step: trial.kept for trial in found.manifest.calibration.trials[1:]} == {
        ATTENTION: False,
        DEPTHWISE: True,
        CONVOLUTIONS: False,
    }
    plan = found.manifest.plan
    assert plan.profile == "linear + depth-wise convolutions in 8 bits"
    others = [one for one in plan.entries if one.group.endswith(("attention", "attn.sr", "patch_embed2.proj"))]
    assert {one.precision for one in others} == {"fp32"}


@pytest.mark.parametrize(
    ("interval", "status", "said"),
    [
        (
            FASTER,
            "passed",
            "1.200× [1.100, 1.300] as fast at batch 1, beside the FP32 graph in ONNX Runtime on the CPU",
        ),
        (SLOWER, "failed", "slower: 1.250× [1.111, 1.429] the time at batch 1, beside the FP32 graph"),
        ((0.9, 1.1), "passed", "no certain difference: 1.000× [0.900, 1.100] as fast at batch 1, beside"),
        ((0.8, 1.1), "passed", "no certain difference: 1.053× [0.909, 1.250] the time at batch 1, beside"),
    ],
)
def test_it_says_how_fast_the_graph_is_here_beside_fp32(
    source: OnnxModel, tmp_path: Path, scripted: Any, interval: Any, status: str, said: str
) -> None:
    scripted(NOTHING, interval)
    if status == "failed":
        with pytest.warns(
            FidelityWarning, match=r"slower than the FP32 .*target='openvino' is faster \(slower: 1\.250× \["
        ):
            found, _, _ = made(source, tmp_path / "a.onnx", "onnxruntime", HERE)
    else:
        found, _, _ = made(source, tmp_path / "a.onnx", "onnxruntime", HERE)
    speed = check(found, "speed")
    assert speed.status == status
    assert speed.detail.startswith(said)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            replace(HERE, cpu=None),
            "cpu='auto' tries them in 8 bits and times that on this machine, profile='full' has them in 8 bits untried",
        ),
        (replace(FAST, cpu="auto"), "profile='full' has them in 8 bits"),
        (replace(FAST, profile="linear"), None),
        (replace(FAST, profile="full"), None),
    ],
    ids=["for any machine", "fast", "linear", "full"],
)
def test_that_convolutions_stay_is_said_where_nobody_chose_it(
    source: OnnxModel, tmp_path: Path, options: QuantizeOptions, said: str | None
) -> None:
    found, _, lines = made(source, tmp_path / "a.onnx", "onnxruntime", options)
    expected = [] if said is None else [f"7 convolution(s) stay in FP32: {said}"]
    assert [line for line in lines if "convolution" in line] == expected
    assert [one.name for one in found.manifest.checks] == ["logits SQNR", "agreement"], "nothing is timed"


@pytest.mark.parametrize(
    ("target", "without_gpu", "said"),
    [(None, "there is no GPU", True), (None, "", False), ("tensorrt", "there is no GPU", False)],
)
def test_what_a_graph_is_for_is_said_where_nobody_named_it_and_it_does_not_run_here(
    source: OnnxModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: Any, without_gpu: str, said: bool
) -> None:
    monkeypatch.setattr(environment, "reason_without_gpu", lambda: without_gpu)
    _, _, lines = made(source, tmp_path / "a.onnx", target, FAST)
    note = "the graph is for TensorRT, as none is named; for a CPU: target='onnxruntime' or target='openvino'"
    assert (note in lines) == said


def test_where_the_runtime_is_not_installed_nothing_is_timed_and_that_is_said(
    source: OnnxModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(get_backend("onnxruntime"), "can_run", lambda: "there is no processor", raising=False)
    found, convolved, lines = made(source, tmp_path / "a.onnx", "onnxruntime", HERE)
    assert convolved == {"fp32"}
    assert "nothing can be timed on 'onnxruntime' here: there is no processor" in lines
    assert "7 convolution(s) stay in FP32: profile='full' has them in 8 bits" in lines
    assert [one.name for one in found.manifest.checks] == ["logits SQNR", "agreement"]


def test_the_key_follows_from_the_machine_and_not_from_a_time(
    source: OnnxModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key(**changes: Any) -> str:
        options = replace(HERE, **changes)
        request = QuantizeRequest.open(
            source, tmp_path / "a.onnx", precision="int8", target="onnxruntime", calibration="digits", options=options
        )
        return request.key

    timed, untimed = key(), key(cpu=environment.cpu_integers() or "any")
    assert timed == key()
    assert timed != untimed, "what is tried differs"
    assert key(effort="fast") == key(effort="fast", cpu=environment.cpu_integers() or "any")
    monkeypatch.setattr(environment, "cpu_name", lambda: "A Processor of 2011")
    assert key() != timed
    assert key(cpu=environment.cpu_integers() or "any") == untimed
