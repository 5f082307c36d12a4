from __future__ import annotations

import ctypes
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vitdeploy import environment
from vitdeploy.records import Environment


@pytest.fixture
def no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", absent)


def test_this_machine_is_described() -> None:
    here = environment.current()
    assert isinstance(here, Environment)
    assert here.python == sys.version.split()[0]
    assert here.cores >= 1
    assert here.cpu
    assert here.memory_bytes is None or here.memory_bytes > 1 << 28
    assert environment.current() is here


def test_versions_are_those_of_the_metadata_and_nothing_is_imported() -> None:
    found = environment.versions()
    assert found["numpy"] == importlib.metadata.version("numpy")
    assert found["onnxruntime"][0].isdigit()
    script = (
        "import sys; from vitdeploy import environment; environment.versions(); environment.current(); "
        "loaded = {'torch', 'numpy', 'onnx', 'onnxruntime', 'tensorrt', 'tensorrt_rtx', 'cuda'} & set(sys.modules); "
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_versions_cannot_be_changed_by_a_caller() -> None:
    environment.versions()["numpy"] = "0"
    assert environment.versions()["numpy"] != "0"


def test_any_distribution_of_a_library_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"onnxruntime-gpu": "1.20.1", "tensorrt-cu12": "10.3.0", "tensorrt-rtx-cu13": "1.7.1"}

    def version(name: str) -> str | None:
        if name in installed:
            return installed[name]
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    environment._versions.cache_clear()
    try:
        assert environment.versions() == {"onnxruntime": "1.20.1", "tensorrt": "10.3.0", "tensorrt-rtx": "1.7.1"}
        assert environment._tensorrt_version() == "10.3.0"
        del installed["tensorrt-cu12"]
        environment._versions.cache_clear()
        assert environment._tensorrt_version() == "RTX 1.7.1"
    finally:
        environment._versions.cache_clear()


@pytest.mark.parametrize(
    ("cpuinfo", "machine", "integers"),
    [
        ("flags\t\t: fpu avx2 avx512f", "x86_64", "any"),
        ("flags\t\t: fpu avx2 avx_vnni", "x86_64", "vnni"),
        ("flags\t\t: avx512_vnni amx_tile amx_int8", "AMD64", "amx"),
        ("", "x86_64", None),
        ("Features : asimd", "aarch64", "vnni"),
    ],
)
def test_how_a_processor_multiplies_integers_is_read_from_its_flags(
    monkeypatch: pytest.MonkeyPatch, cpuinfo: str, machine: str, integers: str | None
) -> None:
    monkeypatch.setattr(environment, "_read", lambda path: cpuinfo)
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert environment.cpu_integers() == integers


@pytest.mark.parametrize(
    ("text", "l4t", "jetpack"),
    [
        ("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64", "36.4.3", "6.2"),
        ("# R36 (release), REVISION: 4.0, GCID: 37537400, BOARD: generic", "36.4.0", "6.1"),
        ("# R36 (release), REVISION: 3.0, GCID: 36191598", "36.3.0", "6.0"),
        ("# R38 (release), REVISION: 4.0, GCID: 1", "38.4.0", "7.1"),
        ("# R39 (release), REVISION: 2.0, GCID: 1", "39.2.0", "7.2"),
        ("# R99 (release), REVISION: 1.0, GCID: 1", "99.1.0", None),
        ("", None, None),
        ("something else", None, None),
    ],
)
def test_jetpack_is_read_from_the_tegra_release(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, l4t: str | None, jetpack: str | None
) -> None:
    release = tmp_path / "nv_tegra_release"
    if text:
        release.write_text(text + "\n")
    monkeypatch.setattr(environment, "NV_TEGRA_RELEASE", release)
    monkeypatch.setattr(environment, "_output", lambda command: "")
    assert environment.parse_l4t(text) == l4t
    wanted = None if l4t is None else f"L4T {l4t}" if jetpack is None else f"{jetpack} (L4T {l4t})"
    assert environment.find_jetpack() == wanted


def test_jetpack_package_is_more_exact_than_the_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    release = tmp_path / "nv_tegra_release"
    release.write_text("# R36 (release), REVISION: 4.4, GCID: 1\n")
    monkeypatch.setattr(environment, "NV_TEGRA_RELEASE", release)
    answers = {"nvidia-jetpack": "6.2.1+b38"}
    monkeypatch.setattr(environment, "_output", lambda command: answers.get(command[-1], ""))
    assert environment.find_jetpack() == "6.2.1 (L4T 36.4.4)"


def test_power_mode_is_asked_of_nvpmodel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_output", lambda command: "NV Power Mode: MAXN_SUPER\n2")
    assert environment.find_power_mode() == "MAXN_SUPER"
    monkeypatch.setattr(environment, "_output", lambda command: "")
    assert environment.find_power_mode() is None


def test_gpu_is_asked_of_nvidia_smi_where_the_driver_library_is_absent(
    monkeypatch: pytest.MonkeyPatch, no_driver: None
) -> None:
    monkeypatch.setattr(
        environment, "_output", lambda command: "NVIDIA L4, 8.9, 23034, 580.65.06\nNVIDIA L4, 8.9, 1, 1"
    )
    assert environment.find_gpu() == environment.Gpu("NVIDIA L4", "8.9", 23034 << 20, "580.65.06")


@pytest.mark.parametrize("text", ["", "No devices were found", "Orin (nvgpu), [N/A], [N/A], N/A"])
def test_answer_without_a_gpu_is_none(monkeypatch: pytest.MonkeyPatch, no_driver: None, text: str) -> None:
    monkeypatch.setattr(environment, "_output", lambda command: text)
    assert environment.find_gpu() is None


class Driver:
    """``libcuda`` with one GPU."""

    def __init__(self, count: int = 1, error: int = 0) -> None:
        self.count, self.error = count, error

    def cuInit(self, flags: int) -> int:
        return self.error

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = self.count
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:
        assert index == 0
        device._obj.value = 0
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:
        name.value = b"Orin"
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:
        value._obj.value = {75: 8, 76: 7}[attribute]
        return 0

    def cuDeviceTotalMem_v2(self, total: Any, device: Any) -> int:
        total._obj.value = 8 << 30
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = 12060
        return 0


def test_gpu_is_asked_of_the_driver_library_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    version = tmp_path / "version"
    version.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27 07:10:00 UTC 2025\n")
    monkeypatch.setattr(environment, "DRIVER_VERSION", version)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver())
    assert environment.find_gpu() == environment.Gpu("Orin", "8.7", 8 << 30, "580.65.06", "12.6")


@pytest.mark.parametrize("driver", [Driver(count=0), Driver(error=100), object()])
def test_driver_library_without_a_device_is_no_gpu(monkeypatch: pytest.MonkeyPatch, driver: object) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    monkeypatch.setattr(environment, "_output", lambda command: "")
    assert environment.find_gpu() is None


@pytest.mark.parametrize(
    ("driver", "on_bus", "hidden", "said"),
    [
        (None, False, None, "there is no NVIDIA GPU here"),
        (None, True, None, "there is an NVIDIA GPU here and no driver for it"),
        (Driver(count=0), True, "", "shows no GPU, as CUDA_VISIBLE_DEVICES is ''"),
        (Driver(error=100), False, None, "there is no NVIDIA GPU here, though its driver is installed"),
        (Driver(error=803), True, None, r"is installed and does not answer \(CUDA error 803\)"),
        (object(), False, None, "only a stub of its driver"),
    ],
)
def test_why_there_is_no_gpu_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, driver: object, on_bus: bool, hidden: str | None, said: str
) -> None:
    def load(name: str) -> object:
        if driver is None:
            raise OSError(name)
        return driver

    device = tmp_path / "0000:01:00.0"
    device.mkdir()
    (device / "vendor").write_text("0x10de\n" if on_bus else "0x8086\n")
    (device / "class").write_text("0x030200\n")
    monkeypatch.setattr(environment, "PCI_DEVICES", tmp_path)
    monkeypatch.setattr(ctypes, "CDLL", load)
    here = environment.current().model_copy(update={"gpu": None})
    monkeypatch.setattr(environment, "current", lambda: here)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert re.search(said, environment.reason_without_gpu())
    monkeypatch.setattr(environment, "current", lambda: here.model_copy(update={"gpu": "NVIDIA L4"}))
    assert environment.reason_without_gpu() == ""


def test_container_limit_is_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    real = environment._read
    monkeypatch.setattr(environment, "_read", lambda path: "1073741824\n" if path.name == "memory.max" else real(path))
    assert environment.memory_bytes() == 1 << 30
    monkeypatch.setattr(environment, "_read", lambda path: "max\n")
    assert (environment.memory_bytes() or 0) > 1 << 28


def test_command_that_fails_or_is_absent_says_nothing() -> None:
    assert environment._output(["no-such-command-anywhere"]) == ""
    assert environment._output([sys.executable, "-c", "print('half'); raise SystemExit(3)"]) == ""
    assert environment._output([sys.executable, "-c", "print('whole')"]) == "whole"
