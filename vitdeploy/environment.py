"""What this machine is: processor, GPU, driver, JetPack, and which libraries are installed.

Nothing here imports a framework: versions are read from package metadata, the GPU through the driver's own library
(``libcuda``, which is there on every machine whose GPU can be used, Jetson and WSL included, and which obeys
``CUDA_VISIBLE_DEVICES`` as the runtimes do), else through ``nvidia-smi``.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vitdeploy.errors import UsageError
from vitdeploy.records import CpuIntegers, Environment

# library → the distributions that bring it; the first that is installed gives the version
DISTRIBUTIONS: dict[str, tuple[str, ...]] = {
    "vitdeploy": ("vitdeploy",),
    "numpy": ("numpy",),
    "onnx": ("onnx",),
    "onnx-ir": ("onnx-ir",),
    "onnxscript": ("onnxscript",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml"),
    "pillow": ("pillow",),
    "safetensors": ("safetensors",),
    "torch": ("torch",),
    "torchvision": ("torchvision",),
    "timm": ("timm",),
    "lightning-fabric": ("lightning-fabric", "lightning"),
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "tensorrt-lean": ("tensorrt-lean", "tensorrt-lean-cu13", "tensorrt-lean-cu12"),
    "tensorrt-rtx": ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
    "openvino": ("openvino",),
    "cuda-python": ("cuda-bindings", "cuda-python"),
}

NV_TEGRA_RELEASE = Path("/etc/nv_tegra_release")
DEVICE_TREE_MODEL = Path("/proc/device-tree/model")
DRIVER_VERSION = Path("/proc/driver/nvidia/version")
PCI_DEVICES = Path("/sys/bus/pci/devices")
JETPACK_OF_L4T = {"36.3": "6.0", "36.4.0": "6.1", "36.4": "6.2", "38.2": "7.0", "38.4": "7.1", "39.2": "7.2"}

CUDA_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE
# CUdevice_attribute numbers of cuda.h, fixed since CUDA 2
COMPUTE_CAPABILITY_MAJOR = 75
COMPUTE_CAPABILITY_MINOR = 76


@dataclass(frozen=True)
class Gpu:
    """The GPU that a runtime would use: the first visible one."""

    name: str
    compute_capability: str
    memory_bytes: int | None = None
    driver: str | None = None
    cuda: str | None = None


@functools.lru_cache(maxsize=1)
def current() -> Environment:
    """Return this machine; asked once per process. ``cuda`` is the newest CUDA that the driver serves."""
    gpu = find_gpu()
    return Environment(
        os=platform.platform(),
        python=platform.python_version(),
        cpu=cpu_name(),
        cores=usable_cores(),
        memory_bytes=memory_bytes(),
        gpu=gpu.name if gpu else None,
        compute_capability=gpu.compute_capability if gpu else None,
        gpu_memory_bytes=gpu.memory_bytes if gpu else None,
        driver=gpu.driver if gpu else None,
        cuda=gpu.cuda if gpu else None,
        tensorrt=_tensorrt_version(),
        jetpack=find_jetpack(),
        power_mode=find_power_mode(),
    )


def versions() -> dict[str, str]:
    """Return library → version for what is installed, from metadata alone: no library is imported."""
    return dict(_versions())


@functools.lru_cache(maxsize=1)
def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for library, distributions in DISTRIBUTIONS.items():
        version = next(filter(None, map(_distribution_version, distributions)), None)
        if version is not None:
            found[library] = version
    return found


@functools.lru_cache(maxsize=8)
def cuda_of(library: str) -> str | None:
    """Return the major CUDA version that an installed TensorRT library is for, None where its packages do not say."""
    found = [cuda for cuda in ("13", "12") if _distribution_version(f"{library}-cu{cuda}") is not None]
    return found[0] if len(found) == 1 else None


def _distribution_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _tensorrt_version() -> str | None:
    installed = versions()
    if "tensorrt" in installed:
        return installed["tensorrt"]
    return f"RTX {installed['tensorrt-rtx']}" if "tensorrt-rtx" in installed else None


def cpu_name() -> str:
    """Return the processor's name as the operating system gives it; on a Jetson, the module's."""
    if sys.platform == "darwin":
        return _output(["sysctl", "-n", "machdep.cpu.brand_string"]) or platform.machine()
    match = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", _read(Path("/proc/cpuinfo")), re.MULTILINE)
    if match:
        return match.group(1).strip()
    return _read(DEVICE_TREE_MODEL).strip("\0\n ") or platform.processor() or platform.machine()


def cpu_integers() -> CpuIntegers | None:
    """Return how the processor multiplies 8-bit integers, None where the operating system does not tell.

    ``any``: x86 without VNNI, which adds two products in 16 bits, where they saturate. ``vnni``: x86 with VNNI, and
    every ARM, which add in 32 bits. ``amx``: x86 with AMX, which multiplies signed integers as fast as unsigned ones.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return "vnni"
    flags = re.search(r"^flags\s*:(.*)$", _read(Path("/proc/cpuinfo")), re.MULTILINE)
    if flags is None:
        return None
    found = set(flags.group(1).split())
    return "amx" if "amx_int8" in found else "vnni" if {"avx512_vnni", "avx_vnni"} & found else "any"


def usable_cores() -> int:
    """Return how many cores this process may use, which a container can make fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes() -> int | None:
    """Return the machine's memory, or the limit of this container where that is less."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
    limit = _read(Path("/sys/fs/cgroup/memory.max")).strip()
    return min(total, int(limit)) if limit.isdigit() else total


def select_gpu(number: int) -> None:
    """Make one of the visible GPUs the only one of this process and its children, for every runtime alike.

    CUDA reads ``CUDA_VISIBLE_DEVICES`` once, when it is first used, so this comes before anything that asks for a
    GPU. GPUs are numbered as ``nvidia-smi`` does, among those that were visible.

    Raises:
        UsageError: There is no such GPU, or CUDA was used in this process before.
    """
    if current.cache_info().currsize or getattr(sys.modules.get("torch.cuda"), "is_initialized", bool)():
        raise UsageError(
            "the GPU has to be chosen before CUDA is used: set CUDA_VISIBLE_DEVICES when the process starts"
        )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        listed = [part.strip() for part in visible.split(",") if part.strip()]
    else:
        lines = _output(["nvidia-smi", "--list-gpus"]).splitlines()
        listed = [str(index) for index, _ in enumerate(line for line in lines if line.startswith("GPU "))]
        if not listed and (NV_TEGRA_RELEASE.exists() or DRIVER_VERSION.exists()):
            listed = ["0"]  # a Jetson, or a driver without nvidia-smi: its one GPU
    if not 0 <= number < len(listed):
        there = f"this machine has {len(listed)}, numbered from 0" if listed else "this machine has none"
        raise UsageError(f"there is no GPU {number}: {there}")
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    os.environ["CUDA_VISIBLE_DEVICES"] = listed[number]


def find_gpu() -> Gpu | None:
    """Return the first visible GPU, None where there is none or its driver does not answer."""
    return _gpu_from_driver() or _gpu_from_smi()


def _gpu_from_driver() -> Gpu | None:
    """Ask ``libcuda``. ``cuInit`` makes no context, so no GPU memory is taken."""
    try:
        cuda = _cuda_driver()
    except OSError:
        return None
    count, number, total = ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    major, minor, device = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    try:
        if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)) or count.value == 0:
            return None
        if cuda.cuDeviceGet(ctypes.byref(device), 0) or cuda.cuDeviceGetName(name, len(name), device):
            return None
        if cuda.cuDeviceGetAttribute(ctypes.byref(major), COMPUTE_CAPABILITY_MAJOR, device):
            return None
        if cuda.cuDeviceGetAttribute(ctypes.byref(minor), COMPUTE_CAPABILITY_MINOR, device):
            return None
        memory = total.value if cuda.cuDeviceTotalMem_v2(ctypes.byref(total), device) == 0 else None
        served = number.value if cuda.cuDriverGetVersion(ctypes.byref(number)) == 0 else 0
    except AttributeError:  # a stub library without these symbols
        return None
    return Gpu(
        name=name.value.decode(errors="replace"),
        compute_capability=f"{major.value}.{minor.value}",
        memory_bytes=memory,
        driver=_driver_version(),
        cuda=f"{served // 1000}.{served % 1000 // 10}" if served else None,
    )


def reason_without_gpu() -> str:
    """Return in words why CUDA has no GPU here: there is none, no driver for it, or it is hidden; "" where there is."""
    if current().gpu is not None:
        return ""
    try:
        cuda = _cuda_driver()
        code, count = int(cuda.cuInit(0)), ctypes.c_int()
        code = code or int(cuda.cuDeviceGetCount(ctypes.byref(count)))
    except OSError:
        if _nvidia_on_bus():
            return (
                "there is an NVIDIA GPU here and no driver for it (libcuda cannot be loaded): install NVIDIA's driver"
            )
        return "there is no NVIDIA GPU here"
    except AttributeError:
        return "there is no NVIDIA GPU here, only a stub of its driver"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if code in (0, CUDA_NO_DEVICE) and hidden is not None:
        return f"NVIDIA's driver shows no GPU, as CUDA_VISIBLE_DEVICES is {hidden!r}"
    if code not in (0, CUDA_NO_DEVICE):
        return f"NVIDIA's driver is installed and does not answer (CUDA error {code}): nvidia-smi says more"
    return "there is no NVIDIA GPU here, though its driver is installed"


def _cuda_driver() -> ctypes.CDLL:
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")


def _nvidia_on_bus() -> bool:
    """Return whether a graphics processor of NVIDIA's is on the PCI bus, with a driver or without; Linux tells."""
    for device in PCI_DEVICES.glob("*"):
        try:
            vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
        except OSError:
            continue
        if vendor == "0x10de" and kind.startswith("0x03"):
            return True
    return False


def gpu_bus_id() -> str | None:
    """Return where the first visible GPU sits on the PCI bus (``0000:01:00.0``), None where the driver does not tell.

    CUDA numbers GPUs by speed unless ``CUDA_DEVICE_ORDER`` says otherwise, and NVML by their bus: with two models of
    GPU in a machine the same number can be another one.
    """
    try:
        cuda = _cuda_driver()
        device, bus = ctypes.c_int(), ctypes.create_string_buffer(32)
        if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0):
            return None
        return bus.value.decode() or None if cuda.cuDeviceGetPCIBusId(bus, len(bus), device) == 0 else None
    except (OSError, AttributeError):
        return None


def _driver_version() -> str | None:
    match = re.search(r"Kernel Module[^\n]*?\s(\d+\.\d+(?:\.\d+)*)\s", _read(DRIVER_VERSION))
    if match:
        return match.group(1)
    text = _output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])
    return text.splitlines()[0].strip() if text else None


def _gpu_from_smi() -> Gpu | None:
    fields = "name,compute_cap,memory.total,driver_version"
    text = _output(["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"])
    cells = [cell.strip() for cell in text.splitlines()[0].split(",")] if text else []
    if len(cells) != 4 or not re.fullmatch(r"\d+\.\d+", cells[1]):
        return None
    memory = int(cells[2]) << 20 if cells[2].isdigit() else None
    return Gpu(cells[0], cells[1], memory, cells[3])


def find_jetpack() -> str | None:
    """Return JetPack and Linux-for-Tegra version (``6.2 (L4T 36.4.3)``), None where this is no Jetson."""
    l4t = parse_l4t(_read(NV_TEGRA_RELEASE)) or _dpkg_version("nvidia-l4t-core")
    if l4t is None:
        return None
    jetpack = _dpkg_version("nvidia-jetpack") or jetpack_of(l4t)
    return f"{jetpack} (L4T {l4t})" if jetpack else f"L4T {l4t}"


def parse_l4t(text: str) -> str | None:
    """Return ``36.4.3`` from the first line of /etc/nv_tegra_release: ``# R36 (release), REVISION: 4.3, …``."""
    match = re.search(r"R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)", text)
    return f"{match.group(1)}.{match.group(2)}" if match else None


def jetpack_of(l4t: str) -> str | None:
    """Return the JetPack release that brought a Linux-for-Tegra version, None where the table does not say."""
    return JETPACK_OF_L4T.get(l4t) or JETPACK_OF_L4T.get(".".join(l4t.split(".")[:2]))


def _dpkg_version(package: str) -> str | None:
    text = _output(["dpkg-query", "--show", "--showformat=${Version}", package])
    match = re.match(r"\d+(?:\.\d+)*", text)
    return match.group() if match else None


def find_power_mode() -> str | None:
    """Return the Jetson's power mode (``MAXN``, ``15W``), which decides its clocks; None elsewhere."""
    match = re.search(r"Power Mode:\s*(\S+)", _output(["nvpmodel", "-q"]))
    return match.group(1) if match else None


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _output(command: Sequence[str]) -> str:
    """Return what a command prints, nothing where it is absent, fails or takes longer than ten seconds."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def is_helping_process() -> bool:
    """Return whether torchrun, a cluster or Lightning Fabric has started this process beside a first one."""
    ranks = (os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    return any(rank not in {None, "", "0"} for rank in ranks)


def cache_folder() -> Path:
    """Return where caches are kept: ``VITDEPLOY_CACHE``, else ``vitdeploy`` in the user's cache folder."""
    named = os.environ.get("VITDEPLOY_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vitdeploy"
