from __future__ import annotations

import importlib.util
import sys

import pytest
from machine import be, fake_gpu, machine

from vitdeploy import environment
from vitdeploy.stages.doctor import Finding, doctor


def by_name() -> dict[str, Finding]:
    return {finding.name: finding for finding in doctor()}


def test_every_part_of_this_machine_is_diagnosed() -> None:
    found = by_name()
    assert {"python", "processor", "GPU", "pytorch", "onnxruntime", "tensorrt", "tensorrt-rtx", "openvino"} <= set(
        found
    )
    assert found["python"].status == "ok"
    assert found["onnxruntime"].status == "ok"
    assert "CPUExecutionProvider" in found["onnxruntime"].detail
    for finding in found.values():
        assert finding.detail
        assert "\n" not in finding.detail + finding.remedy
        assert bool(finding.remedy) <= (finding.status == "missing")


@pytest.mark.parametrize(
    ("integers", "status", "said"),
    [
        ("any", "warning", "INT8 may be slower than FP32"),
        ("vnni", "ok", "in one instruction"),
        ("amx", "ok", "AMX"),
        (None, None, ""),
    ],
)
def test_it_says_how_the_processor_multiplies_integers(
    monkeypatch: pytest.MonkeyPatch, integers: str | None, status: str | None, said: str
) -> None:
    monkeypatch.setattr(environment, "cpu_integers", lambda: integers)
    finding = by_name().get("8-bit products")
    assert (finding and finding.status) == status
    assert finding is None or said in finding.detail


def test_what_is_missing_names_the_command_that_adds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("tensorrt", "openvino"):
        monkeypatch.setitem(sys.modules, module, None)
    found = by_name()
    for name in ("tensorrt", "openvino"):
        assert found[name].status == "missing"
        assert found[name].remedy == f"pip install 'vitdeploy[{name}]'"
        assert "pip" not in found[name].detail


def test_extras_that_are_missing_name_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "timm" else real(name))
    finding = by_name()["timm's models, augmentation and datasets"]
    assert (finding.status, finding.remedy) == ("missing", "pip install 'vitdeploy[torch]'")


def test_workstation_with_tensorrt_can_do_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpu(monkeypatch, "10.16")
    found = by_name()
    assert found["GPU"].status == "ok"
    assert found["GPU"].detail.startswith("NVIDIA L4, compute capability 8.9, 24.0 GiB, driver 580.65, CUDA 13.0")
    assert found["tensorrt"].status == "ok"
    assert found["tensorrt"].detail == "10.16.0.72"


@pytest.mark.parametrize(
    ("release", "capability", "version", "status", "message"),
    [
        ("10.4", "8.9", "10.4.0", "no", "miscompiles"),
        ("10.13", "8.7", "10.13.3.9", "no", "holds no kernels for sm_87"),
        ("11.1", "7.0", "11.1.0", "no", "needs compute capability 7.5"),
        ("10.13", "11.0", "10.13.3.9", "warning", "unreliably on Thor"),
    ],
)
def test_library_that_does_not_suit_the_gpu_is_told(
    monkeypatch: pytest.MonkeyPatch, release: str, capability: str, version: str, status: str, message: str
) -> None:
    fake_gpu(monkeypatch, release, capability, version=version)
    finding = by_name()["tensorrt"]
    assert finding.status == status
    assert message in finding.detail


def test_gpu_that_no_supported_tensorrt_serves_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    be(monkeypatch, machine("7.0"))
    finding = by_name()["GPU"]
    assert finding.status == "no"
    assert "TensorRT 10 and newer serves 7.5 and higher" in finding.detail


def test_rtx_says_what_it_builds_for_and_whether_it_runs_here(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpu(monkeypatch, "rtx")
    assert by_name()["tensorrt-rtx"].detail.endswith("12.0, 12.1, and runs here")
    fakes = fake_gpu(monkeypatch, "rtx", "11.0")
    finding = by_name()["tensorrt-rtx"]
    assert (finding.status, "not for this GPU (11.0): use tensorrt" in finding.detail) == ("warning", True)
    be(monkeypatch, machine(None), tensorrt_rtx=fakes.trt.__version__)
    finding = by_name()["tensorrt-rtx"]
    assert finding.status == "ok"
    assert "no NVIDIA GPU here" in finding.detail


def test_missing_cuda_python_is_told_beside_the_library_that_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for release, name in (("rtx", "tensorrt-rtx"), ("10.16", "tensorrt")):
        fake_gpu(monkeypatch, release, cuda="12.6")
        for layout in ("cuda.bindings.runtime", "cuda.cudart"):
            monkeypatch.setitem(sys.modules, layout, None)
        finding = by_name()[name]
        assert finding.status == "missing"
        assert finding.detail.endswith("cuda-python is not installed")
        assert finding.remedy == "pip install 'vitdeploy[cuda12]'"


def test_jetson_shows_jetpack_and_power_mode_and_no_rtx(monkeypatch: pytest.MonkeyPatch) -> None:
    there = machine("8.7", jetpack="6.2 (L4T 36.4.3)").model_copy(update={"power_mode": "MAXN"})
    be(monkeypatch, there)
    for module in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, module, None)
    found = by_name()
    assert found["JetPack"].detail == "6.2 (L4T 36.4.3)"
    assert found["power mode"].detail.startswith("MAXN")
    assert found["tensorrt"].remedy.startswith("sudo apt-get install python3-libnvinfer")
    assert (found["tensorrt-rtx"].status, found["tensorrt-rtx"].remedy) == ("no", "")
