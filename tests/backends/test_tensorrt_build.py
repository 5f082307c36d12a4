"""Real builds with TensorRT-RTX, which needs no GPU for them; and the release-dependent parts with fakes."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import onnx
import pytest
from machine import be, fake_gpu, machine
from onnx import TensorProto, helper
from small_vit import small_vit, write_graph, write_small_vit
from tensorrt_signatures import releases

from vitdeploy.artifacts import OnnxModel, read_engine
from vitdeploy.backends import get_backend
from vitdeploy.backends.tensorrt_monitor import listening_logger
from vitdeploy.backends.tensorrt_rtx import enum_name, supported_capabilities
from vitdeploy.errors import BuildError, UsageError
from vitdeploy.records import Precision
from vitdeploy.sessions import BuildTarget

pytestmark = pytest.mark.slow

needs_rtx = pytest.mark.skipif(
    get_backend("tensorrt-rtx").unavailable() is not None,
    reason="tensorrt-rtx is an extra: pip install 'vitdeploy[tensorrt-rtx]'",
)
FOR_89 = BuildTarget(compute_capabilities=("8.9",))


class Recorder:
    """A progress that keeps what it is told, and from which thread."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.advanced: list[float] = []
        self.texts: list[str] = []
        self.threads: set[str] = set()
        self.total: float | None = None

    def task(self, description, total=None):
        self.total = total
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        return None

    def advance(self, steps: float = 1.0) -> None:
        self.threads.add(threading.current_thread().name)
        self.advanced.append(steps)

    def describe(self, text) -> None:
        self.texts.append(text)

    def note(self, text) -> None:
        self.notes.append(text)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine, told to have no GPU: what is built here is not run."""
    backend = get_backend("tensorrt-rtx")
    be(monkeypatch, machine(None), tensorrt_rtx=backend.version())


@needs_rtx
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "fp8"])
def test_graph_of_each_precision_builds_for_a_gpu_that_is_not_here(
    no_gpu: None, tmp_path: Path, precision: Precision
) -> None:
    model = write_small_vit(tmp_path / "vit.onnx", precision)
    progress = Recorder()
    engine = get_backend("tensorrt-rtx").build(model, tmp_path / "vit.engine", FOR_89, progress)
    again = read_engine(engine.path)
    build = again.manifest.build
    assert build is not None
    assert (build.backend, build.batch, build.compute_capabilities) == ("tensorrt-rtx", (1, 1, 1), ("8.9",))
    assert build.version == get_backend("tensorrt-rtx").version()
    assert (build.inspected, build.precision_by_layer, build.gpu) == (False, None, None)
    assert build.reason == "there is no NVIDIA GPU here, and tensorrt-rtx engines run on nothing else"
    assert [check.status for check in again.manifest.checks] == ["unchecked", "unchecked"]
    assert all(check.detail == build.reason for check in again.manifest.checks)
    assert again.manifest.precision == precision
    assert again.manifest.parents == {"onnx": model.digest}
    assert bool(build.notes) == (precision == "int8")
    assert progress.notes == list(build.notes)
    assert again.path.stat().st_size > 100_000


@needs_rtx
def test_engine_carries_the_golden_samples_of_its_graph(no_gpu: None, tmp_path: Path) -> None:
    model = write_small_vit(tmp_path / "vit.onnx")
    engine = get_backend("tensorrt-rtx").build(model, tmp_path / "vit.engine", FOR_89)
    golden = read_engine(engine.path).golden
    assert model.golden is not None
    assert golden is not None
    assert (golden.pixels == model.golden.pixels).all()
    assert (golden.outputs == model.golden.outputs).all()


@needs_rtx
def test_one_engine_serves_several_gpus(no_gpu: None, tmp_path: Path, model: OnnxModel) -> None:
    target = BuildTarget(compute_capabilities=("12.0", "8.6", "8.9"))
    one = get_backend("tensorrt-rtx").build(model, tmp_path / "one.engine", FOR_89)
    several = get_backend("tensorrt-rtx").build(model, tmp_path / "several.engine", target)
    assert several.manifest.build is not None
    assert several.manifest.build.compute_capabilities == ("8.6", "8.9", "12.0")
    assert several.path.stat().st_size > one.path.stat().st_size
    assert several.manifest.key != one.manifest.key


@needs_rtx
def test_without_a_gpu_and_without_names_every_gpu_from_ampere_on_is_served(
    no_gpu: None, tmp_path: Path, model: OnnxModel
) -> None:
    engine = get_backend("tensorrt-rtx").build(model, tmp_path / "vit.engine", BuildTarget())
    assert engine.manifest.build is not None
    served = engine.manifest.build.compute_capabilities
    assert {"8.6", "8.9", "12.0"} <= set(served)
    assert not {"7.5", "8.0"} & set(served), "neither is in the support matrices of TensorRT-RTX to 1.5 without a name"


@needs_rtx
def test_key_depends_on_what_decides_the_engine_and_on_nothing_else(
    no_gpu: None, tmp_path: Path, model: OnnxModel
) -> None:
    backend = get_backend("tensorrt-rtx")

    def key(name: str, target: BuildTarget) -> str:
        return backend.build(model, tmp_path / name, target).manifest.key

    same = key("a.engine", FOR_89)
    assert key("b.engine", FOR_89) == same
    others = {
        key("a.engine", BuildTarget(compute_capabilities=("8.9",), batch=(1, 2, 4))),
        key("a.engine", BuildTarget(compute_capabilities=("8.9",), tf32=True)),
        key("a.engine", BuildTarget(compute_capabilities=("8.6",))),
    }
    assert len(others | {same}) == 4


@needs_rtx
def test_weights_beside_the_graph_are_found(no_gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vitdeploy.artifacts import onnx_model

    monkeypatch.setattr(onnx_model, "EXTERNAL_DATA_LIMIT", 1)
    folder = tmp_path / "mödel folder"
    folder.mkdir()
    model = write_small_vit(folder / "vit.onnx", "fp16")
    assert len(model.external_data()) == 1
    engine = get_backend("tensorrt-rtx").build(model, tmp_path / "vit.engine", FOR_89)
    inside = get_backend("tensorrt-rtx").build(
        write_small_vit(tmp_path / "vit.onnx", "fp16"), tmp_path / "other.engine", FOR_89
    )
    assert abs(engine.path.stat().st_size - inside.path.stat().st_size) < 10_000


@needs_rtx
@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        (
            BuildTarget(compute_capabilities=("9.9",)),
            BuildError,
            r"compute capability '9.9', expected some of 7.5, 8.0, .*12.0",
        ),
        (
            BuildTarget(compute_capabilities=("8.9", "sm_86")),
            BuildError,
            r"compute capability 'sm_86', expected some of",
        ),
        (BuildTarget(compute_capabilities=("8.9", "8.9")), BuildError, r"compute capability '8.9' is named twice"),
        (BuildTarget(compute_capabilities=("NONE",)), BuildError, r"compute capability 'NONE', expected"),
        (BuildTarget(batch=(4, 2, 8)), UsageError, r"batch '4:2:8': expected 1 ≤ MIN ≤ OPT ≤ MAX"),
        (BuildTarget(batch=(0, 1, 1)), UsageError, r"batch '0:1:1': expected"),
        (BuildTarget(batch=()), UsageError, r"no batch size to build for"),
        (BuildTarget(batch=((1, 1, 1), (1, 1, 1))), UsageError, r"batch '1' and '1': expected each profile once"),
        (BuildTarget(optimization_level=9), UsageError, r"optimization level 9: expected 0 to 5"),
        (BuildTarget(workspace_bytes=0), UsageError, r"workspace of 0 bytes: expected at least 1"),
        (BuildTarget(dla_core=-1), UsageError, r"DLA core -1: expected 0 or more"),
        (
            BuildTarget(hardware_compatibility="turing"),  # type: ignore[arg-type]
            UsageError,
            r"'turing': expected one of none, ampere-plus",
        ),
        (
            BuildTarget(profiling="all"),  # type: ignore[arg-type]
            UsageError,
            r"profiling 'all': expected one of detailed, layer-names, none",
        ),
        (BuildTarget(hardware_compatibility="ampere-plus"), BuildError, r"no hardware_compatibility=: name GPUs"),
        (BuildTarget(version_compatible=True), BuildError, r"tensorrt-rtx has no version_compatible=True"),
        (BuildTarget(optimization_level=5), BuildError, r"tensorrt-rtx has no optimization_level="),
        (BuildTarget(dla_core=0), BuildError, r"tensorrt-rtx has no dla_core=: use backend='tensorrt'"),
        (BuildTarget(timing_cache=Path("x")), BuildError, r"tensorrt-rtx has no timing_cache="),
        (
            BuildTarget(strip=True),
            BuildError,
            r"tensorrt-rtx needs a GPU to build with strip=True, and there is none here",
        ),
        (BuildTarget(refit=True), BuildError, r"tensorrt-rtx needs a GPU to build with refit=True"),
    ],
)
def test_refused_target_is_one_line_and_writes_nothing(
    no_gpu: None, tmp_path: Path, model: OnnxModel, target: BuildTarget, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        get_backend("tensorrt-rtx").build(model, tmp_path / "vit.engine", target)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def with_node(node, output_type=TensorProto.FLOAT) -> onnx.ModelProto:
    """A graph whose second node is ``node``: ``hidden`` → ``logits``."""
    first = helper.make_node("Relu", ["input"], ["hidden"], name="blocks.0/relu")
    image = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 1, 8, 8])
    logits = helper.make_tensor_value_info("logits", output_type, None)
    weight = helper.make_tensor("weight", TensorProto.FLOAT, [7, 7], [0.0] * 49)
    half = helper.make_tensor("half", TensorProto.FLOAT16, [1], [1.0])
    graph = helper.make_graph([first, node], "g", [image], [logits], [weight, half])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("acme", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


@needs_rtx
@pytest.mark.parametrize(
    ("node", "message"),
    [
        (
            helper.make_node("MatMul", ["hidden", "weight"], ["logits"], name="blocks.3.mlp/fc1"),
            r"node 'blocks.3.mlp/fc1' \(MatMul\): .*last dimension of input0 = 8 .* must match",
        ),
        (
            helper.make_node("Add", ["hidden", "half"], ["logits"], name="blocks.3/add"),
            r"node 'blocks.3/add' \(Add\): .*must have same input types. .* Float and Half",
        ),
        (
            helper.make_node("StringNormalizer", ["hidden"], ["logits"], name="blocks.3/text"),
            r"node 'blocks.3/text' \(StringNormalizer\): TensorRT does not support this operator",
        ),
        (
            helper.make_node("Warp", ["hidden"], ["logits"], name="blocks.3/warp", domain="acme"),
            r"node 'blocks.3/warp' \(Warp\): TensorRT has neither this operator nor a plugin of that name",
        ),
    ],
)
def test_refused_node_is_named_with_its_operator(no_gpu: None, tmp_path: Path, node: Any, message: str) -> None:
    model = write_graph(tmp_path / "model.onnx", with_node(node), golden=False)
    with pytest.raises(BuildError, match=message) as caught:
        get_backend("tensorrt-rtx").build(model, tmp_path / "vit.engine", FOR_89)
    text = str(caught.value)
    assert text.startswith(f"tensorrt-rtx cannot build '{model.path}': node 'blocks.3")
    assert "\n" not in text
    assert "_src" not in text
    assert "Error Code" not in text
    assert not (tmp_path / "vit.engine").exists()


@needs_rtx
def test_fp8_for_an_older_gpu_says_which_gpus_have_it(no_gpu: None, tmp_path: Path) -> None:
    model = write_small_vit(tmp_path / "vit.onnx", "fp8")
    with pytest.raises(BuildError, match=r"fp8_e4m3: FP8 needs compute capability 8.9 or higher") as caught:
        get_backend("tensorrt-rtx").build(model, tmp_path / "vit.engine", BuildTarget(compute_capabilities=("8.6",)))
    assert "\n" not in str(caught.value)


@needs_rtx
def test_image_size_must_be_fixed(no_gpu: None, tmp_path: Path) -> None:
    proto = with_node(helper.make_node("Neg", ["hidden"], ["logits"], name="n"))
    proto.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    model = write_graph(tmp_path / "model.onnx", proto, golden=False)
    with pytest.raises(BuildError, match=r"shape \(-1, 1, -1, 8\), but only the batch may be dynamic"):
        get_backend("tensorrt-rtx").build(model, tmp_path / "vit.engine", FOR_89)


@needs_rtx
def test_file_that_vanished_is_one_line(no_gpu: None, tmp_path: Path) -> None:
    model = write_small_vit(tmp_path / "vit.onnx")
    model.path.unlink()
    with pytest.raises(BuildError, match=r"tensorrt-rtx cannot parse '.*vit.onnx'") as caught:
        get_backend("tensorrt-rtx").build(model, tmp_path / "vit.engine", FOR_89)
    assert "\n" not in str(caught.value)


@needs_rtx
def test_nothing_is_printed_by_a_build_that_fails(
    no_gpu: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = write_graph(
        tmp_path / "m.onnx", with_node(helper.make_node("Warp", ["hidden"], ["logits"], domain="acme")), golden=False
    )
    with pytest.raises(BuildError):
        get_backend("tensorrt-rtx").build(model, tmp_path / "vit.engine", FOR_89)
    assert capfd.readouterr() == ("", "")


@needs_rtx
def test_progress_ends_at_the_whole_and_is_drawn_by_the_callers_thread(
    no_gpu: None, tmp_path: Path, model: OnnxModel
) -> None:
    progress = Recorder()
    get_backend("tensorrt-rtx").build(model, tmp_path / "vit.engine", FOR_89, progress)
    assert progress.total == 1.0
    assert sum(progress.advanced) == pytest.approx(1.0)
    assert min(progress.advanced) >= 0
    assert progress.threads == {threading.current_thread().name}


@needs_rtx
def test_interrupt_ends_the_build_and_writes_nothing(no_gpu: None, tmp_path: Path) -> None:
    model = write_small_vit(tmp_path / "deep.onnx", "fp16", depth=12)

    class Impatient(Recorder):
        def describe(self, text) -> None:
            raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        get_backend("tensorrt-rtx").build(model, tmp_path / "vit.engine", FOR_89, Impatient())
    assert time.monotonic() - start < 60
    assert [thread.name for thread in threading.enumerate() if thread.name == "vitdeploy-build"] == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep.onnx"]


@needs_rtx
def test_supported_capabilities_are_read_from_the_library() -> None:
    backend: Any = get_backend("tensorrt-rtx")
    trt = backend.library()
    known = supported_capabilities(trt)
    assert {"7.5", "8.6", "8.9", "12.0"} <= set(known)
    assert known == tuple(sorted(known, key=lambda text: [int(part) for part in text.split(".")]))
    assert all(hasattr(trt.ComputeCapability, enum_name(capability)) for capability in known)


@needs_rtx
def test_one_logger_serves_every_build_of_a_process() -> None:
    backend: Any = get_backend("tensorrt-rtx")
    trt = backend.library()
    assert listening_logger(trt)[0] is listening_logger(trt)[0]


@pytest.mark.parametrize("release", [release for release in releases() if release != "10.4"] + ["rtx"])
def test_tf32_is_off_unless_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: OnnxModel, release: str
) -> None:
    backend = get_backend("tensorrt-rtx" if release == "rtx" else "tensorrt")
    record = fake_gpu(monkeypatch, release).trt.record
    backend.build(model, tmp_path / "a.engine", BuildTarget(workspace_bytes=1 << 28))
    assert record.cleared == ["TF32"]
    assert record.set == [("WORKSPACE", 1 << 28)]
    backend.build(model, tmp_path / "b.engine", BuildTarget(tf32=True))
    assert record.cleared == ["TF32"]
    assert record.set[1:] == ["TF32"]


def test_tensorrt_builds_for_the_gpu_that_is_here_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: OnnxModel
) -> None:
    fake_gpu(monkeypatch, "10.16")
    backend = get_backend("tensorrt")
    engine = backend.build(model, tmp_path / "a.engine", FOR_89)
    assert engine.manifest.build is not None
    assert engine.manifest.build.gpu == "NVIDIA L4"
    assert engine.manifest.build.compute_capabilities == ("8.9",)
    with pytest.raises(BuildError, match=r"for the GPU that is here \(8.9\), not for compute capability '8.6'"):
        backend.build(model, tmp_path / "b.engine", BuildTarget(compute_capabilities=("8.6",)))
    fake_gpu(monkeypatch, "10.16", None)
    with pytest.raises(
        BuildError, match=r"there is none here: build there, or ahead of time with backend='tensorrt-rtx'"
    ):
        backend.build(model, tmp_path / "c.engine", BuildTarget())
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".engine", ".json"]


def test_option_of_a_later_release_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: OnnxModel
) -> None:
    fake_gpu(monkeypatch, "10.3")
    target = BuildTarget(hardware_compatibility="same-compute-capability")
    with pytest.raises(BuildError, match=r"no hardware compatibility 'same-compute-capability': it came with TensorRT"):
        get_backend("tensorrt").build(model, tmp_path / "a.engine", target)
    fake_gpu(monkeypatch, "10.9")
    get_backend("tensorrt").build(model, tmp_path / "a.engine", target)


def test_rtx_does_not_serve_a_gpu_that_it_does_not_know(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: OnnxModel
) -> None:
    fake_gpu(monkeypatch, "rtx", "11.0")
    backend = get_backend("tensorrt-rtx")
    with pytest.raises(BuildError, match=r"does not serve this GPU \(compute capability '11.0'.*backend='tensorrt'"):
        backend.build(model, tmp_path / "a.engine", BuildTarget())
    engine = backend.build(model, tmp_path / "a.engine", FOR_89)
    assert engine.manifest.build is not None
    assert engine.manifest.build.reason == "was built for compute capability 8.9, here is 11.0 (NVIDIA Thor)"


def test_library_that_cannot_be_loaded_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tensorrt.py").write_text("raise OSError('libnvinfer.so.10:\\ncannot open shared object file')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    reason = get_backend("tensorrt").unavailable() or ""
    assert reason.startswith(
        "tensorrt cannot be loaded (libnvinfer.so.10: cannot open shared object file): pip install"
    )
    assert get_backend("tensorrt").can_run() == reason


def test_on_a_jetson_tensorrt_comes_from_jetpack(monkeypatch: pytest.MonkeyPatch) -> None:
    be(monkeypatch, machine("8.7", jetpack="6.2 (L4T 36.4.3)"))
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert "sudo apt-get install python3-libnvinfer" in (get_backend("tensorrt").unavailable() or "")


@needs_rtx
def test_full_disk_leaves_the_old_engine_whole(
    no_gpu: None, tmp_path: Path, model: OnnxModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = get_backend("tensorrt-rtx")
    old = backend.build(model, tmp_path / "vit.engine", FOR_89)
    kept = [path.read_bytes() for path in (old.path, tmp_path / "vit.engine.json")]
    real = os.fsync
    calls = []

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    from vitdeploy.errors import ArtifactError

    with pytest.raises(ArtifactError, match="the disk is full"):
        backend.build(model, old.path, BuildTarget(compute_capabilities=("8.6",)))
    monkeypatch.undo()
    assert [path.read_bytes() for path in (old.path, tmp_path / "vit.engine.json")] == kept
    assert sorted(path.name for path in tmp_path.iterdir()) == ["vit.engine", "vit.engine.json"]
    read_engine(old.path)


def test_small_vit_is_a_valid_graph_in_every_precision() -> None:
    for precision in ("fp32", "fp16", "int8", "fp8"):
        onnx.checker.check_model(small_vit(precision), full_check=True)
