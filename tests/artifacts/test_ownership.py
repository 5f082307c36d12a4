"""Outputs replace what vitdeploy wrote, and nothing else: not a photograph, not notes, not somebody's weights."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from vitdeploy.artifacts import Checkpoint, OnnxModel, sidecar_of
from vitdeploy.artifacts.calibration_table import write_calibration_table
from vitdeploy.artifacts.files import save_tensors
from vitdeploy.artifacts.naming import output_beside
from vitdeploy.artifacts.outputs import KIND_OF_SUFFIX, refuse_unwritable, refuse_unwritable_folder
from vitdeploy.artifacts.ownership import has_onnx_mark, is_ours
from vitdeploy.cli import main
from vitdeploy.errors import ArtifactError, VitdeployError
from vitdeploy.pipeline import read_recipe, run
from vitdeploy.records import Manifest, ModelSpec
from vitdeploy.stages.convert import convert
from vitdeploy.stages.package import package
from vitdeploy.stages.quantize import quantize
from vitdeploy.stages.train import train
from vitdeploy.training.identity import Identity
from vitdeploy.training.journal import Journal
from vitdeploy.training.options import TrainOptions

REFUSED = "exists and was not written by vitdeploy, or is damaged: choose another name, or remove it"


def write_strangers(folder: Path, graph: OnnxModel) -> dict[str, Path]:
    """Write files of other people under names that outputs could have."""
    model = onnx.load(graph.path)
    kept = [entry for entry in model.metadata_props if not entry.key.startswith("vitdeploy")]
    del model.metadata_props[:]
    model.metadata_props.extend([*kept, onnx.StringStringEntryProto(key="author", value="vitdeploy")])
    onnx.save(model, folder / "theirs.onnx")
    Image.new("RGB", (8, 8)).save(folder / "photo.png")
    (folder / "photo.png").rename(folder / "photo")
    (folder / "notes").write_text("do not lose this")
    (folder / "weights").write_bytes(pickle.dumps({"weight": [1.0]}))
    save_tensors(folder / "theirs.safetensors", {"weight": np.zeros(3, np.float32)}, {"format": "pt"})
    (folder / "theirs.engine").write_bytes(b"ftrt" + bytes(60))
    (folder / "settings").write_text(json.dumps({"manifest": {"name": "x"}, "entries": []}))
    return {path.name: path for path in folder.iterdir()}


def test_what_others_wrote_is_never_replaced(tmp_path: Path, tiny_onnx: OnnxModel) -> None:
    for name, path in write_strangers(tmp_path, tiny_onnx).items():
        assert not is_ours(path), name
        with pytest.raises(ArtifactError, match=REFUSED):
            refuse_unwritable(path, KIND_OF_SUFFIX.get(path.suffix, "a bundle"))


def test_what_vitdeploy_wrote_is_replaced(tmp_path: Path, tiny_onnx: OnnxModel, tiny_checkpoint: Checkpoint) -> None:
    (tmp_path / "empty.onnx").touch()
    (tmp_path / "vit.engine").write_bytes(b"plan")
    sidecar_of(tmp_path / "vit.engine").write_text('{"manifest_sha256": "0"}')
    (tmp_path / "vit.json").write_text('{"manifest": {"manifest_sha256": "0"}, "tensors": {}}')
    (tmp_path / "page.html").write_text('<!doctype html><head>\n<meta name="generator" content="vitdeploy 0.2.0">')
    ours = [tiny_onnx.path, tiny_checkpoint.path, tiny_onnx.path.with_name("tiny.reference.safetensors")]
    for path in [*ours, *tmp_path.iterdir()]:
        assert is_ours(path), path
        refuse_unwritable(path, KIND_OF_SUFFIX[path.suffix])


def test_the_mark_of_a_graph_is_found_without_reading_it(tmp_path: Path, tiny_onnx: OnnxModel) -> None:
    data = tiny_onnx.path.read_bytes()
    for keep, marked in ((len(data), True), (len(data) // 2, False), (3, False)):
        (tmp_path / "x.onnx").write_bytes(data[:keep])
        assert has_onnx_mark(tmp_path / "x.onnx") is marked
    (tmp_path / "noise").write_bytes(np.random.default_rng(0).integers(0, 256, 5000, np.uint8).tobytes())
    assert not has_onnx_mark(tmp_path / "noise")


def test_verbs_refuse_before_they_work_and_lose_nothing(
    tmp_path: Path, tiny_onnx: OnnxModel, tiny_checkpoint: Checkpoint
) -> None:
    before = {name: path.read_bytes() for name, path in write_strangers(tmp_path, tiny_onnx).items()}
    with pytest.raises(ArtifactError, match=REFUSED):
        quantize(tiny_onnx, tmp_path / "theirs.onnx", precision="fp16")
    with pytest.raises(ArtifactError, match=REFUSED):
        convert(tiny_checkpoint, tmp_path / "theirs.safetensors")
    (tmp_path / "vit.onnx").write_bytes(before["theirs.onnx"])
    with pytest.raises(ArtifactError, match="exists and was not written by vitdeploy, or is damaged: name an output"):
        output_beside(tmp_path / "vit.safetensors", ".onnx")
    (tmp_path / "vit.onnx").unlink()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_on_the_command_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tiny_onnx: OnnxModel,
    tiny_checkpoint: Checkpoint,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = {name: path.read_bytes() for name, path in write_strangers(tmp_path, tiny_onnx).items()}
    for command in (
        f"export {tiny_checkpoint.path} -o notes",
        f"quantize {tiny_onnx.path} -o photo --precision fp16",
        f"convert {tiny_checkpoint.path} -o theirs.safetensors",
        f"build {tiny_onnx.path} -o theirs.engine",
    ):
        assert main(command.split()) == 1
        assert REFUSED in capsys.readouterr().err, command
    assert main(f"quantize {tiny_onnx.path} -o photo.jpg --precision fp16".split()) == 1
    assert "is the name of an image, and this writes an ONNX file" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_a_killed_bench_left_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "report.samples.npz").write_bytes(b"PK\x03\x04half")
    refuse_unwritable_folder(tmp_path, ("report.samples.npz",))
    refuse_unwritable_folder(tmp_path, ("report.json", "report.md", "report.html"))


def test_a_bundle_in_an_archive_is_replaced_and_another_archive_is_not(tmp_path: Path, tiny_onnx: OnnxModel) -> None:
    bundle = package([tiny_onnx], tmp_path / "vit.zip")
    assert package([tiny_onnx], tmp_path / "vit.zip").manifest == bundle.manifest
    for name, content in (("manifest.json", '{"manifest_version": 3}'), ("manifest.json", "["), ("x.txt", "")):
        with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
            archive.writestr(name, content)
        before = (tmp_path / "other.zip").read_bytes()
        with pytest.raises(ArtifactError, match=REFUSED):
            package([tiny_onnx], tmp_path / "other.zip")
        assert (tmp_path / "other.zip").read_bytes() == before


@pytest.mark.parametrize("name", ["report.json", "report.md", "report.html"])
def test_a_report_goes_beside_nothing_of_the_same_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}" if name.endswith("json") else "mine")
    with pytest.raises(ArtifactError, match=REFUSED):
        refuse_unwritable_folder(tmp_path, ("report.json", "report.md", "report.html"))
    (tmp_path / name).write_text("")
    refuse_unwritable_folder(tmp_path, ("report.json", "report.md", "report.html"))
    (tmp_path / "report.json").write_text('{"report_sha256": "0"}')
    (tmp_path / "report.md").write_text("# of an earlier bench")
    refuse_unwritable_folder(tmp_path, ("report.json", "report.md", "report.html"))


@pytest.mark.parametrize("name", ["model.safetensors", "model.onnx", "model.int8.onnx", "model.fp16.engine"])
def test_a_run_starts_in_no_folder_with_files_of_these_names(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"theirs")
    with pytest.raises(VitdeployError, match=REFUSED):
        run(read_recipe(None), tmp_path, progress=None)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_folder_of_a_run_is_its_own(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"damaged")
    (tmp_path / "run.json").write_text('{"export": {"options": {}, "parents": {}}}')
    refuse_unwritable(tmp_path / "model.onnx", "an ONNX file")
    (tmp_path / "run.json").write_text('{"scripts": {"start": "node"}}')
    with pytest.raises(ArtifactError, match=REFUSED):
        refuse_unwritable(tmp_path / "model.onnx", "an ONNX file")


@pytest.mark.torch
@pytest.mark.parametrize("name", ["vit.state.pt", "vit.metrics.jsonl", "vit.last.safetensors"])
def test_what_a_training_writes_beside_its_checkpoint_replaces_nothing_of_others(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"step": 1, "loss": 2.0}\n')
    before = (tmp_path / name).read_bytes()
    with pytest.raises(ArtifactError, match=rf"{name}' {REFUSED}"):
        train("digits", tmp_path / "vit.safetensors", options=TrainOptions(epochs=1, keep_last=True), progress=None)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [(name, before)]


@pytest.mark.parametrize(
    ("output", "beside"),
    [
        ("vit.calib.json", "vit.calib.safetensors"),
        ("vit.engine", "vit.engine.json"),
        ("vit.onnx", "vit.reference.safetensors"),
        ("vit.json", "vit.html"),
    ],
)
def test_files_beside_an_output_replace_nothing_of_others(tmp_path: Path, output: str, beside: str) -> None:
    if beside.endswith(".safetensors"):
        save_tensors(tmp_path / beside, {"weight": np.zeros(3, np.float32)})
    else:
        (tmp_path / beside).write_text('{"name": "mine"}')
    with pytest.raises(ArtifactError, match=rf"{beside}' {REFUSED}"):
        refuse_unwritable(tmp_path / output, KIND_OF_SUFFIX[Path(output).suffix], beside=[tmp_path / beside])
    with pytest.raises(ArtifactError, match=rf"{beside}' is the input"):
        refuse_unwritable(
            tmp_path / output,
            KIND_OF_SUFFIX[Path(output).suffix],
            inputs=[tmp_path / beside],
            beside=[tmp_path / beside],
        )


@pytest.mark.torch
def test_what_earlier_commands_wrote_beside_their_output_is_replaced(tmp_path: Path) -> None:
    from vitdeploy.training.state import State, write_state

    manifest = Manifest(kind="checkpoint", created_by="a test", model=ModelSpec(family="vit", name="x"))
    write_state(tmp_path / "vit.state.pt", Identity("key"), State(), {"model": {}})
    row = dict.fromkeys(("updates", "learning_rate", "loss", "validation_loss", "validation_top1"), 1.0)
    with Journal(tmp_path / "vit.safetensors", []) as journal:
        journal.add({"epoch": 1, **row})
        journal.add({"epoch": 2, **row})
    write_calibration_table(tmp_path / "vit.calib.json", {}, manifest.model_copy(update={"kind": "calibration-table"}))
    save_tensors(tmp_path / "old.calib.safetensors", {"x": np.zeros(1, np.float32)})
    (tmp_path / "old.calib.json").write_text((tmp_path / "vit.calib.json").read_text())
    for path in tmp_path.iterdir():
        assert is_ours(path), path
    (tmp_path / "vit.calib.json").unlink()
    assert is_ours(tmp_path / "vit.calib.safetensors"), "a kill came before its JSON"
