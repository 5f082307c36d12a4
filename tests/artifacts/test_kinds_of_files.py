"""Files are told by what they hold; names that belong to another kind, and manifests that lie, are refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from safetensors import SafetensorError

from vitdeploy.artifacts import load_ir, open_artifact
from vitdeploy.artifacts.files import atomic_path, save_tensors
from vitdeploy.artifacts.manifests import parse_manifest
from vitdeploy.artifacts.outputs import refuse_unwritable, refuse_unwritable_folder
from vitdeploy.errors import ArtifactError


def test_json_is_not_taken_for_an_onnx_file_in_text_form(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text('{"schema": 1}')
    with pytest.raises(ArtifactError, match="is a JSON file, expected an ONNX model"):
        load_ir(path)


def test_weights_given_as_a_graph_are_answered_with_the_command_that_exports_them(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_tensors(path, {"weight": np.zeros(3, np.float32)})
    with pytest.raises(ArtifactError, match=re.escape(f"vd.export({str(path)!r}, 'model.onnx')")):
        load_ir(path)


def test_a_file_called_safetensors_that_is_none_is_not_called_a_damaged_graph(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_text("a text, not weights")
    with pytest.raises(ArtifactError, match="is not a safetensors file, or is damaged"):
        open_artifact(path)


@pytest.mark.parametrize("version", ["x", None, 1.5])
def test_a_schema_version_that_is_no_number_is_refused(version: object) -> None:
    with pytest.raises(ArtifactError, match=r"has schema .*, expected a number"):
        parse_manifest(json.dumps({"manifest_sha256": "", "schema_version": version}), Path("model.engine"))


@pytest.mark.parametrize(
    ("name", "what"),
    [("model.onnx", "an engine file"), ("model.safetensors", "an ONNX file"), ("m.plan", "a checkpoint")],
)
def test_an_output_called_like_another_kind_of_file_is_refused(tmp_path: Path, name: str, what: str) -> None:
    with pytest.raises(ArtifactError, match=f"is the name of an? .*, and this writes {what}: choose another name"):
        refuse_unwritable(tmp_path / name, what)


def test_an_output_of_its_own_kind_or_of_no_known_name_passes(tmp_path: Path) -> None:
    refuse_unwritable(tmp_path / "model.onnx", "an ONNX file")
    refuse_unwritable(tmp_path / "model.bin", "an ONNX file")


def test_a_file_where_a_folder_is_to_be_written_is_refused(tmp_path: Path) -> None:
    refuse_unwritable_folder(tmp_path / "new" / "folder")
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="is a file, expected a folder"):
        refuse_unwritable_folder(tmp_path / "file")


def test_a_full_disk_is_an_error_of_the_system_for_safetensors_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    output = tmp_path / "model.safetensors"
    output.write_text("old")
    monkeypatch.setattr(safetensors.numpy, "save_file", refuse)
    with pytest.raises(ArtifactError, match=r"the disk is full.*is untouched"), atomic_path(output) as temporary:
        save_tensors(temporary, {"weight": np.zeros(3, np.float32)})
    assert output.read_text() == "old"


def test_what_the_system_refuses_keeps_its_number(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        save_tensors(tmp_path / "nowhere" / "model.safetensors", {"weight": np.zeros(3, np.float32)})
