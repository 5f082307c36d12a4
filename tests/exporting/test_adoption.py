"""A foreign ONNX file gets a manifest, or one line that says what is missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from foreign_onnx import FOREIGN, write_foreign
from notes import Notes
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from vitdeploy.artifacts import OnnxModel, open_artifact, read_onnx, write_onnx
from vitdeploy.errors import ArtifactError, DataError, GraphError, UsageError, VitdeployError
from vitdeploy.records import ModelSpec
from vitdeploy.records.samples import SampleSet, TrainingData
from vitdeploy.stages.export import ExportOptions, export
from vitdeploy.stages.inspect import inspect

ADOPT = ExportOptions(preprocess="digits")


def test_a_foreign_graph_becomes_one_of_ours(tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("".join(f"digit {n}\n" for n in range(10)))
    source = write_foreign(tmp_path / "foreign.onnx")
    before = source.read_bytes()
    options = ExportOptions(preprocess="digits", labels=labels, golden="digits:test")
    model = export(source, tmp_path / "adopted.onnx", options=options)
    assert open_artifact(model.path).digest == model.digest
    assert source.read_bytes() == before
    manifest = model.manifest
    assert manifest.model.family == "onnx"
    assert manifest.model.classes[3] == "digit 3"
    assert manifest.preprocess.size == (8, 8)
    assert list(manifest.parents) == ["onnx"]
    assert [check.name for check in manifest.checks] == [
        f"logits against foreign.onnx as it was, batch {size}" for size in (1, 2, 5)
    ]
    graph = model.load().graph
    assert [node.op_type for node in graph] == ["Reshape", "LayerNormalization", "Gelu", "MatMul", "Add"]
    assert (graph.inputs[0].name, graph.outputs[0].name, str(graph.inputs[0].shape[0])) == ("input", "logits", "batch")
    assert b"/home/someone" not in model.path.read_bytes()
    onnx.checker.check_model(model.path, full_check=True)
    assert len(model.golden.pixels) == 8


def test_a_file_is_not_adopted_in_place_under_any_of_its_names(tmp_path: Path) -> None:
    source = write_foreign(tmp_path / "foreign.onnx")
    before = source.read_bytes()
    (tmp_path / "symbolic.onnx").symlink_to(source)
    (tmp_path / "hard.onnx").hardlink_to(source)
    for output in (source, tmp_path / "symbolic.onnx", tmp_path / "hard.onnx"):
        with pytest.raises(VitdeployError, match="is the input"):
            export(source, output, options=ADOPT)
    assert source.read_bytes() == before


def test_weights_beside_a_foreign_file_come_along(tmp_path: Path) -> None:
    """A file with external data is adopted whole; inspect counts its data."""
    source = write_foreign(tmp_path / "foreign.onnx")
    ir.save(ir.load(source), source, external_data="foreign.data")
    data = tmp_path / "foreign.data"
    assert inspect(source).size_bytes == source.stat().st_size + data.stat().st_size
    model = export(source, tmp_path / "adopted.onnx", options=ADOPT)
    data.unlink()
    assert open_artifact(model.path).digest == model.digest
    with pytest.raises(ArtifactError, match=r"needs its weights in .*foreign.data', and there is no such file"):
        export(source, tmp_path / "again.onnx", options=ADOPT)


def _edited(tiny: OnnxModel, path: Path, values: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> Path:
    model = tiny.load()
    bias = model.graph.initializers["head.bias"]
    bias.const_value = ir.tensor(values(bias.const_value.numpy()), name="head.bias")
    ir.save(model, path)
    return path


def test_an_edited_model_of_ours_can_be_adopted_again(tmp_path: Path, tiny_onnx: OnnxModel) -> None:
    path = _edited(tiny_onnx, tmp_path / "edited.onnx", lambda bias: bias + 1)
    with pytest.raises(
        ArtifactError, match=r"edited or damaged; if the edit is yours, .*edited\.onnx.* adopts it again"
    ):
        read_onnx(path)
    with pytest.raises(ArtifactError, match=r"edited or damaged"):
        export(path, tmp_path / "x.onnx")
    adopted = export(path, tmp_path / "adopted.onnx", options=ExportOptions(preprocess=str(path)))
    assert adopted.digest != tiny_onnx.digest
    assert adopted.manifest.metrics["graph_findings"] == 0
    names = [node.name for node in adopted.load().graph]
    assert "blocks.0.attn.qkv/MatMul" in names
    assert adopted.manifest.preprocess == tiny_onnx.manifest.preprocess


def test_an_edited_model_of_ours_keeps_what_its_manifest_states(tmp_path: Path, tiny_onnx: OnnxModel) -> None:
    """Class names, task and trainings, by which a bench knows images that were seen; labels= and task= come first."""
    stated = tiny_onnx.manifest
    model = stated.model.model_copy(update={"classes": tuple(f"d{n}" for n in range(10)), "task": "multi-label"})
    seen = TrainingData(data="digits:train", train=SampleSet.of(f"{n:016x}" for n in range(3)))
    source = write_onnx(
        tmp_path / "s.onnx", tiny_onnx.load(), stated.model_copy(update={"model": model, "trained_on": (seen,)})
    )
    path = _edited(source, tmp_path / "edited.onnx", lambda bias: bias + 1)
    kept = export(path, tmp_path / "a.onnx", options=ADOPT).manifest
    assert (kept.model.classes, kept.model.task, kept.trained_on) == (model.classes, "multi-label", (seen,))
    labels = tmp_path / "labels.txt"
    labels.write_text("".join(f"digit {n}\n" for n in range(10)))
    options = ExportOptions(preprocess="digits", labels=labels, task="single-label")
    named = export(path, tmp_path / "b.onnx", options=options).manifest
    assert (named.model.classes[3], named.model.task, named.trained_on) == ("digit 3", "single-label", (seen,))
    unseen = _edited(tiny_onnx, tmp_path / "unseen.onnx", lambda bias: bias + 1)
    other = export(unseen, tmp_path / "c.onnx", options=ADOPT).manifest
    assert other.parents == kept.parents
    assert other.key != kept.key  # of the same graph, with what another manifest states


def test_a_manifest_of_other_outputs_or_a_damaged_one_names_no_classes(tmp_path: Path, tiny_onnx: OnnxModel) -> None:
    nine = ModelSpec(family="vit", name="nine", arguments={"num_classes": 9}, classes=tuple("abcdefghi"))
    source = write_onnx(tmp_path / "n.onnx", tiny_onnx.load(), tiny_onnx.manifest.model_copy(update={"model": nine}))
    other = _edited(source, tmp_path / "other.onnx", lambda bias: bias + 1)
    graph = onnx.load(other)
    manifest = next(entry for entry in graph.metadata_props if entry.key == "vitdeploy")
    manifest.value = manifest.value[:-9]
    onnx.save(graph, tmp_path / "damaged.onnx")
    for path, note in ((other, "is of 9 outputs and it has 10"), (tmp_path / "damaged.onnx", "is damaged")):
        notes = Notes()
        adopted = export(path, tmp_path / f"{path.stem}.a.onnx", options=ADOPT, progress=notes)
        assert f"its manifest of vitdeploy {note}" in "\n".join(notes.lines)
        assert adopted.manifest.model.classes == ()


def test_the_key_follows_content_not_paths(tmp_path: Path) -> None:
    first = export(write_foreign(tmp_path / "a" / "one.onnx"), tmp_path / "one.out.onnx", options=ADOPT)
    second = export(write_foreign(tmp_path / "b" / "two.onnx"), tmp_path / "two.out.onnx", options=ADOPT)
    other = export(first.path, tmp_path / "c.onnx", options=ExportOptions(preprocess="digits", opset=17))
    assert first.manifest.key == second.manifest.key != other.manifest.key
    assert first.digest == second.digest


def test_a_fixed_batch_is_kept_and_noted(tmp_path: Path) -> None:
    source = write_foreign(tmp_path / "fixed.onnx", FOREIGN.replace("[N,", "[3,").replace("-1, 64", "3, 64"))
    model = export(source, tmp_path / "x.onnx", options=ADOPT)
    assert [check.name for check in model.manifest.checks] == ["logits against fixed.onnx as it was, batch 3"]
    assert model.manifest.metrics["graph_findings"] == 1


IMAGE, SCORES = "float[N, 1, 8, 8] pixel_values", "float[N, 10] scores"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            IMAGE,
            "float[N, 3, 8, 8] pixel_values",
            r"'pixel_values' is float \[N, 3, 8, 8\], but the preprocessing gives 1×8×8 \(channels, height",
        ),
        (
            IMAGE,
            "float[N, 1, 9, 8] pixel_values",
            r"but the preprocessing gives 1×8×8 .*: name the preprocessing that belongs",
        ),
        (IMAGE, "float[N, 64] pixel_values", r"expected images \[N, C, H, W\] or \[N, H, W, C\]"),
        (IMAGE, "int64[N, 1, 8, 8] pixel_values", r"is int64 .*, expected float32, float16 or bytes \(uint8\)"),
        (
            SCORES,
            f"{SCORES}, float[N, 64] h",
            "has the outputs 'scores' .*, 'h' .*the logits with output_name=",
        ),
    ],
)
def test_what_is_no_image_classifier_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    source = write_foreign(tmp_path / "foreign.onnx", FOREIGN.replace(old, new))
    with pytest.raises(GraphError, match=message) as caught:
        export(source, tmp_path / "x.onnx", options=ADOPT)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "x.onnx").exists()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (ExportOptions(), UsageError, "carries no preprocessing: pass preprocess='timm:NAME"),
        (ExportOptions(preprocess="digits", random_weights=True), UsageError, "brings its own weights"),
        (ExportOptions(preprocess="digits", reference="digits"), UsageError, "reference= stores PyTorch's logits"),
        (ExportOptions(preprocess="missing.json"), ArtifactError, "there is no file 'missing.json'"),
        (ExportOptions(preprocess="timm:vit_tiny_patch16_224"), GraphError, "the preprocessing gives 3×224×224"),
        (ExportOptions(preprocess="digits", opset=21), UsageError, "opset 21 is not offered"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    tmp_path: Path, options: ExportOptions, error: type[Exception], message: str
) -> None:
    source = write_foreign(tmp_path / "foreign.onnx")
    with pytest.raises(error, match=message):
        export(source, tmp_path / "x.onnx", options=options)
    assert not (tmp_path / "x.onnx").exists()


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("one\ntwo\n", DataError, "has 2 class names, the model has 10 outputs"),
        (b"\xff\xfe\x00", DataError, "is not a text file with one class name per line"),
        (None, ArtifactError, "there is no file"),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    tmp_path: Path, content: str | bytes | None, error: type[Exception], message: str
) -> None:
    labels = tmp_path / "labels.txt"
    if content is not None:
        labels.write_bytes(content if isinstance(content, bytes) else content.encode())
    source = write_foreign(tmp_path / "foreign.onnx")
    with pytest.raises(error, match=message):
        export(source, tmp_path / "x.onnx", options=ExportOptions(preprocess="digits", labels=labels))


def test_a_model_of_ours_needs_no_adoption(tmp_path: Path, tiny_onnx: OnnxModel) -> None:
    with pytest.raises(UsageError, match="is a model of vitdeploy already: quantize, build or bench it as it is"):
        export(tiny_onnx.path, tmp_path / "x.onnx")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not an ONNX model"),
        (b"no protobuf at all", "is a text file"),
        (json.dumps({}).encode(), "is a JSON file"),
    ],
)
def test_a_file_that_is_no_onnx_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=message):
        export(path, tmp_path / "y.onnx", options=ADOPT)
    with pytest.raises(ArtifactError, match="there is no file"):
        export(tmp_path / "missing.onnx", tmp_path / "y.onnx", options=ADOPT)


def test_a_graph_that_onnxruntime_refuses_is_refused(tmp_path: Path) -> None:
    from vitdeploy.errors import BackendError

    source = write_foreign(
        tmp_path / "broken.onnx", FOREIGN.replace("t = Transpose <perm = [1, 0]> (w)", "t = Identity(w)")
    )
    with pytest.raises((BackendError, GraphError)):
        export(source, tmp_path / "x.onnx", options=ADOPT)


@pytest.mark.parametrize(
    "renamed",
    [lambda index, name: "node", lambda index, name: f"block/{index % 3}", lambda index, name: name or "x"],
    ids=["all of one name", "some of one name", "of their own"],
)
def test_nodes_of_one_name_get_names_of_their_own(renamed, tmp_path: Path) -> None:
    source = write_foreign(tmp_path / "foreign.onnx")
    model = onnx.load(source)
    for index, node in enumerate(model.graph.node):
        node.name = renamed(index, node.name)
    onnx.save(model, source)
    names = [node.name for node in export(source, tmp_path / "x.onnx", options=ADOPT).load().graph]
    assert len(set(names)) == len(names)
    assert all(names)


def with_sparse_weight(source: Path, dims: list[int], places: np.ndarray) -> np.ndarray:
    """Make the weight of the foreign graph sparse, and return it as it is then."""
    model = onnx.load(source)
    (weight,) = [one for one in model.graph.initializer if one.name == "w"]
    array = numpy_helper.to_array(weight)
    flat = np.arange(0, array.size, 3)
    dense = np.zeros_like(array)
    dense.reshape(-1)[flat] = array.reshape(-1)[flat]
    values = numpy_helper.from_array(dense.reshape(-1)[flat], "w")
    indices = numpy_helper.from_array(np.ascontiguousarray(places.astype(np.int64)), "places")
    model.graph.initializer.remove(weight)
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, dims))
    onnx.save(model, source)
    return dense


@pytest.mark.parametrize("axes", [1, 2])
def test_sparse_weights_are_written_out(axes: int, tmp_path: Path) -> None:
    source = write_foreign(tmp_path / "foreign.onnx")
    shape = weight_shape(source)
    flat = np.arange(0, np.prod(shape), 3)
    places = flat if axes == 1 else np.stack(np.unravel_index(flat, shape), axis=1)
    dense = with_sparse_weight(source, list(shape), places)
    model = export(source, tmp_path / "x.onnx", options=ADOPT).load()
    held = [value.const_value.numpy() for value in model.graph.initializers.values()]
    assert any(array.shape in (dense.shape, dense.T.shape) and set(array.flat) == set(dense.flat) for array in held)


@pytest.mark.parametrize(
    ("dims", "shift", "message"),
    [
        (None, 1 << 20, "lie outside of"),
        (None, -9, "lie outside of"),
        ([1 << 20, 1 << 20], 0, "too large to write out"),
    ],
)
def test_sparse_weights_that_do_not_fit_are_refused(dims, shift: int, message: str, tmp_path: Path) -> None:
    source = write_foreign(tmp_path / "foreign.onnx")
    shape = weight_shape(source)
    with_sparse_weight(source, dims or list(shape), np.arange(0, np.prod(shape), 3) + shift)
    with pytest.raises(ArtifactError, match=message):
        export(source, tmp_path / "x.onnx", options=ADOPT)
    assert not (tmp_path / "x.onnx").exists()


def weight_shape(source: Path) -> tuple[int, ...]:
    return next(tuple(one.dims) for one in onnx.load(source).graph.initializer if one.name == "w")
