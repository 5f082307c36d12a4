"""What a machine's own sensors say while something runs: clock, temperature, power, throttling; and energy.

NVIDIA GPUs through NVML (``nvidia-ml-py``), a Jetson and a CPU through files of the kernel. A sensor that is not there,
or that gives what cannot be, is None: nothing is estimated.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vitdeploy import environment
from vitdeploy.records.report import Device

SYSTEM = Path("/")
POLL_S = 0.05
TOTAL_RAILS = ("VIN", "VDD_IN", "POM_5V_IN")
"""Rails that carry the whole board's or module's current: other rails lie behind them and must not be added."""
PARTIAL_RAILS = ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")
"""AGX Orin has no such rail: its total is the sum of these, and VDDQ_VDD2_1V8AO lies behind the third."""
GPU_CLOCKS = (
    "sys/class/devfreq/*.gpu/cur_freq",
    "sys/class/devfreq/*.ga10b/cur_freq",
    "sys/class/devfreq/*gpc*/cur_freq",
)
THROTTLE_REASONS = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
"""Bits of ``nvmlDeviceGetCurrentClocksEventReasons`` that mean slower than asked for; idle and user settings do not."""


@dataclass(frozen=True)
class Reading:
    """One look at the sensors; None where there is none."""

    clock_mhz: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    throttled: tuple[str, ...] = ()
    other_processes: int | None = None
    free_memory_bytes: int | None = None


class Sensors(Protocol):
    """The sensors of one device."""

    def read(self) -> Reading: ...
    def energy_j(self) -> float | None:
        """Return a counter of joules that only rises, None where there is none."""
        ...


def of_all_devices(root: Path = SYSTEM) -> dict[Device, Sensors]:
    """Return the sensors of each device that a row can run on."""
    return {"cpu": sensors_of("cpu", root), "cuda": sensors_of("cuda", root)}


def sensors_of(device: Device, root: Path = SYSTEM) -> Sensors:
    """Return the sensors of ``cpu`` or ``cuda``: NVML where it answers, else the files of a Jetson or of the CPU."""
    if device == "cuda" and (found := NvmlSensors.find()) is not None:
        return found
    return KernelSensors(device, root)


class KernelSensors:
    """Files of the Linux kernel: cpufreq, thermal zones, RAPL; devfreq and INA monitors of a Jetson."""

    def __init__(self, device: Device, root: Path = SYSTEM) -> None:
        self._device, self._root = device, root
        self._counted: dict[Path, tuple[int, int]] = {}

    def read(self) -> Reading:
        return Reading(self._clock_mhz(), self._temperature_c(), self.power_w())

    def energy_j(self) -> float | None:
        """Return the joules of all CPU packages (RAPL); None elsewhere, and where the files may not be read.

        Sub-zones (core, uncore, dram) are parts of a package's own count and are not added to it. A counter that
        wrapped around goes on from where it was.
        """
        if self._device != "cpu":
            return None
        packages = [
            zone
            for zone in sorted(self._root.glob("sys/class/powercap/*-rapl:*"))
            if zone.name.count(":") == 1 and _text(zone / "name").startswith("package")
        ]
        total = 0
        for zone in packages:
            now, span = _integer(zone / "energy_uj"), _integer(zone / "max_energy_range_uj")
            if now is None or now < 0:
                return None
            last, wrapped = self._counted.get(zone, (now, 0))
            if now < last:
                if not span or span < last:
                    return None
                wrapped += span
            self._counted[zone] = (now, wrapped)
            total += now + wrapped
        return total / 1e6 if packages else None

    def power_w(self) -> float | None:
        """Return a Jetson's watts, of the whole module or board; None where its rails are not known."""
        rails: dict[str, float] = {}
        for monitor in sorted(self._root.glob("sys/class/hwmon/hwmon*")):
            kind = _text(monitor / "name")
            microwatts = _integer(monitor / "power1_input")
            if kind == "ina238" and microwatts is not None:
                rails[_text(monitor / "in1_label") or "VIN"] = microwatts / 1e6
            for channel in (1, 2, 3) if kind == "ina3221" else ():
                volts, amperes = _integer(monitor / f"in{channel}_input"), _integer(monitor / f"curr{channel}_input")
                name = _text(monitor / f"in{channel}_label")
                if name not in ("", "NC") and volts is not None and amperes is not None:
                    rails[name] = volts * amperes / 1e6
        for name in TOTAL_RAILS:
            if name in rails:
                return _plausible(rails[name], 0, 2000)
        if all(name in rails for name in PARTIAL_RAILS):
            return _plausible(sum(rails[name] for name in PARTIAL_RAILS), 0, 2000)
        return None

    def _clock_mhz(self) -> float | None:
        if self._device == "cuda":
            hertz = [_integer(path) for pattern in GPU_CLOCKS for path in sorted(self._root.glob(pattern))]
            known = [value for value in hertz if value]
            return _plausible(known[0] / 1e6, 1, 10_000) if known else None
        kilohertz = [
            _integer(self._root / f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq")
            for core in _usable_cores()
        ]
        known = [value for value in kilohertz if value]
        return _plausible(sum(known) / len(known) / 1e3, 1, 10_000) if known else None

    def _temperature_c(self) -> float | None:
        """Return the hottest zone of the device; a zone that is off gives absurd values, which do not count."""
        wanted = ("gpu",) if self._device == "cuda" else ("cpu", "x86_pkg_temp", "soc", "acpitz", "k10temp")
        found = []
        for zone in sorted(self._root.glob("sys/class/thermal/thermal_zone*")):
            milli = _integer(zone / "temp")
            if milli is not None and _text(zone / "type").lower().startswith(wanted):
                found.append(_plausible(milli / 1000, -20, 130))
        return max((value for value in found if value is not None), default=None)


class NvmlSensors:
    """The first visible NVIDIA GPU through NVML."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle

    @classmethod
    def find(cls) -> NvmlSensors | None:
        """Return the sensors, None where NVML is not installed or does not answer (a Jetson before Thor)."""
        try:
            import pynvml

            pynvml.nvmlInit()
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
            if visible.startswith(("GPU-", "MIG-")):
                return cls(pynvml, pynvml.nvmlDeviceGetHandleByUUID(visible))
            bus = environment.gpu_bus_id()
            if bus is not None:
                return cls(pynvml, pynvml.nvmlDeviceGetHandleByPciBusId(bus))
            return cls(pynvml, pynvml.nvmlDeviceGetHandleByIndex(int(visible)))
        except Exception:  # NVML's own errors, an import that fails, a variable that is no number: no sensors
            return None

    def read(self) -> Reading:
        nvml = self._nvml
        reasons = self._query("nvmlDeviceGetCurrentClocksEventReasons") or self._query(
            "nvmlDeviceGetCurrentClocksThrottleReasons"
        )
        processes = self._query("nvmlDeviceGetComputeRunningProcesses")
        memory = self._query("nvmlDeviceGetMemoryInfo")
        milliwatts = self._query("nvmlDeviceGetPowerUsage")
        return Reading(
            clock_mhz=_plausible(self._query("nvmlDeviceGetClockInfo", getattr(nvml, "NVML_CLOCK_SM", 1)), 1, 10_000),
            temperature_c=_plausible(
                self._query("nvmlDeviceGetTemperature", getattr(nvml, "NVML_TEMPERATURE_GPU", 0)), -20, 130
            ),
            power_w=None if milliwatts is None else _plausible(milliwatts / 1000, 0, 5000),
            throttled=tuple(
                name for bit, name in THROTTLE_REASONS.items() if isinstance(reasons, int) and reasons & bit
            ),
            other_processes=None if processes is None else sum(one.pid != os.getpid() for one in processes),
            free_memory_bytes=None if memory is None else int(memory.free),
        )

    def energy_j(self) -> float | None:
        millijoules = self._query("nvmlDeviceGetTotalEnergyConsumption")
        return None if millijoules is None else float(millijoules) / 1000

    def _query(self, name: str, *arguments: Any) -> Any:
        try:
            return getattr(self._nvml, name)(self._handle, *arguments)
        except Exception:  # not supported by this GPU, driver or version of the binding: no such sensor
            return None


def summarize(readings: Iterable[Reading]) -> Reading:
    """Return the median clock and power, the highest temperature, and every throttle reason that was seen."""
    several = list(readings)

    def known(name: str) -> list[float]:
        return sorted(value for one in several if (value := getattr(one, name)) is not None)

    clocks, temperatures, powers = known("clock_mhz"), known("temperature_c"), known("power_w")
    others, free = known("other_processes"), known("free_memory_bytes")
    return Reading(
        clock_mhz=clocks[len(clocks) // 2] if clocks else None,
        temperature_c=temperatures[-1] if temperatures else None,
        power_w=powers[len(powers) // 2] if powers else None,
        throttled=tuple(dict.fromkeys(reason for one in several for reason in one.throttled)),
        other_processes=int(others[-1]) if others else None,
        free_memory_bytes=int(free[0]) if free else None,
    )


def joules_of(
    sensors: Sensors,
    work: Callable[[], object],
    *,
    wall: Callable[[], float] = time.perf_counter,
    poll_s: float = POLL_S,
) -> tuple[float, float] | None:
    """Run ``work`` once and return (joules, seconds): by the counter, else by power that is sampled all the while.

    None where there is neither, and then nothing is run; or where a sensor vanished or gave impossible values.
    """
    before = sensors.energy_j()
    if before is not None:
        start = wall()
        work()
        after, seconds = sensors.energy_j(), wall() - start
        return (after - before, seconds) if after is not None and after > before and seconds > 0 else None
    if sensors.read().power_w is None:
        return None
    samples: list[float | None] = []
    done = threading.Event()

    def sample() -> None:
        while not done.is_set():
            samples.append(sensors.read().power_w)
            done.wait(poll_s)

    sampler = threading.Thread(target=sample, name="vitdeploy-power", daemon=True)
    start = wall()
    sampler.start()
    try:
        work()
    finally:
        seconds = wall() - start
        done.set()
        sampler.join()
    watts = [value for value in samples if value is not None]
    if not watts or len(watts) < len(samples):
        return None
    return (sum(watts) / len(watts) * seconds, seconds)


def governor(root: Path = SYSTEM) -> str | None:
    """Return the CPU's frequency governor, None where the kernel has none or the cores differ."""
    found = {_text(root / f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor") for core in _usable_cores()}
    return found.pop() or None if len(found) == 1 else None


def _usable_cores() -> list[int]:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _integer(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.lstrip("-").isdigit() else None


def _plausible(value: float | None, low: float, high: float) -> float | None:
    """Return a sensor's value, None where it cannot be true: a disconnected one says -256 °C, a stuck one 0 MHz."""
    if value is None or not math.isfinite(value) or not low <= value <= high:
        return None
    return float(value)
