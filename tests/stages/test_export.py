"""Export: the graph is what PyTorch computes, small, clean, and the same each time; else nothing is written."""

from __future__ import annotations

import errno
import json
import random
import shutil
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from foreign_onnx import FOREIGN, write_foreign
from notes import Notes

from vitdeploy.artifacts import Checkpoint, OnnxModel, load_ir, open_artifact, read_onnx, write_checkpoint, write_onnx
from vitdeploy.artifacts.digest import onnx_digest
from vitdeploy.backends import get_backend
from vitdeploy.errors import ArtifactError, DataError, GraphError, ModelError, UsageError
from vitdeploy.exporting import checking as comparison
from vitdeploy.graph.legality import findings
from vitdeploy.preprocess import DIGITS_PREPROCESS, normalize
from vitdeploy.records import ModelSpec, Preprocess
from vitdeploy.sources import load as sources
from vitdeploy.sources.loaded import LoadedModel
from vitdeploy.sources.source import SourceOptions
from vitdeploy.stages.convert import convert
from vitdeploy.stages.export import ExportOptions, ExportRequest, export

pytestmark = pytest.mark.slow


def test_the_graph_is_small_and_legal(tiny_onnx: OnnxModel) -> None:
    model = tiny_onnx.load()
    assert findings(model) == []
    assert (model.ir_version, model.opset_imports) == (10, {"": 20})
    counts = Counter(node.op_type for node in model.graph)
    assert counts == {
        "LayerNormalization": 5, "MatMul": 12, "Split": 2, "Mul": 2, "Softmax": 2, "Gelu": 2, "Add": 13,
        "Reshape": 9, "Transpose": 9, "Conv": 1, "Pad": 1, "Gather": 1, "Gemm": 1,
    }  # fmt: skip
    onnx.checker.check_model(tiny_onnx.path, full_check=True)


def test_nodes_carry_the_paths_of_their_modules(tiny_onnx: OnnxModel) -> None:
    names = [node.name for node in tiny_onnx.load().graph]
    assert {"patch_embed.proj/Conv", "blocks.0.attn.qkv/MatMul", "blocks.1.mlp.fc2/Add", "head/Gemm"} <= set(names)
    assert len(set(names)) == len(names)
    assert "blocks.0.attn.qkv.weight" in tiny_onnx.load().graph.initializers


def test_it_agrees_with_pytorch_at_three_batches(tiny_onnx: OnnxModel) -> None:
    checks = tiny_onnx.manifest.checks
    assert [check.name for check in checks] == [f"logits against PyTorch, batch {n}" for n in (1, 2, 5)]
    assert all(check.status == "passed" and 0 < check.value < 1e-5 and check.limit == 1e-4 for check in checks)


def test_nothing_of_this_machine_is_in_the_file(tiny_onnx: OnnxModel) -> None:
    data = tiny_onnx.path.read_bytes()
    for trace in (b"site-packages", b"stack_trace", b"pkg.torch", str(tiny_onnx.path.parent).encode(), b".py"):
        assert trace not in data


def test_the_manifest_says_what_it_is_and_what_it_was_made_from(
    tiny_onnx: OnnxModel, tiny_checkpoint: Checkpoint
) -> None:
    manifest = read_onnx(tiny_onnx.path).manifest
    assert manifest.parents == {"checkpoint": tiny_checkpoint.digest}
    assert manifest.model == tiny_checkpoint.manifest.model
    assert manifest.preprocess == tiny_checkpoint.manifest.preprocess
    assert manifest.metrics["nodes"] == 60
    assert manifest.versions["onnx"] == onnx.__version__
    options = ExportOptions(golden="digits:validation", reference="digits:test")
    assert manifest.key == ExportRequest.open(tiny_checkpoint, "unwritten.onnx", options=options).key
    assert manifest.key == ExportRequest.open(tiny_checkpoint.path, "unwritten.onnx", options=options).key
    assert manifest.key != ExportRequest.open(tiny_checkpoint, "unwritten.onnx").key


def test_real_samples_travel_with_their_logits(tiny_onnx: OnnxModel) -> None:
    golden = tiny_onnx.golden
    assert golden.pixels.shape == (8, 8, 8, 1)
    assert golden.pixels.dtype == np.uint8
    assert golden.reference.shape == golden.outputs.shape == (8, 10)
    assert np.abs(golden.reference - golden.outputs).max() < 1e-4
    assert len(np.unique(golden.pixels)) <= 17, "digits have 17 grey levels; made images have more"


def test_the_same_source_gives_the_same_graph_each_time_and_prints_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], tiny_checkpoint: Checkpoint, tiny_onnx: OnnxModel
) -> None:
    again = export(tiny_checkpoint.path, tmp_path / "elsewhere.onnx")
    captured = capfd.readouterr()
    assert again.digest == tiny_onnx.digest
    assert (captured.out, captured.err) == ("", "")


def test_the_digest_of_a_graph_in_memory_is_that_of_its_file(tiny_onnx: OnnxModel) -> None:
    """Attributes are float64 in memory and float32 in the file: epsilon 1e-6 is not the same number there."""
    model = tiny_onnx.load()
    norm = next(node for node in model.graph if node.op_type == "LayerNormalization")
    norm.attributes["epsilon"] = ir.AttrFloat32("epsilon", 1e-6)
    assert onnx_digest(model) == tiny_onnx.manifest.payload_sha256
    norm.attributes["epsilon"] = ir.AttrFloat32("epsilon", 1e-5)
    assert onnx_digest(model) != tiny_onnx.manifest.payload_sha256


def test_an_older_opset_is_offered(tmp_path: Path, tiny_checkpoint: Checkpoint) -> None:
    model = export(tiny_checkpoint.path, tmp_path / "old.onnx", options=ExportOptions(opset=17))
    assert load_ir(model.path).opset_imports[""] == 17
    assert "Erf" in {node.op_type for node in model.load().graph}
    assert all(check.status == "passed" for check in model.manifest.checks)


def test_an_unknown_opset_is_a_usage_error(tmp_path: Path, tiny_checkpoint: Checkpoint) -> None:
    with pytest.raises(UsageError, match="opset 16 is not offered, expected 17 to 20"):
        export(tiny_checkpoint.path, tmp_path / "x.onnx", options=ExportOptions(opset=16))


@pytest.mark.parametrize("damage", ["zeros", "scale", "permute", "shift", "nan"])
def test_a_graph_that_computes_something_else_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Checkpoint, tiny_onnx: OnnxModel, damage: str
) -> None:
    model = tiny_onnx.load()
    bias = model.graph.initializers["head.bias"]
    right = bias.const_value.numpy()
    wrong = {
        "zeros": 0 * right,
        "scale": right * 1.01,
        "permute": right[::-1].copy(),
        "shift": right + np.float32(0.01),
        "nan": right * np.nan,
    }
    bias.const_value = ir.tensor(wrong[damage], name="head.bias")
    monkeypatch.setattr("vitdeploy.exporting.tracing.trace", lambda *_, **__: model)
    path = tmp_path / "x.onnx"
    before = tiny_onnx.path.read_bytes()
    path.write_bytes(before)
    with pytest.raises(
        GraphError, match=r"at batch 1 differ from those of PyTorch by .* of their range .* nothing was written"
    ):
        export(tiny_checkpoint.path, path)
    assert [other.name for other in tmp_path.iterdir()] == ["x.onnx"]
    assert path.read_bytes() == before


def test_a_small_constant_survives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """x / (|x|² + 1e-8) for |x|² of 1e-12: without the constant the logits are off by orders of magnitude."""
    import torch

    class Guarded(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.head = torch.nn.Linear(64, 10)

        def forward(self, x):
            x = x.flatten(1) * 1e-7
            return self.head(x / ((x * x).sum(dim=1, keepdim=True) + 1e-8))

    spec = ModelSpec(family="vit", name="guarded", arguments={"num_classes": 10})
    loaded = LoadedModel(Guarded().eval(), spec, DIGITS_PREPROCESS, "0" * 64, "guarded")
    monkeypatch.setattr(sources, "_load", lambda source: loaded)
    model = export("timm:guarded", tmp_path / "x.onnx")
    constants = [value.const_value.numpy() for value in model.load().graph.initializers.values()]
    assert any(array.size == 1 and array.reshape(-1)[0] == np.float32(1e-8) for array in constants)


def test_a_batch_that_is_baked_in_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    class Baked(torch.nn.Module):
        def forward(self, x):
            return x.reshape(2, 64)[:, :10]

    loaded = LoadedModel(Baked(), ModelSpec(family="vit", name="baked"), DIGITS_PREPROCESS, "0" * 64, "model 'baked'")
    loaded.module.weight = torch.nn.Parameter(torch.zeros(1))
    monkeypatch.setattr(sources, "_load", lambda source: loaded)
    monkeypatch.setattr("vitdeploy.stages.export.torch_logits", lambda *_: np.zeros((5, 10), np.float32))
    with pytest.raises(ModelError, match="model 'baked' cannot be traced with a dynamic batch: "):
        export("timm:baked", tmp_path / "x.onnx")
    assert list(tmp_path.iterdir()) == []


def test_departures_from_a_legal_graph_are_noted(tmp_path: Path) -> None:
    notes = Notes()
    text = FOREIGN.replace(
        "t = Transpose <perm = [1, 0]> (w) y = MatMul(q, t)", 'y = Einsum <equation = "...d,cd->...c"> (q, w)'
    )
    model = export(
        write_foreign(tmp_path / "foreign.onnx", text),
        tmp_path / "adopted.onnx",
        options=ExportOptions(preprocess="digits"),
        progress=notes,
    )
    assert model.manifest.metrics["graph_findings"] == 1
    assert any("Einsum" in line for line in notes.lines)


def test_a_timm_model_exports_to_a_legal_graph_and_random_weights_are_noted(tmp_path: Path) -> None:
    notes = Notes()
    options = ExportOptions(
        random_weights=True, arguments={"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
    )
    model = export("timm:vit_tiny_patch16_224", tmp_path / "x.onnx", options=options, progress=notes)
    assert model.manifest.metrics["graph_findings"] == 0
    assert any("random" in line for line in notes.lines)
    assert model.manifest.preprocess.size == (16, 16)


def test_a_large_model_leaves_memory_before_it_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Checkpoint, tiny_onnx: OnnxModel
) -> None:
    """With limits lowered, the path of ViT-H/14: staged beside the output, weights in a file of their own."""
    from vitdeploy.artifacts import onnx_model

    monkeypatch.setattr(comparison, "LARGE_BYTES", 1000)
    monkeypatch.setattr(onnx_model, "EXTERNAL_DATA_LIMIT", 1000)
    honest_load, honest_compare = sources._load, comparison.compare
    weights: list[weakref.ref[Any]] = []

    def load(*args, **options: Any):
        loaded = honest_load(*args, **options)
        weights.extend(weakref.ref(parameter) for parameter in loaded.module.parameters())
        return loaded

    def compare(*args):
        assert len(weights) > 20
        assert all(parameter() is None for parameter in weights), "PyTorch's weights are still held"
        return honest_compare(*args)

    monkeypatch.setattr(sources, "_load", load)
    monkeypatch.setattr("vitdeploy.stages.export.compare", compare)
    model = export(tiny_checkpoint.path, tmp_path / "large.onnx")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"large.{model.manifest.payload_sha256[:12]}.data", "large.onnx"]
    assert model.digest == tiny_onnx.digest
    assert open_artifact(model.path).digest == tiny_onnx.digest
    monkeypatch.undo()
    small = write_onnx(tmp_path / "small" / "small.onnx", model.load(), model.manifest, model.golden)
    assert [path.name for path in small.path.parent.iterdir()] == ["small.onnx"]
    assert open_artifact(small.path).digest == tiny_onnx.digest


def test_a_full_disk_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Checkpoint, tiny_onnx: OnnxModel
) -> None:
    monkeypatch.setattr(comparison, "LARGE_BYTES", 1000)
    monkeypatch.setattr("vitdeploy.exporting.tracing.trace", lambda *_, **__: tiny_onnx.load())

    def full(*_, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ir, "save", full)
    path = tmp_path / "x.onnx"
    before = tiny_onnx.path.read_bytes()
    path.write_bytes(before)
    with pytest.raises(ArtifactError, match=r"the disk is full: .*x.onnx' was not written"):
        export(tiny_checkpoint.path, path)
    assert [other.name for other in tmp_path.iterdir()] == ["x.onnx"]
    assert path.read_bytes() == before


def test_a_full_disk_leaves_graph_and_reference_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Checkpoint, tiny_onnx: OnnxModel
) -> None:
    from vitdeploy.artifacts.reference import reference_path

    output = tmp_path / "new.onnx"
    shutil.copy(tiny_onnx.path, output)
    shutil.copy(reference_path(tiny_onnx.path), reference_path(output))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_: object) -> None:
        raise ArtifactError("the disk is full")

    monkeypatch.setattr("vitdeploy.stages.export.write_onnx", full)
    with pytest.raises(ArtifactError, match="the disk is full"):
        export(tiny_checkpoint, output, options=ExportOptions(reference="digits:test", opset=18))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_weights_that_give_no_numbers_are_refused(tmp_path: Path, tiny_checkpoint: Checkpoint) -> None:
    tensors = tiny_checkpoint.tensors()
    tensors["head.bias"] = tensors["head.bias"] * np.nan
    broken = write_checkpoint(tmp_path / "nan.safetensors", tensors, tiny_checkpoint.manifest)
    with pytest.raises(ModelError, match=r"checkpoint nan.safetensors gives logits that are NaN or infinite"):
        export(broken.path, tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx").exists()


@pytest.mark.parametrize(
    ("output", "error", "message"),
    [
        ("x.safetensors", UsageError, "is the name of a checkpoint, and export writes ONNX"),
        ("", ArtifactError, "is a folder, expected the name of an ONNX file"),
        ("file/x.onnx", ArtifactError, "cannot write .*Not a directory"),
    ],
)
def test_where_nothing_can_be_written_no_work_begins(
    tmp_path: Path, tiny_checkpoint: Checkpoint, output: str, error: type[Exception], message: str
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(error, match=message):
        export(tiny_checkpoint.path, tmp_path / output)


def test_an_output_is_chosen_of_onnx_files_only(tmp_path: Path, tiny_checkpoint: Checkpoint) -> None:
    with pytest.raises(UsageError, match="output_name= is for ONNX files"):
        export(tiny_checkpoint.path, tmp_path / "x.onnx", options=ExportOptions(output_name="logits"))


SMALL = {"image_size": 8, "patch": 4, "channels": 1, "num_classes": 10, "width": 16, "depth": 1, "heads": 2}


def test_preprocessing_names_and_task_go_with_every_source_and_survive(
    tmp_path: Path, tiny_checkpoint: Checkpoint
) -> None:
    """In place of what belongs to the weights: a checkpoint of ours, a model by name, and the adopted export."""
    labels, record = tmp_path / "labels.json", tmp_path / "mine.json"
    labels.write_text(json.dumps({f"digit {index}": index for index in range(10)}))
    record.write_text(json.dumps({"size": [8, 8], "channels": 1, "resize_size": 9, "mean": [0.1], "std": [0.2]}))
    common: dict[str, Any] = {"labels": labels, "preprocess": str(record), "task": "multi-label"}
    exported = export(tiny_checkpoint.path, tmp_path / "x.onnx", options=ExportOptions(**common))
    again = export(exported.path, tmp_path / "y.onnx", options=ExportOptions(**common))
    options = SourceOptions(random_weights=True, arguments=SMALL, **common)
    random = convert("vit", tmp_path / "z.safetensors", options=options)
    expected = Preprocess(size=(8, 8), channels=1, resize_size=9, mean=(0.1,), std=(0.2,), source="mine.json")
    for artifact in (exported, again, random, export(random.path, tmp_path / "z.onnx")):
        manifest = artifact.manifest
        assert manifest.preprocess == expected
        assert manifest.model.classes[3] == "digit 3"
        assert manifest.model.task == "multi-label"
    session = get_backend("pytorch").open(tiny_checkpoint)
    logits = session.run({"input": normalize(exported.golden.pixels, expected)})["logits"]
    np.testing.assert_allclose(exported.golden.outputs, logits, atol=1e-5)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"size": [9, 8], "channels": 1, "mean": [0.1], "std": [0.2]}, r"images of 1×9×8, and .* takes 1×8×8"),
        ({"size": [8, 8], "mean": [0.1] * 3, "std": [0.2] * 3}, r"images of 3×8×8, and .* takes 1×8×8"),
        ({"size": [8, 8], "mean": [0.1], "std": [0.2]}, "is not a valid Preprocess"),
    ],
)
def test_preprocessing_that_does_not_fit_is_refused(
    tmp_path: Path, tiny_checkpoint: Checkpoint, record: dict[str, Any], message: str
) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"resize": "squash", **record}))
    with pytest.raises((UsageError, DataError), match=message):
        export(tiny_checkpoint.path, tmp_path / "x.onnx", options=ExportOptions(preprocess=str(file)))
    assert not (tmp_path / "x.onnx").exists()


def test_of_sixty_bit_flips_each_is_noticed_or_changes_nothing(tmp_path: Path, tiny_onnx: OnnxModel) -> None:
    data = tiny_onnx.path.read_bytes()
    rng = random.Random(0)
    noticed, harmless = 0, 0
    for position in rng.sample(range(8 * len(data)), 60):
        damaged = bytearray(data)
        damaged[position // 8] ^= 1 << (position % 8)
        path = tmp_path / "flipped.onnx"
        path.write_bytes(damaged)
        try:
            model = read_onnx(path)
        except ArtifactError:
            noticed += 1
        else:
            assert model.manifest == tiny_onnx.manifest
            assert onnx_digest(load_ir(path)) == tiny_onnx.manifest.payload_sha256
            harmless += 1
    assert noticed + harmless == 60
    assert noticed > 40


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path: Path, tiny_onnx: OnnxModel, share: float) -> None:
    data = tiny_onnx.path.read_bytes()
    path = tmp_path / "cut.onnx"
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ArtifactError):
        open_artifact(path)


def test_labels_name_the_classes_of_weights_that_do_not(tmp_path: Path) -> None:
    arguments = {"image_size": 16, "patch": 8, "width": 16, "depth": 1, "heads": 2, "num_classes": 3}
    (tmp_path / "labels.txt").write_text("circle\nsquare\nstar\n")
    options = ExportOptions(random_weights=True, arguments=arguments, labels=tmp_path / "labels.txt")
    named = export("vit", tmp_path / "named.onnx", options=options)
    assert named.manifest.model.classes == ("circle", "square", "star")
    (tmp_path / "labels.txt").write_text("circle\n")
    with pytest.raises(DataError, match=r"labels\.txt' has 1 class names, the model has 3 outputs"):
        export("vit", tmp_path / "wrong.onnx", options=options)
    assert not (tmp_path / "wrong.onnx").exists()
