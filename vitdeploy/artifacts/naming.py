"""Where an artifact goes that was given no place: beside what it is made from."""

from __future__ import annotations

from pathlib import Path

from vitdeploy.artifacts.ownership import is_ours
from vitdeploy.errors import ArtifactError


def output_beside(source: Path, ending: str) -> Path:
    """Return ``vit.onnx`` for ``vit.safetensors`` and the ending ``.onnx``.

    Raises:
        ArtifactError: There is such a file, and vitdeploy did not write it.
    """
    name = source.name
    for known in (".safetensors", ".onnx", ".engine", ".pth", ".pt", ".npz", ".bin"):
        name = name.removesuffix(known)
    path = source.with_name(f"{name}{ending}")
    if path.is_file() and not is_ours(path):
        raise ArtifactError(f"{str(path)!r} exists and was not written by vitdeploy, or is damaged: name an output")
    return path
