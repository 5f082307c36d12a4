"""Verify checks what it can, and says what it could not."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from notes import Notes
from tiny_checkpoint import TINY, write_tiny_checkpoint

from vitdeploy.artifacts import Checkpoint, OnnxModel, read_onnx, write_checkpoint, write_engine, write_onnx
from vitdeploy.artifacts.golden import Golden
from vitdeploy.artifacts.lineage import find_parent_checkpoint
from vitdeploy.artifacts.reference import reference_path
from vitdeploy.errors import ArtifactError, UsageError
from vitdeploy.preprocess import DIGITS_PREPROCESS
from vitdeploy.records import BuildInfo
from vitdeploy.stages.export import ExportOptions, export
from vitdeploy.stages.inspect import inspect
from vitdeploy.stages.verify import verify

pytestmark = pytest.mark.slow


def by_name(result):
    return {check.name: check for check in result.checks}


def test_the_folder_of_a_run_is_checked_file_by_file(tmp_path: Path, tiny_onnx: OnnxModel) -> None:
    shutil.copy(tiny_onnx.path, tmp_path / "model.onnx")
    (tmp_path / "run.json").write_text('{"export": {"options": {}, "parents": {}}}')
    for unfinished in (".vitdeploy-1.onnx", ".vitdeploy-2.safetensors", ".vitdeploy-3.engine"):
        (tmp_path / unfinished).write_bytes(b"")  # of a killed process
    inspect(tmp_path)
    found = verify(tmp_path)
    assert found.kind == "run"
    assert "model.onnx: digest" in {check.name for check in found.checks}
    assert found.passed
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    found = verify(tmp_path)
    assert [check.name for check in found.checks if check.status == "failed"] == ["model.safetensors: digest"]
    with pytest.raises(UsageError, match="is a run: only bundles are signed"):
        verify(tmp_path, public_key="key.pem")


def test_a_sound_model_passes_everything(tiny_onnx: OnnxModel) -> None:
    result = verify(tiny_onnx.path, "digits:test")
    assert result.passed
    assert {name: check.status for name, check in by_name(result).items()} == {
        "digest": "passed",
        "onnx checker": "passed",
        "golden samples": "passed",
        "parent checkpoint": "passed",
        "reference logits": "passed",
        "agreement with PyTorch": "passed",
    }
    assert by_name(result)["agreement with PyTorch"].value == 1.0
    assert "tiny.safetensors is the one" in by_name(result)["parent checkpoint"].detail


@pytest.mark.torch
def test_without_its_parents_and_logits_they_are_unchecked(tmp_path: Path, tiny_onnx: OnnxModel) -> None:
    shutil.copy(tiny_onnx.path, tmp_path / "alone.onnx")
    write_tiny_checkpoint(tmp_path / "another.safetensors", seed=5)
    result = verify(tmp_path / "alone.onnx", "digits:test")
    assert result.passed
    assert by_name(result)["parent checkpoint"].status == "unchecked"
    assert "reference='DATA'" in by_name(result)["agreement with PyTorch"].detail


OTHERS = {
    "preprocessing": {"preprocess": DIGITS_PREPROCESS.model_copy(update={"mean": (0.5,)})},
    "class names": {"model": {"classes": tuple("abcdefghij")}},
    "task": {"model": {"task": "multi-label"}},
    "constructor arguments": {"model": {"arguments": {**TINY, "heads": 4}}},
}


def with_manifest(path, checkpoint, changes):
    """Write the same weights with another word of what they are."""
    values = dict(changes)
    if "model" in values:
        values["model"] = checkpoint.manifest.model.model_copy(update=values["model"])
    return write_checkpoint(path, checkpoint.tensors(), checkpoint.manifest.model_copy(update=values))


@pytest.mark.parametrize(("word", "changes"), OTHERS.items())
def test_the_same_weights_under_another_manifest_are_no_parent(
    tmp_path: Path, tiny_onnx: OnnxModel, tiny_checkpoint: Checkpoint, word: str, changes: dict[str, Any]
) -> None:
    shutil.copy(tiny_onnx.path, tmp_path / "graph.onnx")
    other = with_manifest(tmp_path / "a.safetensors", tiny_checkpoint, changes)
    assert other.manifest.payload_sha256 == tiny_checkpoint.manifest.payload_sha256
    assert other != tiny_checkpoint, word
    result = verify(tmp_path / "graph.onnx")
    assert result.passed  # the graph is whole; its parent is elsewhere
    assert by_name(result)["parent checkpoint"].status == "unchecked"
    shutil.copy(tiny_checkpoint.path, tmp_path / "b.safetensors")
    assert "b.safetensors is the one" in by_name(verify(tmp_path / "graph.onnx"))["parent checkpoint"].detail


@pytest.mark.parametrize(("word", "changes"), OTHERS.items())
def test_the_same_graph_under_another_manifest_is_not_the_parent(
    tmp_path: Path, tiny_onnx: OnnxModel, word: str, changes: dict[str, Any]
) -> None:
    """Of what was made from a graph: here a graph that states it, as quantize writes them."""
    manifest = tiny_onnx.manifest.model_copy(update={"parents": {"onnx": tiny_onnx.digest}, "options": {}})
    write_onnx(tmp_path / "child.onnx", tiny_onnx.load(), manifest, tiny_onnx.golden)
    model = tiny_onnx.manifest.model.model_copy(update=changes.get("model", {}))
    other = tiny_onnx.manifest.model_copy(update={**changes, "model": model})
    assert write_onnx(tmp_path / "a.onnx", tiny_onnx.load(), other, tiny_onnx.golden) != tiny_onnx, word
    assert by_name(verify(tmp_path / "child.onnx"))["parent onnx"].status == "unchecked"
    shutil.copy(tiny_onnx.path, tmp_path / "b.onnx")
    assert "b.onnx is the one" in by_name(verify(tmp_path / "child.onnx"))["parent onnx"].detail


@pytest.mark.torch
@pytest.mark.parametrize(
    ("options", "manifest"),
    [
        ({"task": "multi-label"}, "task"),
        ({"task": "features"}, "task"),
        ({"preprocess": DIGITS_PREPROCESS.model_copy(update={"mean": (0.5,)})}, "preprocess"),
    ],
)
def test_what_an_option_changed_is_no_contradiction(
    tmp_path: Path, tiny_checkpoint: Checkpoint, options: dict[str, Any], manifest: str
) -> None:
    shutil.copy(tiny_checkpoint.path, tmp_path / "own.safetensors")
    model = export(tmp_path / "own.safetensors", tmp_path / "graph.onnx", options=ExportOptions(**options))
    assert by_name(verify(model.path))["parent checkpoint"].status == "passed"


@pytest.mark.torch
def test_a_bench_takes_no_checkpoint_that_says_otherwise_for_its_baseline(
    tmp_path: Path, tiny_onnx: OnnxModel, tiny_checkpoint: Checkpoint
) -> None:
    shutil.copy(tiny_onnx.path, tmp_path / "graph.onnx")
    with_manifest(tmp_path / "a.safetensors", tiny_checkpoint, OTHERS["preprocessing"])
    notes = Notes()
    assert find_parent_checkpoint([read_onnx(tmp_path / "graph.onnx")], notes) is None
    shutil.copy(tiny_checkpoint.path, tmp_path / "b.safetensors")
    found = find_parent_checkpoint([read_onnx(tmp_path / "graph.onnx")], notes)
    assert found is not None
    assert found.path.name == "b.safetensors"


def damaged_reference(path, how) -> None:
    data = bytearray(path.read_bytes())
    header = int.from_bytes(data[:8], "little") + 8
    if how == "a logit":
        data[header + 5] ^= 0x40
    elif how == "the header":
        where = data.index(b"sample_ids") + 20
        data[where] ^= 0x01
    elif how == "another graph":
        where = data.index(b"onnx_sha256") + 18
        data[where] = ord("0") if data[where] != ord("0") else ord("1")
    else:
        del data[-7:]
    path.write_bytes(data)


def test_the_reference_of_another_graph_is_told(tmp_path: Path, tiny_onnx: OnnxModel) -> None:
    model = tiny_onnx.load()
    weight = model.graph.initializers["head.weight"]
    weight.const_value = ir.tensor(weight.const_value.numpy() * 2, name="head.weight")
    path = write_onnx(tmp_path / "other.onnx", model, tiny_onnx.manifest).path
    shutil.copy(reference_path(tiny_onnx.path), reference_path(path))
    check = by_name(verify(path))["reference logits"]
    assert check.status == "unchecked"
    assert check.detail == "other.reference.safetensors holds the logits of another graph: nothing here uses them"


@pytest.mark.parametrize("how", ["a logit", "the header", "another graph", "cut off"])
def test_a_damaged_reference_beside_a_graph_fails(tmp_path: Path, tiny_onnx: OnnxModel, how: str) -> None:
    shutil.copy(tiny_onnx.path, tmp_path / "tiny.onnx")
    reference = shutil.copy(reference_path(tiny_onnx.path), reference_path(tmp_path / "tiny.onnx"))
    assert by_name(verify(tmp_path / "tiny.onnx"))["reference logits"].status == "passed"
    damaged_reference(reference, how)
    result = verify(tmp_path / "tiny.onnx")
    assert by_name(result)["reference logits"].status == "failed"
    assert (
        "make them again with vd.export(..., options=vd.ExportOptions(reference='DATA'))"
        in by_name(result)["reference logits"].detail
    )
    assert not result.passed


@pytest.mark.parametrize("damage", ["zeros", "scale", "permute", "shift", "nan"])
def test_a_graph_that_no_longer_computes_its_samples_fails(tmp_path: Path, tiny_onnx: OnnxModel, damage: str) -> None:
    """The digests fit, so only running it can tell: as a runtime with a wrong kernel would behave."""
    golden = tiny_onnx.golden
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
    path = write_onnx(tmp_path / "wrong.onnx", model, tiny_onnx.manifest, golden).path
    result = verify(path)
    assert not result.passed
    check = by_name(result)["golden samples"]
    assert check.status == "failed"
    assert check.value > check.limit


def test_an_invalid_graph_fails_the_checker(tmp_path: Path, tiny_onnx: OnnxModel) -> None:
    model = tiny_onnx.load()
    node = next(node for node in model.graph if node.op_type == "Softmax")
    node.attributes["axes"] = ir.AttrInt64("axes", 1)
    path = write_onnx(tmp_path / "odd.onnx", model, tiny_onnx.manifest).path
    result = by_name(verify(path))
    assert result["onnx checker"].status == "failed"
    assert "axes" in result["onnx checker"].detail
    assert result["golden samples"].status == "unchecked"


def test_disagreement_with_pytorch_fails(tmp_path: Path, tiny_onnx: OnnxModel) -> None:
    model = tiny_onnx.load()
    weight = model.graph.initializers["head.weight"]
    weight.const_value = ir.tensor(weight.const_value.numpy()[::-1].copy(), name="head.weight")
    from vitdeploy.artifacts.reference import load_reference, write_reference

    reference = load_reference(tiny_onnx)
    written = write_onnx(tmp_path / "reversed.onnx", model, tiny_onnx.manifest)
    path = written.path
    write_reference(path, reference.info.model_copy(update={"onnx_sha256": written.digest}), reference.logits)
    result = verify(path, "digits:test")
    assert not result.passed
    assert by_name(result)["agreement with PyTorch"].value < 0.5
    assert by_name(verify(path, "digits:train"))["agreement with PyTorch"].status == "unchecked"


def test_an_engine_finds_its_samples_in_the_graph_beside_it(tmp_path: Path, tiny_onnx: OnnxModel) -> None:
    from vitdeploy.backends import get_backend
    from vitdeploy.stages.verify import find_golden

    build = BuildInfo(backend="tensorrt-rtx", version="1.0", batch=(1, 1, 1))
    update = {"kind": "engine", "build": build, "golden_sha256": None, "parents": {"onnx": tiny_onnx.digest}}
    engine = write_engine(tmp_path / "tiny.engine", b"plan", tiny_onnx.manifest.model_copy(update=update))
    assert find_golden(engine) == (None, "the graph that it was built from does not lie beside it")
    shutil.copy(tiny_onnx.path, tmp_path / "graph.onnx")
    golden, _ = find_golden(engine)
    assert isinstance(golden, Golden)
    result = by_name(verify(engine.path))
    assert result["parent onnx"].status == "passed"
    if get_backend("tensorrt-rtx").can_run() is not None:
        assert result["golden samples"].status == "unchecked"
        assert result["golden samples"].detail == get_backend("tensorrt-rtx").can_run()
        assert result["layer precision"].status == "unchecked"


def test_a_checkpoint_is_verified_by_its_digest(tiny_checkpoint: Checkpoint) -> None:
    assert [check.name for check in verify(tiny_checkpoint.path).checks] == ["digest"]


def test_damage_is_an_error(tmp_path: Path, tiny_onnx: OnnxModel) -> None:
    data = bytearray(tiny_onnx.path.read_bytes())
    position = data.find(tiny_onnx.load().graph.initializers["head.bias"].const_value.tobytes())
    data[position] ^= 1
    (tmp_path / "x.onnx").write_bytes(data)
    with pytest.raises(ArtifactError, match="does not match the digest in its manifest"):
        verify(tmp_path / "x.onnx")
    assert reference_path(tmp_path / "x.onnx").name == "x.reference.safetensors"
