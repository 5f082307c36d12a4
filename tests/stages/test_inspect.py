"""Inspect says what any file is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from foreign_onnx import write_foreign
from notes import Notes
from safetensors.numpy import save_file

from vitdeploy.artifacts import Checkpoint, OnnxModel
from vitdeploy.cli.inspect import describe
from vitdeploy.errors import ArtifactError, CheckpointError
from vitdeploy.stages.export import ExportOptions, export
from vitdeploy.stages.inspect import Inspection, inspect

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("activation", ["Softmax", "Sigmoid", ""])
def test_what_an_adopted_graph_gives_is_called_what_it_is(tmp_path: Path, activation: str) -> None:
    path = write_foreign(tmp_path / "theirs.onnx")
    if activation:
        proto = onnx.load(path)
        (output,) = proto.graph.output
        last = next(node for node in proto.graph.node if output.name in node.output)
        last.output[0] = "before"
        proto.graph.node.append(onnx.helper.make_node(activation, ["before"], [output.name]))
        onnx.save(proto, path)
    notes = Notes()
    model = export(path, tmp_path / "ours.onnx", options=ExportOptions(preprocess="digits"), progress=notes)
    lines = dict(describe(inspect(model.path)))
    assert "PyTorch" not in lines["golden"]
    assert "the outputs of the graph as it was adopted" in lines["golden"]
    word = activation.lower()
    assert lines.get("outputs", "") == (f"probabilities: a {word} is in the graph" if word else "")
    assert any("taken as probabilities" in line for line in notes.lines) == bool(word)


def test_an_onnx_model_of_ours(tiny_onnx: OnnxModel) -> None:
    found = inspect(tiny_onnx.path)
    assert found.kind == "onnx"
    assert found.manifest.model.name == "tiny"
    assert found.payload_sha256 == tiny_onnx.digest
    assert found.size_bytes == tiny_onnx.path.stat().st_size
    assert found.golden_samples == 8
    graph = found.graph
    assert (graph.nodes, graph.opset, graph.ir_version, graph.findings) == (60, 20, 10, ())
    assert graph.operators["MatMul"] == 12
    assert graph.precisions == {"fp32": 39}
    assert graph.inputs[0].shape == ("batch", 1, 8, 8)
    assert graph.outputs[0].model_dump() == {"name": "logits", "dtype": "float", "shape": ("batch", 10)}
    assert Inspection.model_validate_json(found.model_dump_json()) == found


def test_precisions_of_an_fp16_graph(tmp_path: Path, tiny_onnx: OnnxModel) -> None:
    from vitdeploy.artifacts import write_onnx
    from vitdeploy.graph.fp16 import ConvertToFloat16

    model = tiny_onnx.load()
    ConvertToFloat16()(model)
    half = write_onnx(tmp_path / "half.onnx", model, tiny_onnx.manifest.model_copy(update={"precision": "fp16"}))
    assert inspect(half.path).graph.precisions == {"fp16": 39}


def test_a_checkpoint_of_ours(tiny_checkpoint: Checkpoint) -> None:
    found = inspect(tiny_checkpoint.path)
    assert found.kind == "checkpoint"
    tensors = tiny_checkpoint.tensors()
    assert found.weights.tensors == len(tensors)
    assert found.weights.parameters == sum(array.size for array in tensors.values())
    assert found.weights.dtypes == {"float32": len(tensors)}
    assert found.graph is None


def test_a_foreign_onnx_file(tmp_path: Path) -> None:
    found = inspect(write_foreign(tmp_path / "foreign.onnx"))
    assert found.manifest is None
    assert "preprocess=" in found.remedy
    assert found.graph.operators["ReduceMean"] == 2
    assert found.graph.inputs[0].name == "pixel_values"
    assert any("not the one 'input'" in finding for finding in found.graph.findings)


def test_a_graph_whose_input_has_no_dimension_at_all_is_described(tmp_path: Path) -> None:
    import onnx

    text = '<ir_version: 10, opset_import: ["": 20]> g (float input) => (float logits) { logits = Neg(input) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "scalar.onnx")
    assert any("no dynamic dimension" in finding for finding in inspect(tmp_path / "scalar.onnx").graph.findings)


@pytest.mark.torch
def test_foreign_weights_with_their_dialect(tmp_path: Path) -> None:
    import timm

    module = timm.create_model("vit_tiny_patch16_224", depth=1)
    save_file({name: tensor.numpy() for name, tensor in module.state_dict().items()}, tmp_path / "w.safetensors")
    found = inspect(tmp_path / "w.safetensors")
    assert found.kind == "weights"
    assert found.weights.dialect.startswith("timm")
    assert found.weights.reason.startswith("it has ")
    assert "weights=" in found.remedy


@pytest.mark.torch
def test_weights_of_no_known_dialect_are_still_described(tmp_path: Path) -> None:
    save_file({"some.tensor": np.zeros((2, 3), np.float32)}, tmp_path / "w.safetensors")
    found = inspect(tmp_path / "w.safetensors")
    assert (found.weights.tensors, found.weights.parameters, found.weights.dialect) == (1, 6, None)
    assert "no dialect that is known" in found.weights.reason
    assert found.remedy == ""


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.onnx", None, "there is no file"),
        ("empty.onnx", b"", "is not an ONNX model"),
        ("text.txt", b"hello, this is a text", "is a text file, expected"),
        ("plan.engine", b"ftrt" + bytes(60), "has no manifest"),
    ],
)
def test_what_is_nothing_is_refused(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises((ArtifactError, CheckpointError), match=message):
        inspect(path)


def test_every_kind_of_file_that_a_run_writes(finished_run: Path) -> None:
    found = inspect(finished_run)
    assert found.kind == "run"
    assert {"stage", "checkpoint", "onnx", "verdict"} <= {name for name, _ in found.facts}
    assert [text for name, text in found.facts if name == "stage"][:2] == ["train", "export"]
    assert inspect(finished_run / "run.json") == found
    report = inspect(finished_run / "report.json")
    assert report.kind == "report"
    alone = finished_run.parent / "alone"
    alone.mkdir()
    (alone / "report.json").write_bytes((finished_run / "report.json").read_bytes())
    assert inspect(alone).facts == report.facts
    assert ("data", "digits:test, 50 images") in report.facts
    files = [finished_run / "run.json", *finished_run.glob("model.*")]
    kinds = {path.name: inspect(path).kind for path in files}
    assert set(kinds.values()) >= {"checkpoint", "onnx", "reference", "run", "training-metrics"}


@pytest.mark.parametrize("name", ["run.json", "report.json", "model.reference.safetensors", "model.onnx"])
def test_what_a_run_wrote_is_refused_where_it_is_damaged(finished_run: Path, name: str) -> None:
    path = finished_run / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x20
    path.write_bytes(data[: len(data) - 3] if name == "run.json" else data)
    with pytest.raises(ArtifactError):
        inspect(path)
    with pytest.raises(ArtifactError):
        inspect(finished_run)


def test_a_damaged_reference_is_named_by_the_graph_beside_it_too(finished_run: Path) -> None:
    path = finished_run / "model.reference.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 0x20
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"reference logits .* are damaged"):
        inspect(finished_run / "model.onnx")


def test_a_calibration_set_is_known_as_a_folder_and_by_its_manifest(tmp_path: Path) -> None:
    from vitdeploy.stages.calibration_sets import make_calibration_set

    made = make_calibration_set("digits:train", tmp_path / "set", samples=40)
    found = inspect(tmp_path / "set")
    assert (found.kind, found.payload_sha256) == ("calibration-set", made.digest)
    assert inspect(tmp_path / "set" / "manifest.json") == found
    image = tmp_path / "set" / made.manifest.entries[0].path
    image.write_bytes(image.read_bytes()[:-20])
    with pytest.raises(ArtifactError, match="damaged calibration set: "):
        inspect(tmp_path / "set")


def test_the_sidecar_of_an_engine_is_the_engine(tmp_path: Path, tiny_onnx: OnnxModel) -> None:
    from vitdeploy.artifacts import write_engine
    from vitdeploy.records import BuildInfo

    build = BuildInfo(backend="tensorrt", version="11.0", batch=(1, 1, 1))
    manifest = tiny_onnx.manifest.model_copy(update={"kind": "engine", "build": build})
    engine = write_engine(tmp_path / "vit.engine", b"plan", manifest)
    assert inspect(tmp_path / "vit.engine.json") == inspect(engine.path)
    engine.path.unlink()
    with pytest.raises(ArtifactError, match=r"vit\.engine"):
        inspect(tmp_path / "vit.engine.json")
