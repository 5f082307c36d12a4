"""Artifacts: verified files with a manifest. ``open_artifact`` tells the kind from the content, never from the name."""

from __future__ import annotations

from pathlib import Path

from vitdeploy.artifacts.base import Artifact
from vitdeploy.artifacts.calibration_table import (
    CalibrationTable,
    TensorRange,
    is_calibration_table,
    read_calibration_table,
    write_calibration_table,
)
from vitdeploy.artifacts.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from vitdeploy.artifacts.engine import Engine, read_engine, sidecar_of, write_engine
from vitdeploy.artifacts.files import atomic_folder, atomic_path, write_atomically
from vitdeploy.artifacts.golden import Golden
from vitdeploy.artifacts.onnx_model import IR_VERSION, OnnxModel, load_ir, manifest_in_graph, read_onnx, write_onnx
from vitdeploy.artifacts.other_files import ARTIFACT, not_an_artifact
from vitdeploy.errors import ArtifactError
from vitdeploy.reading import is_safetensors, read_head, require_text

__all__ = [
    "IR_VERSION",
    "Artifact",
    "CalibrationTable",
    "Checkpoint",
    "Engine",
    "Golden",
    "OnnxModel",
    "TensorRange",
    "atomic_folder",
    "atomic_path",
    "is_calibration_table",
    "load_ir",
    "manifest_in_graph",
    "open_artifact",
    "open_onnx",
    "read_calibration_table",
    "read_checkpoint",
    "read_engine",
    "read_onnx",
    "sidecar_of",
    "write_atomically",
    "write_calibration_table",
    "write_checkpoint",
    "write_engine",
    "write_onnx",
]

ONNX_START = b"\x08"
"""The tag of ``ir_version``, with which protobuf begins every ONNX file."""


def open_artifact(source: Artifact | Path | str) -> Artifact:
    """Open and verify a checkpoint, an ONNX model, an engine or a calibration table, whichever the file holds.

    An artifact that is open already is returned as it is; it is verified again where its file was written since.

    Raises:
        ArtifactError: There is no such file, it is none of these, it is damaged, or it holds something else by now.
    """
    if isinstance(source, Artifact):
        return source if source.is_current else _reopened(source)
    path = Path(source)
    require_text(path)
    if path.is_dir() and (refusal := not_an_artifact(path)) is not None:
        raise refusal
    head = read_head(path, 16)
    if is_safetensors(path):
        return read_checkpoint(path)
    if sidecar_of(path).is_file():
        return read_engine(path)
    if path.suffix in {".engine", ".plan"}:
        return read_engine(path)
    if head[:1] == b"{":
        return read_calibration_table(path)
    if not head:
        raise ArtifactError(f"{str(path)!r} is empty, expected {ARTIFACT}")
    if path.suffix == ".safetensors" and head[:1] != ONNX_START:
        return read_checkpoint(path)  # no safetensors file, and its reader says so
    if head[:1] != ONNX_START and (refusal := not_an_artifact(path)) is not None:
        raise refusal
    return read_onnx(path)


def open_onnx(source: Artifact | Path | str) -> OnnxModel:
    """Open and verify an ONNX model, as ``open_artifact`` does.

    Raises:
        ArtifactError: There is no such file, it is of another kind, or it is damaged.
    """
    if isinstance(source, Artifact) and not isinstance(source, OnnxModel):
        raise ArtifactError(
            f"{str(source.path)!r} is a file of kind {source.manifest.kind!r}, expected an ONNX model: "
            + (f"vd.export({str(source.path)!r}) makes one" if isinstance(source, Checkpoint) else "name its graph")
        )
    if isinstance(source, OnnxModel):
        found = open_artifact(source)
        assert isinstance(found, OnnxModel)
        return found
    return read_onnx(Path(source))


def _reopened(artifact: Artifact) -> Artifact:
    found = open_artifact(artifact.path)
    if type(found) is not type(artifact) or found.digest != artifact.digest:
        raise ArtifactError(
            f"{str(artifact.path)!r} was written anew since it was opened, and holds something else: open it again"
        )
    return found
