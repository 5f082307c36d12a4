from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from machine import be, fake_gpu, machine
from notes import Notes
from onnx_text import parse
from small_vit import write_small_vit

from vitdeploy.artifacts import read_engine, read_onnx, sidecar_of, write_onnx
from vitdeploy.backends import get_backend
from vitdeploy.errors import ArtifactError, BackendError, BuildError, UsageError
from vitdeploy.records import Manifest, ModelSpec
from vitdeploy.sessions import BuildTarget
from vitdeploy.stages.build import BuildRequest, build, note_default

needs_rtx = pytest.mark.skipif(
    get_backend("tensorrt-rtx").unavailable() is not None,
    reason="tensorrt-rtx is an extra: pip install 'vitdeploy[tensorrt-rtx]'",
)
FOR_89 = BuildTarget(compute_capabilities=("8.9",))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory):
    return write_small_vit(tmp_path_factory.mktemp("model") / "vit.onnx", "fp16")


def key_of(model, backend=None, target=BuildTarget()) -> str:
    return BuildRequest.open(model, "unwritten.engine", backend=backend, target=target).key


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    be(monkeypatch, machine(None), tensorrt_rtx=get_backend("tensorrt-rtx").version())


@needs_rtx
def test_build_takes_rtx_where_tensorrt_is_not_installed_and_says_so(no_gpu, tmp_path: Path, model) -> None:
    notes = Notes()
    engine = build(model.path, tmp_path / "vit.engine", target=FOR_89, progress=notes)
    assert engine.manifest.build is not None
    assert engine.manifest.build.backend == "tensorrt-rtx"
    assert notes.lines == [
        "building with tensorrt-rtx (tensorrt is not installed); backend= chooses another",
        "vit.engine was not run here: there is no NVIDIA GPU here, and tensorrt-rtx engines run on nothing else",
    ]
    assert read_engine(tmp_path / "vit.engine").manifest == engine.manifest


@needs_rtx
def test_key_of_the_engine_is_the_one_that_freshness_asks_for(no_gpu, tmp_path: Path, model) -> None:
    engine = build(str(model.path), str(tmp_path / "vit.engine"), target=FOR_89)
    assert engine.manifest.key == key_of(model, target=FOR_89)
    assert engine.manifest.key == key_of(model, "tensorrt-rtx", FOR_89)
    assert engine.manifest.key != key_of(model)


def test_freshness_loads_no_tensorrt(monkeypatch: pytest.MonkeyPatch, model) -> None:
    be(monkeypatch, machine(None), tensorrt_rtx="1.7.1.116")
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    key = key_of(model, "tensorrt-rtx")
    be(monkeypatch, machine(None), tensorrt_rtx="1.8.0.1")
    assert key_of(model, "tensorrt-rtx") != key


def test_engine_is_stale_on_another_gpu_unless_gpus_are_named(monkeypatch: pytest.MonkeyPatch, model) -> None:
    def keys(capability):
        be(monkeypatch, machine(capability), tensorrt_rtx="1.7.1.116")
        return key_of(model, "tensorrt-rtx"), key_of(model, "tensorrt-rtx", FOR_89)

    here, named = keys("8.9")
    elsewhere, named_elsewhere = keys("12.0")
    assert here != elsewhere
    assert named == named_elsewhere


def test_tensorrt_is_taken_where_it_is_installed_and_has_a_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model
) -> None:
    fake_gpu(monkeypatch, "10.16")
    notes = Notes()
    engine = build(model, tmp_path / "vit.engine", progress=notes)
    assert engine.manifest.build is not None
    assert engine.manifest.build.backend == "tensorrt"
    assert notes.lines == [
        "building with tensorrt (a GPU is here and tensorrt is 10.16.0.72); backend= chooses another"
    ]


def test_tensorrt_without_a_gpu_gives_way_to_rtx(monkeypatch: pytest.MonkeyPatch, model) -> None:
    be(monkeypatch, machine(None), tensorrt="10.16.0", tensorrt_rtx="1.7.1.116")
    notes = Notes()
    request = BuildRequest.open(model, "unwritten.engine")
    assert (request.backend, request.is_default) == ("tensorrt-rtx", True)
    note_default(request.backend, notes)
    assert "tensorrt is installed, but needs a GPU to build on" in notes.lines[0]


def test_without_any_builder_both_packages_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model) -> None:
    be(monkeypatch, machine(None))
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(
        BackendError, match=r"pip install 'vitdeploy\[tensorrt\]' .* 'vitdeploy\[tensorrt-rtx\]'"
    ) as caught:
        build(model, tmp_path / "vit.engine")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_named_backend_that_is_absent_gives_its_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model, name: str
) -> None:
    be(monkeypatch, machine(None))
    monkeypatch.setitem(sys.modules, name.replace("-", "_"), None)
    with pytest.raises(BackendError, match=rf"{name} is not installed: pip install 'vitdeploy\[{name}\]'"):
        build(model, tmp_path / "vit.engine", backend=name)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "null", "TensorRT"])
def test_backend_that_builds_nothing_is_a_usage_error(tmp_path: Path, model, name: str) -> None:
    with pytest.raises(UsageError, match=rf"backend '{name}' builds no engine, expected one of tensorrt, tensorrt-rtx"):
        build(model, tmp_path / "vit.engine", backend=name)


@needs_rtx
def test_graph_for_another_target_is_noted(no_gpu, tmp_path: Path, model) -> None:
    other = type(model)(model.path, model.manifest.model_copy(update={"target": "onnxruntime"}), model.golden)
    notes = Notes()
    build(other, tmp_path / "vit.engine", target=FOR_89, progress=notes)
    assert any("was quantized for onnxruntime, whose remainder is FP32" in line for line in notes.lines)


def test_a_graph_with_unsigned_activations_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    graph = parse(
        "q = QuantizeLinear (input, s, z) d = DequantizeLinear (q, s, z) logits = MatMul (d, w)",
        s=np.float32(0.1), z=np.uint8(128), w=np.eye(4, dtype=np.float32),
    )  # fmt: skip
    manifest = Manifest(kind="onnx", model=ModelSpec(family="vit", name="cpu"), precision="int8", target="onnxruntime")
    model = write_onnx(tmp_path / "cpu.onnx", graph, manifest)
    with pytest.raises(BuildError, match=r"unsigned activations that TensorRT does not take: .*target='tensorrt'"):
        build(model, tmp_path / "cpu.engine", backend="tensorrt-rtx")
    assert [path.name for path in tmp_path.iterdir()] == ["cpu.onnx"]


@needs_rtx
@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        (BuildTarget(compute_capabilities=("6.1",)), BuildError, "compute capability '6.1', expected some of"),
        (BuildTarget(batch=(1, 0, 1)), UsageError, "batch '1:0:1': expected"),
    ],
)
def test_bad_target_writes_nothing_and_keeps_what_was_there(
    no_gpu, tmp_path: Path, model, target: BuildTarget, error: type[Exception], message: str
) -> None:
    old = tmp_path / "vit.engine"
    old.write_bytes(b"old")
    sidecar_of(old).write_text('{"manifest_sha256": "0"}')
    with pytest.raises(error, match=message):
        build(model, old, target=target)
    assert old.read_bytes() == b"old"
    assert sorted(tmp_path.iterdir()) == [old, sidecar_of(old)]


def test_bad_model_is_told_before_anything_is_built(tmp_path: Path, model) -> None:
    with pytest.raises(ArtifactError, match=r"there is no file '.*none.onnx'"):
        build(tmp_path / "none.onnx", tmp_path / "vit.engine")
    half = tmp_path / "half.onnx"
    half.write_bytes(model.path.read_bytes()[: model.path.stat().st_size // 2])
    with pytest.raises(ArtifactError, match="is not an ONNX file, or is damaged"):
        build(half, tmp_path / "vit.engine")
    assert not (tmp_path / "vit.engine").exists()


def test_place_that_cannot_be_written_is_told_before_anything_is_built(tmp_path: Path, model) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ArtifactError, match=r"cannot write .*file/vit.engine': Not a directory"):
        build(model, tmp_path / "file" / "vit.engine")
    with pytest.raises(ArtifactError, match="is a folder, expected the name of an engine file"):
        build(model, tmp_path)


@needs_rtx
def test_folders_of_the_output_are_made(no_gpu, tmp_path: Path, model) -> None:
    engine = build(model, tmp_path / "new" / "deep" / "vit.engine", target=FOR_89)
    assert read_engine(engine.path).digest == engine.digest


@needs_rtx
def test_engine_names_its_parent_and_keeps_what_the_graph_says(no_gpu, tmp_path: Path, model) -> None:
    manifest = build(model, tmp_path / "vit.engine", target=FOR_89).manifest
    onnx = read_onnx(model.path).manifest
    assert manifest.kind == "engine"
    assert manifest.parents == {"onnx": onnx.identity}
    assert (manifest.model, manifest.preprocess, manifest.precision) == (onnx.model, onnx.preprocess, "fp16")
    assert manifest.producer.startswith("vitdeploy ")
    assert manifest.environment is not None
    assert manifest.environment.gpu is None
