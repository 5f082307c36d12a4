"""Sensors read from recorded file trees: Orin NX, AGX Orin, AGX Thor, a workstation with RAPL; and from a fake NVML."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vitdeploy import environment
from vitdeploy.measure import sensors
from vitdeploy.measure.sensors import KernelSensors, NvmlSensors, Reading, joules_of, sensors_of, summarize

HWMON = "sys/class/hwmon"
ORIN_NX = {
    f"{HWMON}/hwmon0/name": "pwmfan",
    f"{HWMON}/hwmon1/name": "ina3221",
    f"{HWMON}/hwmon1/in1_label": "VDD_IN",
    f"{HWMON}/hwmon1/in1_input": "5008",
    f"{HWMON}/hwmon1/curr1_input": "1240",
    f"{HWMON}/hwmon1/in2_label": "VDD_CPU_GPU_CV",
    f"{HWMON}/hwmon1/in2_input": "5000",
    f"{HWMON}/hwmon1/curr2_input": "400",
    f"{HWMON}/hwmon1/in3_label": "VDD_SOC",
    f"{HWMON}/hwmon1/in3_input": "5000",
    f"{HWMON}/hwmon1/curr3_input": "320",
    f"{HWMON}/hwmon1/in7_label": "sum of shunt voltages",
    "sys/class/devfreq/17000000.gpu/cur_freq": "918000000",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
    "sys/class/thermal/thermal_zone0/temp": "51500",
    "sys/class/thermal/thermal_zone1/type": "gpu-thermal",
    "sys/class/thermal/thermal_zone1/temp": "49250",
    "sys/class/thermal/thermal_zone2/type": "cv0-thermal",
    "sys/class/thermal/thermal_zone2/temp": "-256000",
}
AGX_ORIN = {
    f"{HWMON}/hwmon3/name": "ina3221",
    f"{HWMON}/hwmon3/in1_label": "VDD_GPU_SOC",
    f"{HWMON}/hwmon3/in1_input": "20000",
    f"{HWMON}/hwmon3/curr1_input": "400",
    f"{HWMON}/hwmon3/in2_label": "VDD_CPU_CV",
    f"{HWMON}/hwmon3/in2_input": "20000",
    f"{HWMON}/hwmon3/curr2_input": "100",
    f"{HWMON}/hwmon3/in3_label": "VIN_SYS_5V0",
    f"{HWMON}/hwmon3/in3_input": "5000",
    f"{HWMON}/hwmon3/curr3_input": "800",
    f"{HWMON}/hwmon4/name": "ina3221",
    f"{HWMON}/hwmon4/in1_label": "NC",
    f"{HWMON}/hwmon4/in1_input": "0",
    f"{HWMON}/hwmon4/curr1_input": "0",
    f"{HWMON}/hwmon4/in2_label": "VDDQ_VDD2_1V8AO",
    f"{HWMON}/hwmon4/in2_input": "5000",
    f"{HWMON}/hwmon4/curr2_input": "300",
    "sys/class/devfreq/17000000.ga10b/cur_freq": "1300500000",
    "sys/class/thermal/thermal_zone1/type": "GPU-therm",
    "sys/class/thermal/thermal_zone1/temp": "60000",
}
AGX_THOR = {
    f"{HWMON}/hwmon2/name": "ina238",
    f"{HWMON}/hwmon2/power1_input": "38400000",
    f"{HWMON}/hwmon3/name": "ina3221",
    f"{HWMON}/hwmon3/in1_label": "VDD_GPU",
    f"{HWMON}/hwmon3/in1_input": "20000",
    f"{HWMON}/hwmon3/curr1_input": "900",
    f"{HWMON}/hwmon4/name": "ucsi_source_psy_1_00081",
    f"{HWMON}/hwmon4/in1_label": "USB",
}
RAPL = "sys/class/powercap"
WORKSTATION = {
    f"{RAPL}/intel-rapl:0/name": "package-0",
    f"{RAPL}/intel-rapl:0/energy_uj": "262143000000",
    f"{RAPL}/intel-rapl:0/max_energy_range_uj": "262143328850",
    f"{RAPL}/intel-rapl:0:0/name": "core",
    f"{RAPL}/intel-rapl:0:0/energy_uj": "100000000",
    f"{RAPL}/intel-rapl:0:0/max_energy_range_uj": "262143328850",
    f"{RAPL}/intel-rapl:1/name": "psys",
    f"{RAPL}/intel-rapl:1/energy_uj": "990000000000",
    "sys/class/thermal/thermal_zone0/type": "x86_pkg_temp",
    "sys/class/thermal/thermal_zone0/temp": "71000",
    **{f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq": "3200000" for core in range(64)},
    **{f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor": "powersave" for core in range(64)},
}


def _tree(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


@pytest.mark.parametrize(
    ("board", "watts"),
    [
        (ORIN_NX, 5.008 * 1.240),  # VDD_IN is the whole module: the two rails behind it are not added
        (AGX_ORIN, 8.0 + 2.0 + 4.0),  # no such rail: the sum, without VDDQ_VDD2_1V8AO behind VIN_SYS_5V0
        (AGX_THOR, 38.4),  # the carrier's monitor; USB-C contracts are no rails
    ],
    ids=["orin-nx", "agx-orin", "agx-thor"],
)
def test_the_power_of_a_jetson_is_counted_once(tmp_path: Path, board: dict[str, str], watts: float) -> None:
    root = _tree(tmp_path, board)
    assert KernelSensors("cuda", root).power_w() == pytest.approx(watts)
    assert KernelSensors("cpu", root).read().power_w == pytest.approx(watts)


@pytest.mark.parametrize(
    ("board", "lost"),
    [
        (AGX_ORIN, f"{HWMON}/hwmon3/curr2_input"),
        (AGX_ORIN, f"{HWMON}/hwmon3/in3_label"),
        (AGX_THOR, f"{HWMON}/hwmon2/power1_input"),
    ],
)
def test_a_rail_that_vanished_makes_the_total_unknown_and_not_smaller(
    tmp_path: Path, board: dict[str, str], lost: str
) -> None:
    root = _tree(tmp_path, {name: text for name, text in board.items() if name != lost})
    assert KernelSensors("cuda", root).power_w() is None


def test_clock_and_temperature_of_a_jetson_are_those_of_the_device(tmp_path: Path) -> None:
    root = _tree(tmp_path, ORIN_NX)
    gpu, cpu = KernelSensors("cuda", root).read(), KernelSensors("cpu", root).read()
    assert (gpu.clock_mhz, gpu.temperature_c) == (918.0, 49.25)
    assert (cpu.clock_mhz, cpu.temperature_c) == (None, 51.5)
    other = KernelSensors("cuda", _tree(tmp_path / "agx", AGX_ORIN)).read()
    assert (other.clock_mhz, other.temperature_c) == (1300.5, 60.0)


@pytest.mark.parametrize(("temp", "seen"), [("-256000", None), ("900000", None), ("nonsense", None), ("40000", 40.0)])
def test_a_temperature_that_cannot_be_is_none(tmp_path: Path, temp: str, seen: float | None) -> None:
    zone = "sys/class/thermal/thermal_zone0"
    assert KernelSensors("cpu", _tree(tmp_path, {f"{zone}/type": "cpu", f"{zone}/temp": temp})).read() == Reading(
        temperature_c=seen
    )


def test_rapl_counts_packages_alone_and_goes_on_when_a_counter_wraps(tmp_path: Path) -> None:
    meter = KernelSensors("cpu", _tree(tmp_path, WORKSTATION))
    first = meter.energy_j()
    assert first == pytest.approx(262143.0)  # neither its part 'core' nor 'psys', which holds the package
    _tree(tmp_path, {f"{RAPL}/intel-rapl:0/energy_uj": "671150"})
    second = meter.energy_j()
    assert second is not None
    assert first is not None
    assert second - first == pytest.approx(1.0)
    assert sensors.governor(tmp_path) == "powersave"
    assert meter.read() == Reading(clock_mhz=3200.0, temperature_c=71.0)


def test_a_counter_that_may_not_be_read_is_no_meter(tmp_path: Path) -> None:
    files = {name: text for name, text in WORKSTATION.items() if name != f"{RAPL}/intel-rapl:0/energy_uj"}
    meter = KernelSensors("cpu", _tree(tmp_path, files))
    assert meter.energy_j() is None
    assert joules_of(meter, lambda: pytest.fail("nothing is run where nothing can be metered")) is None


def test_a_machine_without_sensors_reads_nothing(tmp_path: Path) -> None:
    for device in ("cpu", "cuda"):
        found = KernelSensors(device, tmp_path)
        assert (found.read(), found.energy_j(), found.power_w()) == (Reading(), None, None)
    assert sensors.governor(tmp_path) is None


class Metered:
    """A device whose power or counter the test chooses."""

    def __init__(self, counter: list[float | None] | None = None, watts: list[float | None] | None = None) -> None:
        self.counter, self.watts = counter, watts

    def read(self) -> Reading:
        if self.watts is None:
            return Reading()
        return Reading(power_w=self.watts.pop(0) if len(self.watts) > 1 else self.watts[0])

    def energy_j(self) -> float | None:
        return self.counter.pop(0) if self.counter else None


def test_energy_is_the_counter_where_there_is_one_and_integrated_power_where_not() -> None:
    times = iter([0.0, 5.0])
    assert joules_of(Metered([100.0, 150.0]), lambda: None, wall=lambda: next(times)) == (50.0, 5.0)
    times = iter([0.0, 4.0])
    found = joules_of(Metered(watts=[12.5]), lambda: None, wall=lambda: next(times))
    assert found == (50.0, 4.0)


@pytest.mark.parametrize("counter", [[100.0, 100.0], [100.0, 90.0], [100.0, None]], ids=["stuck", "back", "gone"])
def test_a_counter_that_lies_or_vanishes_gives_nothing(counter: list[float | None]) -> None:
    assert joules_of(Metered(counter), lambda: None) is None


def test_a_power_sensor_that_vanishes_while_it_is_sampled_gives_nothing() -> None:
    assert joules_of(Metered(watts=[12.0, None]), lambda: None) is None


NVML_ARGUMENTS = {
    "nvmlInit": 0,
    "nvmlDeviceGetHandleByIndex": 1,
    "nvmlDeviceGetHandleByUUID": 1,
    "nvmlDeviceGetHandleByPciBusId": 1,
    "nvmlDeviceGetClockInfo": 2,
    "nvmlDeviceGetTemperature": 2,
    "nvmlDeviceGetPowerUsage": 1,
    "nvmlDeviceGetCurrentClocksEventReasons": 1,
    "nvmlDeviceGetCurrentClocksThrottleReasons": 1,
    "nvmlDeviceGetComputeRunningProcesses": 1,
    "nvmlDeviceGetMemoryInfo": 1,
    "nvmlDeviceGetTotalEnergyConsumption": 1,
}
"""How many arguments each function of ``nvidia-ml-py`` needs."""


def test_the_fake_takes_what_nvidia_ml_py_takes() -> None:
    real = pytest.importorskip("pynvml", reason="nvidia-ml-py is part of the extras cuda12 and cuda13")
    needed = {
        name: sum(one.default is one.empty for one in inspect.signature(getattr(real, name)).parameters.values())
        for name in NVML_ARGUMENTS
    }
    assert needed == NVML_ARGUMENTS
    assert (real.NVML_CLOCK_SM, real.NVML_TEMPERATURE_GPU) == (FakeNvml.NVML_CLOCK_SM, FakeNvml.NVML_TEMPERATURE_GPU)
    bits = [real.nvmlClocksEventReasonSwPowerCap, real.nvmlClocksEventReasonHwThermalSlowdown]
    assert all(bit in sensors.THROTTLE_REASONS for bit in bits)


class FakeNvml:
    """As ``nvidia-ml-py`` answers; what ``missing`` names raises, as on a GPU without it.

    A function takes what that package's own takes, and nothing that it has not.
    """

    NVML_CLOCK_SM = 1
    NVML_TEMPERATURE_GPU = 0

    def __init__(self, missing: tuple[str, ...] = (), reasons: int = 0) -> None:
        self.missing, self.reasons = missing, reasons
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __getattr__(self, name: str) -> Any:
        if name in self.missing or not name.startswith("nvml"):
            raise AttributeError(name)
        answers: dict[str, Any] = {
            "nvmlInit": None,
            "nvmlDeviceGetHandleByIndex": "handle",
            "nvmlDeviceGetHandleByUUID": "handle by uuid",
            "nvmlDeviceGetHandleByPciBusId": "handle by bus",
            "nvmlDeviceGetClockInfo": 1980,
            "nvmlDeviceGetTemperature": 61,
            "nvmlDeviceGetPowerUsage": 312_500,
            "nvmlDeviceGetCurrentClocksEventReasons": self.reasons,
            "nvmlDeviceGetComputeRunningProcesses": [SimpleNamespace(pid=1)],
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(free=70 << 30),
            "nvmlDeviceGetTotalEnergyConsumption": 12_000,
        }

        def call(*arguments: Any) -> Any:
            assert len(arguments) == NVML_ARGUMENTS[name], f"{name} takes {NVML_ARGUMENTS[name]} arguments"
            self.calls.append((name, arguments))
            return answers[name]

        return call


def test_nvml_is_read_and_its_idle_bit_is_no_throttling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(reasons=0x1 | 0x4 | 0x40))
    found = sensors_of("cuda")
    assert isinstance(found, NvmlSensors)
    assert found.energy_j() == 12.0
    assert found.read() == Reading(1980.0, 61.0, 312.5, ("power cap", "hardware thermal slowdown"), 1, 70 << 30)
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(reasons=0x1 | 0x2))
    assert sensors_of("cuda").read().throttled == ()


@pytest.mark.parametrize("name", ["nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetPowerUsage"])
def test_what_a_gpu_does_not_support_is_none(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(missing=(name,)))
    found = sensors_of("cuda")
    unknown = {"nvmlDeviceGetTotalEnergyConsumption": found.energy_j(), "nvmlDeviceGetPowerUsage": found.read().power_w}
    assert unknown[name] is None
    assert found.read().clock_mhz == 1980.0


@pytest.mark.parametrize(
    ("visible", "bus", "asked"),
    [
        (None, None, ("nvmlDeviceGetHandleByIndex", (0,))),
        ("1,0", None, ("nvmlDeviceGetHandleByIndex", (1,))),
        ("0", "0000:41:00.0", ("nvmlDeviceGetHandleByPciBusId", ("0000:41:00.0",))),
        ("GPU-7f3", "0000:41:00.0", ("nvmlDeviceGetHandleByUUID", ("GPU-7f3",))),
    ],
)
def test_the_sensors_are_those_of_the_gpu_that_cuda_uses(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, bus: str | None, asked: tuple[str, tuple[Any, ...]]
) -> None:
    """CUDA numbers GPUs by speed, NVML by their bus, so a number alone can name another GPU."""
    nvml = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(environment, "gpu_bus_id", lambda: bus)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert isinstance(sensors_of("cuda"), NvmlSensors)
    assert nvml.calls[-1] == asked


def test_without_nvml_the_files_of_the_kernel_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(missing=("nvmlInit",)))
    assert sensors_of("cuda", _tree(tmp_path, ORIN_NX)).read().clock_mhz == 918.0


def test_readings_of_many_turns_are_summarised() -> None:
    readings = [Reading(1000, 50, 10), Reading(2000, 70, 12, ("power cap",)), Reading(1500, None, 11)]
    assert summarize(readings) == Reading(1500, 70, 11, ("power cap",))
    assert summarize([]) == Reading()
