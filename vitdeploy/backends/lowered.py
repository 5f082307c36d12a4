"""Graphs that were lowered: made of one runtime's own operators, for it and for the processor of this machine."""

from __future__ import annotations

from pathlib import Path

from vitdeploy import environment
from vitdeploy.artifacts import OnnxModel
from vitdeploy.errors import BackendError
from vitdeploy.records.report import backend_title


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
    here, cpu = f"{backend_title(backend)} {version}", environment.cpu_name()
    lowering = (lowered.runtime, release_of(lowered.version), lowered.cpu)
    if lowering != (backend, release_of(version), cpu):
        raise BackendError(
            f"{str(model.path)!r} was lowered for {backend_title(lowered.runtime)} {lowered.version} on "
            f"{lowered.cpu}, and this is {here} on {cpu}: take {lowered.portable!r}, which it was made from"
        )
