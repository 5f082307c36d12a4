"""``doctor``: what this machine can do, what it cannot, and the command that changes that."""

from __future__ import annotations

import importlib.util
from typing import Literal

from vitdeploy import environment
from vitdeploy.backends import get_backend, names
from vitdeploy.backends.tensorrt_rtx import TensorRTRTXBackend, supported_capabilities
from vitdeploy.backends.tensorrt_versions import compute_capability_key, find_problems
from vitdeploy.records import Environment
from vitdeploy.records.base import Record

Area = Literal["machine", "backend", "extra"]
OLDEST_CAPABILITY = (7, 5)
# what a user would install for it → a module that tells whether it is there
EXTRAS: dict[str, tuple[str, str]] = {
    "train and export": ("torch", "pip install 'vitdeploy[torch]'"),
    "timm's models, augmentation and datasets": ("timm", "pip install 'vitdeploy[torch]'"),
    "training on several devices": ("lightning_fabric", "pip install 'vitdeploy[torch]'"),
    "TensorBoard logs": ("tensorboard", "pip install 'vitdeploy[torch]'"),
}


class Finding(Record):
    """One line of the diagnosis.

    ``ok`` works, ``warning`` works with a doubt, ``missing`` can be added with ``remedy``, ``no`` cannot be had here.
    """

    area: Area
    name: str
    status: Literal["ok", "warning", "missing", "no"]
    detail: str
    remedy: str = ""

    @classmethod
    def of(
        cls, area: Area, name: str, status: Literal["ok", "warning", "missing", "no"], detail: str, remedy: str = ""
    ) -> Finding:
        """Return a finding from its fields in order."""
        return cls(area=area, name=name, status=status, detail=detail, remedy=remedy)


def doctor() -> list[Finding]:
    """Return what this machine can do: machine, backends, optional parts; nothing is installed or changed."""
    machine = environment.current()
    return [*machine_findings(machine), *backend_findings(machine), *extra_findings()]


def machine_findings(machine: Environment) -> list[Finding]:
    """Return processor, memory, how it multiplies integers, GPU, driver and JetPack."""
    memory = f", {machine.memory_bytes / 2**30:.1f} GiB" if machine.memory_bytes else ""
    found = [
        Finding.of("machine", "python", "ok", f"{machine.python} on {machine.os}"),
        Finding.of("machine", "processor", "ok", f"{machine.cpu}, {machine.cores} cores{memory}"),
        *_integer_findings(),
    ]
    if machine.jetpack is not None:
        found.append(Finding.of("machine", "JetPack", "ok", machine.jetpack))
        mode = machine.power_mode
        detail = f"{mode}: it decides the clocks, so it stands in every report" if mode else "unknown"
        found.append(Finding.of("machine", "power mode", "ok" if mode else "warning", detail))
    if machine.gpu is None:
        found.append(
            Finding.of(
                "machine",
                "GPU",
                "no",
                f"{environment.reason_without_gpu()}; engines can be built ahead of time and not run",
            )
        )
        return found
    capability = machine.compute_capability or ""
    size = f", {machine.gpu_memory_bytes / 2**30:.1f} GiB" if machine.gpu_memory_bytes else ""
    detail = f"{machine.gpu}, compute capability {capability}{size}, driver {machine.driver}, CUDA {machine.cuda}"
    if compute_capability_key(capability) < OLDEST_CAPABILITY:
        detail += ": TensorRT 10 and newer serves 7.5 and higher"
        return [*found, Finding.of("machine", "GPU", "no", detail)]
    return [*found, Finding.of("machine", "GPU", "ok", detail)]


def _integer_findings() -> list[Finding]:
    """Return how the processor multiplies integers, on which it depends whether INT8 pays; nothing where unknown."""
    integers, name = environment.cpu_integers(), "8-bit products"
    if integers is None:
        return []
    if integers == "any":
        detail = (
            "no VNNI: they take several instructions, and INT8 may be slower than FP32, most of all in OpenVINO: "
            "vd.quantize(..., options=vd.QuantizeOptions(cpu='auto')) times both"
        )
        return [Finding.of("machine", name, "warning", detail)]
    return [Finding.of("machine", name, "ok", {"vnni": "in one instruction", "amx": "AMX"}[integers])]


def backend_findings(machine: Environment) -> list[Finding]:
    """Return each backend: its version, whether it runs or only builds, and what is known against it."""
    found: list[Finding] = []
    for name in names():
        if name == "null":
            continue
        backend = get_backend(name)
        missing = backend.unavailable()
        if missing is not None:
            found.append(_with_remedy("backend", name, missing, no=_cannot_have(name, machine)))
            continue
        found.append(_available(name, machine))
    return found


def extra_findings() -> list[Finding]:
    """Return the optional Python parts."""
    found: list[Finding] = []
    for name, (module, remedy) in EXTRAS.items():
        if importlib.util.find_spec(module) is None:
            found.append(Finding.of("extra", name, "missing", f"{module} is not installed", remedy))
        else:
            library = module.replace("_", "-")
            found.append(
                Finding.of("extra", name, "ok", f"{library} {environment.versions().get(library, '')}".strip())
            )
    return found


def _available(name: str, machine: Environment) -> Finding:
    backend = get_backend(name)
    version = backend.version()
    if name == "tensorrt":
        problems = find_problems(version, machine)
        if problems:
            status: Literal["no", "warning"] = "no" if problems[0].severity == "refuse" else "warning"
            return Finding.of("backend", name, status, "; ".join(problem.text for problem in problems))
    cannot_run = backend.can_run()
    if name == "tensorrt-rtx":
        return _rtx_finding(version, machine, cannot_run)
    if cannot_run is not None:
        return _with_remedy("backend", name, f"{version}: {cannot_run}", no=machine.gpu is None)
    return Finding.of("backend", name, "ok", f"{version}{_details(name)}")


def _rtx_finding(version: str, machine: Environment, cannot_run: str | None) -> Finding:
    known = supported_capabilities(TensorRTRTXBackend().library())
    builds = f"{version}: builds for compute capability {', '.join(known)}"
    here = machine.compute_capability
    if here is not None and here not in known:
        return Finding.of("backend", "tensorrt-rtx", "warning", f"{builds}, not for this GPU ({here}): use tensorrt")
    if cannot_run is None:
        return Finding.of("backend", "tensorrt-rtx", "ok", f"{builds}, and runs here")
    if machine.gpu is None:
        return Finding.of("backend", "tensorrt-rtx", "ok", f"{builds}; {cannot_run}")
    return _with_remedy("backend", "tensorrt-rtx", f"{builds}; {cannot_run}")


def _details(name: str) -> str:
    if name == "onnxruntime":
        import onnxruntime

        return f", providers {', '.join(onnxruntime.get_available_providers())}"
    if name == "pytorch":
        from vitdeploy.backends.pytorch import sees_cuda

        return ", sees CUDA" if sees_cuda() else ", on the CPU"
    return ""


def _cannot_have(name: str, machine: Environment) -> bool:
    """Return whether installing a backend would be of no use on this machine."""
    return name == "tensorrt-rtx" and ("aarch64" in machine.os or machine.jetpack is not None)


def _with_remedy(area: Area, name: str, reason: str, *, no: bool = False) -> Finding:
    """Split ``what is wrong: the command`` at its last colon before a command."""
    detail, found, command = reason.rpartition(": ")
    if not found or not command.startswith(("pip ", "sudo ")):
        return Finding.of(area, name, "no" if no else "missing", reason)
    return Finding.of(area, name, "no" if no else "missing", detail, "" if no else command)
