"""Graphs that were lowered: made of one runtime's own operators, for it and for the processor of this machine."""

from __future__ import annotations

from pathlib import Path

from vitdeploy import environment
from vitdeploy.artifacts import OnnxModel
from vitdeploy.errors import BackendError, UsageError
from vitdeploy.records import CpuIntegers, Lowering
from vitdeploy.records.report import backend_title

_INTEGERS: dict[CpuIntegers, str] = {"any": "without VNNI", "vnni": "with VNNI", "amx": "with AMX"}
"""What tells processors apart that say the same name, as those of virtual machines do."""


def lowered_path(portable: Path) -> Path:
    """Return ``vit.lowered.onnx`` for ``vit.onnx``."""
    return portable.with_name(f"{portable.stem}.lowered.onnx")


def release_of(version: str) -> str:
    """Return ``1.32`` of ``1.32.0``."""
    return ".".join(version.split(".")[:2])


def refuse_lowered(model: OnnxModel, backend: str, version: str) -> None:
    """Pass what was not lowered, and what was for this runtime, its release and this processor.

    Raises:
        BackendError: It was lowered for another; the message names the graph that runs anywhere.
    """
    lowered = model.manifest.lowered
    if lowered is None:
        return
    here, cpu, integers = f"{backend_title(backend)} {version}", environment.cpu_name(), environment.cpu_integers()
    same = lowered.cpu == cpu
    others = same and None not in (lowered.integers, integers) and lowered.integers != integers
    if (lowered.runtime, release_of(lowered.version)) != (backend, release_of(version)) or not same or others:
        cpu += f" {_INTEGERS[integers]}" if others and integers is not None else ""
        raise BackendError(
            f"{_lowering_text(model, lowered, others)}, and this is {here} on {cpu}: {portable_of(model)}"
        )


def refuse_to_ship(model: OnnxModel) -> None:
    """Pass what runs on other machines than the one that it was made on.

    Raises:
        UsageError: It was lowered; the message names the graph that runs anywhere.
    """
    lowered = model.manifest.lowered
    if lowered is not None:
        raise UsageError(f"{_lowering_text(model, lowered)}, which others refuse: {portable_of(model)}")


def portable_of(model: OnnxModel) -> str:
    """Return in words which graph to take in place of a lowered one, by its name now where it lies beside it."""
    from vitdeploy.artifacts.lineage import find_parent

    assert model.manifest.lowered is not None
    try:
        found = find_parent(model, "portable")
    except OSError:  # its folder cannot be listed
        found = None
    name, more = model.manifest.lowered.portable, ""
    if found is not None:
        name = found.path.name
    elif "portable" in model.manifest.parents:
        more = f" and which is not beside it (digest {model.manifest.parents['portable'][:12]})"
    return f"take {name!r}, which it was made from{more}"


def _lowering_text(model: OnnxModel, lowered: Lowering, integers: bool = False) -> str:
    instructions = f" {_INTEGERS[lowered.integers]}" if integers and lowered.integers is not None else ""
    runtime = f"{backend_title(lowered.runtime)} {lowered.version}"
    return f"{str(model.path)!r} was lowered for {runtime} on {lowered.cpu}{instructions}"
