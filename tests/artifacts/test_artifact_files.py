"""Files are the old one or the whole new one; every artifact is verified when it is read."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from vitdeploy.artifacts import (
    Golden,
    OnnxModel,
    atomic_folder,
    atomic_path,
    load_ir,
    open_artifact,
    read_onnx,
    sidecar_of,
    write_atomically,
    write_checkpoint,
    write_engine,
    write_onnx,
)
from vitdeploy.artifacts import onnx_model as onnx_files
from vitdeploy.artifacts.files import FilesTogether, save_tensors
from vitdeploy.errors import ArtifactError
from vitdeploy.records import Manifest, ModelSpec

SPEC = ModelSpec(family="vit", name="tiny", arguments={"num_classes": 3}, classes=("a", "b", "c"))

GRAPH = """
<ir_version: 10, opset_import: ["" : 20]>
linear (float[batch, 4] input) => (float[batch, 3] logits)
<float[4, 3] weight = {0,0,0, 0,0,0, 0,0,0, 0,0,0}, float[3] bias = {0,0,0}>
{
    product = MatMul(input, weight)
    logits = Add(product, bias)
}
"""


def linear_model(seed: int = 0) -> ir.Model:
    model = ir.from_onnx_text(GRAPH)
    draw = np.random.default_rng(seed)
    for name, shape in (("weight", (4, 3)), ("bias", (3,))):
        array = draw.normal(size=shape).astype(np.float32)
        model.graph.initializers[name].const_value = ir.tensor(array, name=name)
    return model


def manifest(kind: str) -> Manifest:
    return Manifest(kind=kind, model=SPEC)


def golden() -> Golden:
    pixels = np.arange(2 * 2 * 2 * 1, dtype=np.uint8).reshape(2, 2, 2, 1)
    logits = np.ones((2, 3), np.float32)
    return Golden(pixels, logits, logits * 2)


@pytest.fixture
def onnx_file(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    write_onnx(path, linear_model(), manifest("onnx"), golden())
    return path


def test_onnx_round_trip_keeps_graph_manifest_and_golden_samples(onnx_file: Path) -> None:
    artifact = open_artifact(onnx_file)
    assert isinstance(artifact, OnnxModel)
    assert artifact.manifest.model == SPEC
    assert artifact.golden is not None
    np.testing.assert_array_equal(artifact.golden.outputs, golden().outputs)
    np.testing.assert_array_equal(
        artifact.load().graph.initializers["weight"].const_value.numpy(),
        linear_model().graph.initializers["weight"].const_value.numpy(),
    )
    onnx.checker.check_model(onnx.load(onnx_file), full_check=True)


def test_payload_digest_ignores_metadata_and_sees_a_changed_weight(tmp_path: Path) -> None:
    first = write_onnx(tmp_path / "a.onnx", linear_model(), manifest("onnx"))
    same = linear_model()
    same.graph.doc_string = "another text"
    same.producer_name = "another tool"
    again = write_onnx(tmp_path / "b.onnx", same, manifest("onnx"))
    other = write_onnx(tmp_path / "c.onnx", linear_model(seed=1), manifest("onnx"))
    assert first.digest == again.digest
    assert first.digest != other.digest


def test_single_bit_flips_in_an_onnx_file_never_change_what_is_loaded(onnx_file: Path) -> None:
    original = onnx_file.read_bytes()
    before = read_onnx(onnx_file)
    draw = random.Random(0)
    refused = 0
    for _ in range(400):
        damaged = bytearray(original)
        damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
        onnx_file.write_bytes(bytes(damaged))
        try:
            after = read_onnx(onnx_file)
        except ArtifactError:
            refused += 1
            continue
        assert after.digest == before.digest
        assert after.manifest == before.manifest
    assert refused > 300


@pytest.mark.parametrize("keep", [0, 1, 10, 0.5, 0.99])
def test_truncated_onnx_is_refused_by_name(onnx_file: Path, keep: float) -> None:
    data = onnx_file.read_bytes()
    onnx_file.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(ArtifactError, match=r"model\.onnx"):
        open_artifact(onnx_file)


def test_onnx_without_manifest_is_refused_with_the_way_to_adopt_it(tmp_path: Path) -> None:
    path = tmp_path / "foreign.onnx"
    ir.save(linear_model(), path)
    with pytest.raises(ArtifactError, match=r"vd\.export\(.*foreign\.onnx.*preprocess="):
        open_artifact(path)


def test_manifest_that_was_edited_is_refused(onnx_file: Path) -> None:
    proto = onnx.load(onnx_file)
    for entry in proto.metadata_props:
        if entry.key == "vitdeploy":
            entry.value = entry.value.replace('"tiny"', '"huge"')
    onnx.save(proto, onnx_file)
    with pytest.raises(ArtifactError, match="does not match its digest"):
        read_onnx(onnx_file)


def test_manifest_of_a_newer_schema_asks_for_an_update(tmp_path: Path) -> None:
    newer = manifest("engine").model_copy(update={"schema_version": 99})
    write_engine(tmp_path / "x.engine", b"plan", newer)
    with pytest.raises(ArtifactError, match="schema 99"):
        open_artifact(tmp_path / "x.engine")


def test_external_data_is_named_by_content_and_the_replaced_file_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_files, "EXTERNAL_DATA_LIMIT", 10)
    monkeypatch.setattr(onnx_files, "EXTERNAL_TENSOR_MINIMUM", 10)
    path = tmp_path / "big.onnx"
    first = write_onnx(path, linear_model(), manifest("onnx"))
    data = tmp_path / f"big.{first.manifest.payload_sha256[:12]}.data"
    assert data.is_file()
    assert read_onnx(path).digest == first.digest
    second = write_onnx(path, linear_model(seed=1), manifest("onnx"))
    assert not data.exists()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        f"big.{second.manifest.payload_sha256[:12]}.data",
        "big.onnx",
    ]
    np.testing.assert_array_equal(
        read_onnx(path).load().graph.initializers["weight"].const_value.numpy(),
        linear_model(seed=1).graph.initializers["weight"].const_value.numpy(),
    )


@pytest.mark.parametrize("location", ["../outside.data", "/outside.data", "inner/../../outside.data"])
def test_external_data_outside_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    weight = helper.make_tensor("w", onnx.TensorProto.FLOAT, [1], [1.0])
    weight.ClearField("float_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    entry = weight.external_data.add()
    entry.key, entry.value = "location", location
    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    result = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Mul", ["x", "w"], ["y"])], "g", [value], [result], [weight])
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "outside.data").write_bytes(bytes(4))
    path = folder / "m.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())
    with pytest.raises(ArtifactError, match="lies outside its folder"):
        onnx_files.load_ir(path)


@pytest.mark.parametrize("length", [4, 44, 1 << 62])
def test_external_data_of_another_length_than_the_shape_takes_is_refused(tmp_path: Path, length: int) -> None:
    model = ir.to_proto(linear_model())
    tensor = next(one for one in model.graph.initializer if one.name == "weight")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": "weights", "offset": 0, "length": length}.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, str(value)
    (tmp_path / "weights").write_bytes(bytes(1000))
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ArtifactError, match=f"'weight' is said to have {length} bytes in 'weights', .* takes 48"):
        load_ir(tmp_path / "model.onnx")


@pytest.fixture
def split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OnnxModel:
    """A model in ``tmp_path/"own"`` whose weights lie in a file of their own."""
    monkeypatch.setattr(onnx_files, "EXTERNAL_DATA_LIMIT", 10)
    monkeypatch.setattr(onnx_files, "EXTERNAL_TENSOR_MINIMUM", 10)
    (tmp_path / "own").mkdir()
    return write_onnx(tmp_path / "own" / "m.onnx", linear_model(), manifest("onnx"))


@pytest.mark.parametrize("linked", ["m.onnx", "*.data", "*"])
def test_a_model_and_its_weights_may_be_links_into_one_folder(split: OnnxModel, tmp_path: Path, linked: str) -> None:
    """As Hugging Face's cache keeps them: each file under the name of its digest, and links that have its name."""
    own, blobs = split.path.parent, tmp_path / "own" if linked == "*.data" else tmp_path / "blobs"
    blobs.mkdir(exist_ok=True)
    for file in sorted(own.glob(linked)):
        blob = blobs / f"blob-of-{file.suffix[1:]}"
        file.rename(blob)
        file.symlink_to(os.path.relpath(blob, own))
    found = read_onnx(split.path)
    assert found.digest == split.digest
    assert found.external_data() == tuple(own.glob("*.data"))
    weight = found.load().graph.initializers["weight"].const_value
    assert weight is not None
    np.testing.assert_array_equal(weight.numpy(), linear_model().graph.initializers["weight"].const_value.numpy())


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (Path.symlink_to, "is a link to '.*elsewhere', outside the folder of the model: refused; put a copy"),
        (lambda data, real: data.symlink_to(os.path.relpath(real, data.parent)), "is a link to '.*elsewhere', outside"),
        (Path.hardlink_to, "has other names on this disk .hard links."),
    ],
    ids=["link", "relative link", "hard link"],
)
def test_weights_that_are_a_link_to_anywhere_are_refused_by_what_they_are(
    split: OnnxModel, tmp_path: Path, place: Callable[[Path, Path], object], said: str
) -> None:
    (data,) = split.external_data()
    data.rename(tmp_path / "elsewhere")
    place(data, tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match=said):
        read_onnx(split.path)


def test_missing_truncated_or_changed_external_data_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_files, "EXTERNAL_DATA_LIMIT", 10)
    monkeypatch.setattr(onnx_files, "EXTERNAL_TENSOR_MINIMUM", 10)
    path = tmp_path / "big.onnx"
    write_onnx(path, linear_model(), manifest("onnx"))
    (data,) = tmp_path.glob("*.data")
    whole = data.read_bytes()
    data.write_bytes(whole[:-4])
    with pytest.raises(ArtifactError, match="truncated"):
        read_onnx(path)
    data.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ArtifactError, match="does not match the digest"):
        read_onnx(path)
    data.unlink()
    with pytest.raises(ArtifactError, match="no such file"):
        read_onnx(path)


def test_checkpoint_round_trip_and_refusals(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.float32(1.5).reshape(())}
    written = write_checkpoint(path, tensors, manifest("checkpoint"))
    opened = open_artifact(path)
    assert opened.manifest == written.manifest
    np.testing.assert_array_equal(opened.tensors()["a"], tensors["a"])  # type: ignore[attr-defined]
    data = bytearray(path.read_bytes())
    data[-2] ^= 4
    path.write_bytes(bytes(data))
    with pytest.raises(ArtifactError, match="edited or damaged"):
        open_artifact(path)
    path.write_bytes(bytes(data)[:-3])
    with pytest.raises(ArtifactError, match="not a safetensors file, or is damaged"):
        open_artifact(path)


def test_engine_needs_its_sidecar_and_its_own_bytes(tmp_path: Path) -> None:
    path = tmp_path / "m.engine"
    write_engine(path, b"a plan", manifest("engine"))
    assert open_artifact(path).manifest.kind == "engine"
    path.write_bytes(b"b plan")
    with pytest.raises(ArtifactError, match="edited or damaged"):
        open_artifact(path)
    sidecar_of(path).unlink()
    with pytest.raises(ArtifactError, match=r"vd\.build"):
        open_artifact(path)


@pytest.mark.parametrize("content", [b"", b"hello, this is no model", b"PK\x03\x04 zip", b"{}"])
def test_files_of_another_kind_are_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "thing.bin"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"thing\.bin") as caught:
        open_artifact(path)
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"there is no file .*nowhere\.onnx"):
        open_artifact(tmp_path / "nowhere.onnx")
    with pytest.raises(ArtifactError, match="is a folder"):
        open_artifact(tmp_path)


def test_failed_write_leaves_the_old_file_and_no_debris(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_atomically(path, "old")

    def interrupted() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ArtifactError, match="disk is full"):
        interrupted()
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.json"]


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_that_fails_leaves_the_old_one_and_no_debris(tmp_path: Path, there: bool) -> None:
    path = tmp_path / "folder"
    if there:
        path.mkdir()
        (path / "old").write_text("old")

    def interrupted() -> None:
        with atomic_folder(path) as temporary:
            (temporary / "half").write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ArtifactError, match="disk is full"):
        interrupted()
    assert [entry.relative_to(tmp_path).as_posix() for entry in sorted(tmp_path.rglob("*"))] == (
        ["folder", "folder/old"] if there else []
    )


def test_a_folder_takes_the_place_of_the_old_one_whole(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").write_text("old")
    with atomic_folder(tmp_path / "folder") as temporary:
        (temporary / "new").write_text("new")
    assert [entry.relative_to(tmp_path).as_posix() for entry in sorted(tmp_path.rglob("*"))] == ["folder", "folder/new"]


def test_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_atomically(path, "old")
    script = (
        "import os, signal, sys; from pathlib import Path; from vitdeploy.artifacts import atomic_path\n"
        "with atomic_path(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], env={**os.environ}, check=False)
    assert done.returncode < 0
    assert path.read_text() == "old"


def test_new_files_follow_the_umask(tmp_path: Path) -> None:
    previous = os.umask(0o027)
    try:
        write_atomically(tmp_path / "x.json", json.dumps({}))
    finally:
        os.umask(previous)
    assert (tmp_path / "x.json").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_files_of_a_folder_have_the_mode_of_the_umask_whoever_wrote_them(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        with atomic_folder(tmp_path / "bundle") as folder:
            save_tensors(folder / "golden.safetensors", {"a": np.ones(2, np.float32)})
            (folder / "private.json").touch(0o600)
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in sorted((tmp_path / "bundle").iterdir())] == [mode, mode]


@pytest.mark.parametrize("broken", [0, 1, 2])
def test_of_files_that_belong_together_a_full_disk_changes_none(tmp_path: Path, broken: int) -> None:
    paths = [tmp_path / name for name in ("a.npz", "b.parquet", "c.json")]
    for path in paths:
        path.write_text("old")

    def interrupted() -> None:
        with FilesTogether() as files:
            for index, path in enumerate(paths):
                with files.path(path) as temporary:
                    temporary.write_text("new")
                    if index == broken:
                        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ArtifactError, match=f"the disk is full: .*{paths[broken].name}"):
        interrupted()
    assert sorted(tmp_path.iterdir()) == paths
    assert {path.read_text() for path in paths} == {"old"}


def test_a_file_that_could_not_be_written_takes_no_place_though_others_go_on(tmp_path: Path) -> None:
    with FilesTogether() as files:
        files.write(tmp_path / "a", "whole")
        with suppress(ArtifactError), files.path(tmp_path / "b"):
            raise OSError(errno.ENOSPC, "No space left on device")
        assert not (tmp_path / "a").exists()
    assert [path.read_text() for path in tmp_path.iterdir()] == ["whole"]
