"""The session and the build on a fake GPU, with the names that each release has."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conformance import SessionConformance
from fake_cuda import COPY_MS, LAUNCH_MS, FakeRuntime
from machine import be, fake_gpu, machine
from small_vit import images, write_small_vit
from tensorrt_signatures import releases

from vitdeploy.artifacts import Engine, OnnxModel, read_engine
from vitdeploy.backends import get_backend
from vitdeploy.backends.cuda import cuda_problem, runtime_module
from vitdeploy.errors import BackendError, BuildError
from vitdeploy.records import Precision
from vitdeploy.sessions import BuildTarget, SessionOptions

pytestmark = pytest.mark.slow

ANY_BATCH = BuildTarget(batch=(1, 2, 8))
LIBRARIES = [release for release in releases() if release != "10.4"] + ["rtx"]  # 10.4 is refused


def backend_of(release: str):
    return get_backend("tensorrt-rtx" if release == "rtx" else "tensorrt")


@pytest.fixture(params=["10.3", "10.16", "11.4", "rtx"])
def release(request: pytest.FixtureRequest):
    return request.param


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, release):
    return fake_gpu(monkeypatch, release)


class TestEngineSession(SessionConformance):
    @pytest.fixture
    def session(self, gpu, release, model: OnnxModel, engine_path: Path):
        engine = backend_of(release).build(model, engine_path, ANY_BATCH)
        with backend_of(release).open(engine) as session:
            yield session
        assert not gpu.cuda.alive


class TestEngineSessionWithCudaGraph(SessionConformance):
    @pytest.fixture
    def session(self, gpu, release, model: OnnxModel, engine_path: Path):
        engine = backend_of(release).build(model, engine_path, ANY_BATCH)
        with backend_of(release).open(engine, SessionOptions(cuda_graph=True)) as session:
            yield session
        assert not gpu.cuda.alive


@pytest.mark.parametrize("release", LIBRARIES)
def test_every_release_builds_checks_and_runs_an_engine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, release: str
) -> None:
    fakes = fake_gpu(monkeypatch, release)
    model = write_small_vit(tmp_path / "vit.onnx", "fp16")
    engine = backend_of(release).build(model, tmp_path / "vit.engine", BuildTarget())
    build = engine.manifest.build
    assert build is not None
    assert build.inspected
    assert build.precision_by_layer == {"fp16": 14}
    assert {check.name: check.status for check in engine.manifest.checks} == {
        "golden": "passed",
        "layer precision": "passed",
    }
    assert not fakes.cuda.alive
    with backend_of(release).open(read_engine(engine.path)) as session:
        assert session.inputs["input"].shape == (1, 1, 8, 8)
        assert session.run({"input": images(1)})["logits"].shape == (1, 10)


def test_device_time_leaves_the_copies_and_the_profilers_names_out(
    gpu, release, model: OnnxModel, engine_path: Path
) -> None:
    engine = backend_of(release).build(model, engine_path, ANY_BATCH)
    for cuda_graph in (False, True):
        with backend_of(release).open(engine, SessionOptions(cuda_graph=cuda_graph)) as session:
            before = gpu.cuda.clock
            times = session.time({"input": images(2)}, warmup=3, iterations=5, scope="device")
            np.testing.assert_array_equal(times, np.full(5, LAUNCH_MS))
            assert gpu.cuda.clock - before == COPY_MS + 8 * LAUNCH_MS
            assert session.launch_mode(2) == ("cuda-graph" if cuda_graph else "stream")
            assert session.enqueue_ms(2) is not None
            assert session.enqueue_ms(4) is None


def test_end_to_end_time_has_both_copies(gpu, release, model: OnnxModel, engine_path: Path) -> None:
    engine = backend_of(release).build(model, engine_path, ANY_BATCH)
    with backend_of(release).open(engine) as session:
        before = gpu.cuda.clock
        session.time({"input": images(2)}, warmup=1, iterations=4, scope="end_to_end")
        assert gpu.cuda.clock - before == 5 * (2 * COPY_MS + LAUNCH_MS)


def test_each_batch_size_has_a_graph_of_its_own_which_is_kept(
    gpu, release, model: OnnxModel, engine_path: Path, expected: Callable[[Any], Any]
) -> None:
    engine = backend_of(release).build(model, engine_path, ANY_BATCH)
    with backend_of(release).open(engine) as session:
        gpu.cuda.calls.clear()
        for batch in (2, 2, 3, 2, 3, 3, 2):
            feed = images(batch, seed=batch)
            np.testing.assert_allclose(session.run({"input": feed})["logits"], expected(feed), atol=1e-5)
        captured = 0 if release == "rtx" else 2  # TensorRT-RTX records by itself
        assert gpu.cuda.calls.count("cudaGraphInstantiate") == captured
        assert gpu.cuda.calls.count("cudaGraphLaunch") == (0 if release == "rtx" else 5)
        assert session.launch_mode(2) == session.launch_mode(3) == "cuda-graph"
        assert session.notes == ()


def test_buffers_are_kept_while_the_shape_stays(gpu, release, model: OnnxModel, engine_path: Path) -> None:
    engine = backend_of(release).build(model, engine_path, ANY_BATCH)
    with backend_of(release).open(engine) as session:
        session.run({"input": images(4)})
        session.run({"input": images(2)})
        gpu.cuda.calls.clear()
        for batch in (4, 2, 4):
            session.run({"input": images(batch, seed=1)})
        assert not {"cudaMalloc", "cudaMallocHost", "cudaFree"} & set(gpu.cuda.calls)


def test_batch_outside_the_profile_names_the_range_and_the_rebuild(
    gpu, release, model: OnnxModel, engine_path: Path
) -> None:
    backend = backend_of(release)
    with (
        backend.open(backend.build(model, engine_path, ANY_BATCH)) as session,
        pytest.raises(BackendError, match=r"built for batch 1:2:8, got 9: build it again with vd\.build.*\(1, 2, 9\)"),
    ):
        session.run({"input": images(9)})
    with (
        backend.open(backend.build(model, engine_path, BuildTarget())) as session,
        pytest.raises(BackendError, match=r"built for batch 1, got 2: build it again with vd\.build.*\(1, 1, 2\)"),
    ):
        session.run({"input": images(2)})


def test_graph_of_one_batch_size_runs_at_that_size(gpu, release, tmp_path: Path) -> None:
    backend = backend_of(release)
    model = write_small_vit(tmp_path / "vit.onnx", batch=4)
    with pytest.raises(
        BuildError, match=r"has the fixed batch 4, and the target has '1': build with batch=\(4, 4, 4\)"
    ):
        backend.build(model, tmp_path / "vit.engine", BuildTarget())
    engine = backend.build(model, tmp_path / "vit.engine", BuildTarget(batch=(4, 4, 4)))
    assert {check.status for check in engine.manifest.checks} == {"passed"}
    with backend.open(engine) as session:
        assert session.inputs["input"].shape == (4, 1, 8, 8)


def test_wrong_engine_is_not_written(gpu, release, model: OnnxModel, engine_path: Path) -> None:
    engine_path.write_bytes(b"the old engine")
    gpu.trt.record.fault = "zeros"
    with pytest.raises(
        BuildError, match=r"was not written, its golden check failed: max \|Δlogit\| is .* at most 0.001"
    ):
        backend_of(release).build(model, engine_path, BuildTarget())
    assert engine_path.read_bytes() == b"the old engine"
    assert not gpu.cuda.alive


@pytest.mark.parametrize("wrong", ["fp16", "dequantized", "fp32"])
def test_engine_that_lost_its_precision_is_not_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wrong: str
) -> None:
    """``dequantized`` has as many kernels that read INT8 as the graph has products, and computes all in FP16."""
    gpu = fake_gpu(monkeypatch, "10.16")
    gpu.trt.record.precision = wrong
    model = write_small_vit(tmp_path / "vit.onnx", "int8")
    runs_in = "fp32" if wrong == "fp32" else "fp16"
    wanted = rf"layer precision check failed: the graph is int8, and no product runs in int8 \(products: 14 {runs_in}\)"
    with pytest.raises(BuildError, match=wanted):
        get_backend("tensorrt").build(model, tmp_path / "vit.engine", BuildTarget())
    assert not (tmp_path / "vit.engine").exists()


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_products_are_counted_by_the_precision_that_they_run_in(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, precision: Precision
) -> None:
    fake_gpu(monkeypatch, "11.4")
    model = write_small_vit(tmp_path / "vit.onnx", precision)
    build = get_backend("tensorrt").build(model, tmp_path / "vit.engine", BuildTarget()).manifest.build
    assert build is not None
    assert build.precision_by_layer == ({"fp16": 14} if precision == "fp16" else {"int8": 8, "fp16": 6})


def test_rtx_keeps_int8_as_weights_and_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_gpu(monkeypatch, "rtx")
    model = write_small_vit(tmp_path / "vit.onnx", "int8")
    build = get_backend("tensorrt-rtx").build(model, tmp_path / "vit.engine", BuildTarget()).manifest.build
    assert build is not None
    assert "weight-only" in build.notes[0]
    assert "FP16" in build.notes[0]
    assert "FP8 on sm_89" in build.notes[0]


def test_failing_run_is_one_line_and_leaks_nothing(gpu, release, model: OnnxModel, engine_path: Path) -> None:
    engine = backend_of(release).build(model, engine_path, BuildTarget())
    gpu.trt.record.fault = "fail"
    with backend_of(release).open(engine) as session, pytest.raises(BackendError, match="failed to run"):
        session.run({"input": images(1)})
    assert not gpu.cuda.alive


def test_cuda_error_is_named(gpu, release, model: OnnxModel, engine_path: Path) -> None:
    engine = backend_of(release).build(model, engine_path, BuildTarget())
    gpu.cuda.fail["cudaMalloc"] = 2
    with pytest.raises(BackendError, match=r"CUDA failed in cudaMalloc: cudaErrorMemoryAllocation: free GPU memory"):
        backend_of(release).open(engine)
    assert not gpu.cuda.alive


def test_damaged_plan_is_one_line(gpu, release, model: OnnxModel, engine_path: Path) -> None:
    engine = backend_of(release).build(model, engine_path, BuildTarget())
    engine.path.write_bytes(b"no plan at all")
    with pytest.raises(BackendError, match=r"cannot load '.*vit.engine': magicTag differs: build it again here"):
        backend_of(release).open(Engine(engine.path, engine.manifest))
    assert not gpu.cuda.alive


def test_engine_of_another_version_is_refused_before_it_is_loaded(
    monkeypatch: pytest.MonkeyPatch, model: OnnxModel, engine_path: Path, release
) -> None:
    backend = backend_of(release)
    fake_gpu(monkeypatch, release, version="10.7.0" if release != "rtx" else "1.2.0.54")
    engine = backend.build(model, engine_path, BuildTarget())
    engine.path.write_bytes(b"would not load")
    fakes = fake_gpu(monkeypatch, release, version="10.9.0" if release != "rtx" else "1.7.1.116")
    built, installed = "tensorrt(-rtx)? (10.7.0|1.2.0.54)", "(10.9.0|1.7.1.116)"
    pattern = rf"vit.engine' was built by {built}, and {installed} is installed: build it again"
    with pytest.raises(BackendError, match=pattern) as caught:
        backend.open(engine)
    assert "vd.build('MODEL.onnx', " in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not fakes.cuda.calls


def test_engine_of_another_gpu_is_refused_before_it_is_loaded(
    monkeypatch: pytest.MonkeyPatch, model: OnnxModel, engine_path: Path, release
) -> None:
    backend = backend_of(release)
    fake_gpu(monkeypatch, release)
    engine = backend.build(model, engine_path, BuildTarget())
    fake_gpu(monkeypatch, release, "12.0")
    with pytest.raises(
        BackendError, match=r"was built for compute capability 8.9.*, here is 12.0 \(NVIDIA GeForce RTX"
    ):
        backend.open(engine)


def test_plan_of_another_model_of_the_same_generation_is_refused_by_tensorrt_alone(
    monkeypatch: pytest.MonkeyPatch, model: OnnxModel, tmp_path: Path
) -> None:
    for release, refused in (("10.16", True), ("rtx", False)):
        fakes = fake_gpu(monkeypatch, release)
        backend = backend_of(release)
        engine = backend.build(model, tmp_path / f"{release}.engine", BuildTarget())
        other = machine("8.9").model_copy(update={"gpu": "NVIDIA L40S"})
        be(monkeypatch, other, **{fakes.trt.__name__: fakes.trt.__version__})
        if refused:
            with pytest.raises(BackendError, match=r"was built on 'NVIDIA L4', here is 'NVIDIA L40S'"):
                backend.open(engine)
        else:
            backend.open(engine).close()


def test_compatible_plans_are_opened_where_they_run(
    monkeypatch: pytest.MonkeyPatch, model: OnnxModel, engine_path: Path
) -> None:
    fake_gpu(monkeypatch, "10.16", version="10.16.0")
    target = BuildTarget(hardware_compatibility="ampere-plus", version_compatible=True)
    engine = get_backend("tensorrt").build(model, engine_path, target)
    fake_gpu(monkeypatch, "10.16", "12.0", version="10.16.0")
    get_backend("tensorrt").open(engine).close()
    fake_gpu(monkeypatch, "10.16", "7.0", version="10.16.0")
    with pytest.raises(BackendError, match=r"runs on compute capability 8.0 and higher, here is 7.0 \(Tesla V100\)"):
        get_backend("tensorrt").open(engine)


def test_engine_of_the_other_library_is_refused(
    monkeypatch: pytest.MonkeyPatch, model: OnnxModel, engine_path: Path
) -> None:
    fake_gpu(monkeypatch, "rtx")
    engine = get_backend("tensorrt-rtx").build(model, engine_path, BuildTarget())
    fake_gpu(monkeypatch, "10.16")
    with pytest.raises(BackendError, match=r"was built by tensorrt-rtx, and tensorrt was requested: build it again"):
        get_backend("tensorrt").open(engine)


def test_without_a_gpu_an_engine_is_not_opened(
    monkeypatch: pytest.MonkeyPatch, model: OnnxModel, engine_path: Path, release
) -> None:
    fakes = fake_gpu(monkeypatch, release)
    engine = backend_of(release).build(model, engine_path, BuildTarget())
    be(monkeypatch, machine(None), **{fakes.trt.__name__: fakes.trt.__version__})
    with pytest.raises(BackendError, match="there is no NVIDIA GPU here"):
        backend_of(release).open(engine)


def test_engine_session_has_no_cpu_and_no_providers(gpu, release, model: OnnxModel, engine_path: Path) -> None:
    engine = backend_of(release).build(model, engine_path, BuildTarget())
    with pytest.raises(BackendError, match="runs on the GPU only, got device 'cpu'"):
        backend_of(release).open(engine, SessionOptions(device="cpu"))
    with pytest.raises(BackendError, match="has no providers, got 'cuda'"):
        backend_of(release).open(engine, SessionOptions(provider="cuda"))
    with pytest.raises(BackendError, match=r"opens engines, .* is of kind 'onnx': build one with vd.build"):
        backend_of(release).open(model)


def test_engine_built_elsewhere_is_examined_where_a_device_is(
    monkeypatch: pytest.MonkeyPatch, model: OnnxModel, engine_path: Path
) -> None:
    fakes = fake_gpu(monkeypatch, "rtx")
    be(monkeypatch, machine(None), tensorrt_rtx=fakes.trt.__version__)
    backend: Any = get_backend("tensorrt-rtx")
    engine = backend.build(model, engine_path, BuildTarget(compute_capabilities=("8.9",)))
    assert {check.status for check in engine.manifest.checks} == {"unchecked"}
    be(monkeypatch, machine("8.9"), tensorrt_rtx=fakes.trt.__version__)
    found = backend.examine(read_engine(engine.path))
    assert [check.status for check in found.checks] == ["passed", "passed"]
    assert found.precision_by_layer == {"fp32": 14}


def test_cuda_python_is_found_in_the_layout_of_cuda_12_and_13(monkeypatch: pytest.MonkeyPatch) -> None:
    new, old = FakeRuntime(), FakeRuntime()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", new)
    assert runtime_module() is new
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    monkeypatch.setitem(sys.modules, "cuda", types.ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.cudart", old)
    assert runtime_module() is old


@pytest.mark.parametrize(("cuda", "extra"), [("12.6", "cuda12"), ("13.2", "cuda13")])
def test_missing_cuda_python_names_the_package_for_this_driver(
    monkeypatch: pytest.MonkeyPatch, cuda: str, extra: str
) -> None:
    fake_gpu(monkeypatch, "rtx", cuda=cuda)
    for layout in ("cuda.bindings.runtime", "cuda.cudart"):
        monkeypatch.setitem(sys.modules, layout, None)
    assert cuda_problem() == f"cuda-python is not installed: pip install 'vitdeploy[{extra}]'"
    assert get_backend("tensorrt-rtx").can_run() == cuda_problem()


def test_the_fake_runtime_has_only_functions_that_cuda_python_has() -> None:
    runtime = pytest.importorskip(
        "cuda.bindings.runtime", reason="cuda-python is an extra: pip install 'vitdeploy[cuda13]'"
    )
    names = [name for name in vars(FakeRuntime) if name.startswith("cuda")]
    assert len(names) > 20
    assert [name for name in names if not hasattr(runtime, name)] == []
    assert int(runtime.cudaMemcpyKind.cudaMemcpyHostToDevice) == 1
    assert int(runtime.cudaStreamNonBlocking) == 1
