"""What goes wrong on a GPU: drivers, captures, kernels, inspectors, versions; each with its one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_cuda
import numpy as np
import pytest
from machine import be, fake_gpu, machine
from small_vit import images, write_small_vit

from vitdeploy import environment
from vitdeploy.artifacts import OnnxModel, read_engine
from vitdeploy.backends import get_backend
from vitdeploy.backends.opening import engine_backend, open_session
from vitdeploy.errors import BackendError, BuildError, UsageError
from vitdeploy.sessions import BuildTarget, SessionOptions

ANY_BATCH = BuildTarget(batch=(1, 2, 8))
COMPATIBLE = BuildTarget(version_compatible=True)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch):
    return fake_gpu(monkeypatch, "11.4")


@pytest.fixture
def engine(gpu, model: OnnxModel, engine_path: Path):
    return get_backend("tensorrt").build(model, engine_path, ANY_BATCH)


def test_launch_that_cannot_be_recorded_is_launched_kernel_by_kernel_and_said(
    gpu, engine, expected: Callable[[Any], Any]
) -> None:
    gpu.trt.record.fault = "no-capture"
    with get_backend("tensorrt").open(engine) as session:
        for seed in range(3):
            feed = images(2, seed=seed)
            np.testing.assert_allclose(session.run({"input": feed})["logits"], expected(feed), atol=1e-5)
        assert session.launch_mode(2) == "stream"
        (note,) = session.notes
        assert "could not be recorded as a CUDA graph (operation not permitted when stream is capturing)" in note
    assert not gpu.cuda.alive


def test_graph_that_holds_nothing_is_not_launched(
    gpu, engine, expected: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Work on another stream or device is not recorded, no call fails, and each launch would leave the old outputs."""
    monkeypatch.setattr(gpu.cuda, "records_nothing", True)
    with get_backend("tensorrt").open(engine) as session:
        for seed in range(4):
            feed = images(2, seed=seed)
            np.testing.assert_allclose(session.run({"input": feed})["logits"], expected(feed), atol=1e-5)
        assert session.launch_mode(2) == "stream"
        (note,) = session.notes
        assert "could not be recorded as a CUDA graph (nothing was recorded)" in note
    assert not gpu.cuda.alive


@pytest.mark.parametrize("warmup", [0, 1, 5])
def test_the_launch_that_is_recorded_is_not_timed(gpu, engine, warmup: int) -> None:
    with get_backend("tensorrt").open(engine) as session:
        before = gpu.cuda.calls.count("cudaEventRecord")
        assert before == 0
        times = session.time({"input": images(2)}, warmup=warmup, iterations=6, scope="device")
        first = gpu.cuda.calls.index("cudaEventRecord")
        assert "cudaStreamBeginCapture" in gpu.cuda.calls[:first]
        assert "cudaStreamBeginCapture" not in gpu.cuda.calls[first:]
        assert np.ptp(times) < 1e-6, "all are launches of the graph"


def test_after_a_sticky_error_the_first_cause_is_named_and_later_rows_say_the_same(gpu, engine) -> None:
    backend = get_backend("tensorrt")
    with backend.open(engine) as session:
        gpu.trt.record.fault = "illegal"
        with pytest.raises(BackendError, match=r"GPU stopped working in this process \(cudaErrorIllegalAddress"):
            session.run({"input": images(1)})
        gpu.trt.record.fault = ""
        with pytest.raises(BackendError, match=r"cudaErrorIllegalAddress, first seen in cuda\w+\): start again"):
            session.run({"input": images(1)})
    with pytest.raises(BackendError, match="GPU stopped working in this process"):
        backend.open(engine)
    assert gpu.cuda.calls.count("cudaFree") > 1, "everything is given back, as far as that goes"


def test_one_session_does_not_report_the_error_of_another(gpu, engine) -> None:
    backend = get_backend("tensorrt")
    gpu.trt.record.fault = "fail"
    with backend.open(engine) as first, pytest.raises(BackendError, match="it gave up"):
        first.run({"input": images(1)})
    gpu.trt.record.fault = "no-memory"
    with pytest.raises(BackendError, match=r"no memory to run .* Requested size was 123 bytes"):
        backend.open(engine)


def test_warnings_of_the_library_are_notes_of_the_session(gpu, engine) -> None:
    gpu.trt.record.warnings = ("Using an engine plan file across different models of devices is not recommended",)
    with get_backend("tensorrt").open(engine) as session:
        assert session.notes == gpu.trt.record.warnings


@pytest.mark.parametrize("start", ["nullptr", "error35"])
@pytest.mark.parametrize("release", ["10.3", "11.4", "rtx"])
def test_library_that_does_not_start_is_one_line(
    monkeypatch: pytest.MonkeyPatch, model: OnnxModel, engine_path: Path, start: str, release: str
) -> None:
    gpu = fake_gpu(monkeypatch, release)
    gpu.trt.record.start = start
    backend = get_backend("tensorrt-rtx" if release == "rtx" else "tensorrt")
    with pytest.raises(BackendError, match=r"could not start: CUDA initialization failure with error: 35"):
        backend.build(model, engine_path, BuildTarget())
    assert not engine_path.exists()


def test_driver_that_is_too_old_for_cuda_python_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = fake_gpu(monkeypatch, "10.16", cuda="12.4")
    gpu.cuda.driver_error = fake_cuda.INSUFFICIENT_DRIVER
    reason = get_backend("tensorrt").can_run() or ""
    assert "the driver serves CUDA 12.4" in reason
    assert reason.endswith("pip install 'vitdeploy[cuda12]'")


def test_library_of_another_cuda_than_the_drivers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpu(monkeypatch, "11.4", cuda="12.8")
    monkeypatch.setattr(environment, "cuda_of", lambda library: "13")
    reason = get_backend("tensorrt").can_run() or ""
    assert "is for CUDA 13 and the driver serves CUDA 12.8: pip install 'vitdeploy[tensorrt-cu12]'" in reason


@pytest.mark.parametrize("told", ["", "no JSON", '{"Layers": null}', '{"Layers": []}', json.dumps({"Layers": ["a"]})])
def test_inspector_that_is_not_understood_leaves_a_check_unmade_and_the_engine_written(
    gpu, model: OnnxModel, engine_path: Path, told: str
) -> None:
    gpu.trt.record.inspector = told
    engine = get_backend("tensorrt").build(model, engine_path, BuildTarget())
    checks = {check.name: check.status for check in read_engine(engine.path).manifest.checks}
    assert checks["golden"] == "passed"
    assert checks["layer precision"] in ("unchecked", "passed")


def test_memory_that_is_short_after_a_build_keeps_the_engine(gpu, model: OnnxModel, engine_path: Path) -> None:
    gpu.trt.record.fault = "no-memory"
    engine = get_backend("tensorrt").build(model, engine_path, BuildTarget())
    assert {check.status for check in engine.manifest.checks} == {"unchecked"}
    assert "no memory" in engine.manifest.checks[0].detail


def test_engine_of_another_machine_is_checked_at_its_first_open_and_not_again(
    monkeypatch: pytest.MonkeyPatch, model: OnnxModel, engine_path: Path
) -> None:
    gpu = fake_gpu(monkeypatch, "rtx")
    be(monkeypatch, machine(None), tensorrt_rtx=gpu.trt.__version__)
    backend = get_backend("tensorrt-rtx")
    engine = backend.build(model, engine_path, BuildTarget(compute_capabilities=("8.9",)))
    be(monkeypatch, machine("8.9"), tensorrt_rtx=gpu.trt.__version__)
    gpu.trt.record.fault = "zeros"
    with pytest.raises(BackendError, match=r"must not be used, its golden check failed: max"):
        open_session(engine)
    gpu.trt.record.fault = ""
    with open_session(engine) as session:
        assert session.examination is not None
        assert session.examination.precision_by_layer == {"fp32": 14}
    before = gpu.cuda.clock
    with open_session(engine):
        assert gpu.cuda.clock == before, "what was found is kept"


def test_one_engine_has_a_profile_for_each_batch_size(
    gpu, model: OnnxModel, engine_path: Path, expected: Callable[[Any], Any]
) -> None:
    target = BuildTarget(batch=((1, 1, 1), (4, 4, 4)))
    engine = get_backend("tensorrt").build(model, engine_path, target)
    assert engine.manifest.build is not None
    assert engine.manifest.build.profiles == ((1, 1, 1), (4, 4, 4))
    assert [engine.manifest.build.takes(batch) for batch in (1, 2, 4)] == [True, False, True]
    with get_backend("tensorrt").open(engine) as session:
        for batch in (1, 4, 1, 4):
            feed = images(batch, seed=batch)
            np.testing.assert_allclose(session.run({"input": feed})["logits"], expected(feed), atol=1e-5)
        with pytest.raises(BackendError, match=r"for batch 1 and 4, got 2: .*batch=\(\(1, 1, 1\), \(4, 4, 4\), \(2,"):
            session.run({"input": images(2)})


def test_several_contexts_work_at_once(gpu, engine) -> None:
    with get_backend("tensorrt").open(engine) as opened:
        session: Any = opened
        assert session.throughput({"input": images(2)}, streams=3, seconds=0.02) > 0
        assert len([one for one in gpu.cuda.objects.values() if isinstance(one, fake_cuda.Stream)]) == 1
    assert not gpu.cuda.alive


def test_timings_of_kernels_are_kept_and_a_damaged_file_is_left_out(gpu, model: OnnxModel, tmp_path: Path) -> None:
    cache = tmp_path / "timing.bin"
    target = BuildTarget(timing_cache=cache)
    get_backend("tensorrt").build(model, tmp_path / "a.engine", target)
    kept = cache.read_bytes()
    get_backend("tensorrt").build(model, tmp_path / "b.engine", target)
    assert gpu.trt.record.configs[-1].get_timing_cache()._entries
    cache.write_bytes(kept[:-1] + b"?")
    get_backend("tensorrt").build(model, tmp_path / "c.engine", target)
    assert cache.read_bytes() == kept


def test_timings_of_another_program_are_not_overwritten(gpu, model: OnnxModel, tmp_path: Path) -> None:
    cache = tmp_path / "trtexec.cache"
    cache.write_bytes(b"ptrt\x00 what trtexec keeps")
    for _ in range(2):
        with pytest.raises(UsageError, match=r"trtexec.cache' is no timing cache of vitdeploy"):
            get_backend("tensorrt").build(model, tmp_path / "a.engine", BuildTarget(timing_cache=cache))
    assert cache.read_bytes() == b"ptrt\x00 what trtexec keeps"
    assert not (tmp_path / "a.engine").exists()


def test_compatible_engine_has_no_host_code_and_runs_under_the_lean_runtime(
    monkeypatch: pytest.MonkeyPatch, model: OnnxModel, engine_path: Path, expected: Callable[[Any], Any]
) -> None:
    gpu = fake_gpu(monkeypatch, "11.4", version="11.2.1")
    engine = get_backend("tensorrt").build(model, engine_path, COMPATIBLE)
    assert {"VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME"} <= set(gpu.trt.record.set)
    fake_gpu(monkeypatch, "lean")
    assert engine_backend(engine) == "tensorrt-lean"
    with open_session(engine) as session:
        np.testing.assert_allclose(session.run({"input": images(1)})["logits"], expected(images(1)), atol=1e-5)


@pytest.mark.parametrize(
    ("built", "installed", "message"),
    [("11.6.0", "11.4.0", "is older"), ("10.9.0", "11.4.0", None), ("9.3.0", "10.3.0", "is older")],
)
def test_lean_runtime_takes_the_same_or_an_older_release(
    monkeypatch: pytest.MonkeyPatch,
    model: OnnxModel,
    engine_path: Path,
    built: str,
    installed: str,
    message: str | None,
) -> None:
    fake_gpu(monkeypatch, "11.4", version=built if built != "9.3.0" else "10.9.0")
    engine = get_backend("tensorrt").build(model, engine_path, COMPATIBLE)
    assert engine.manifest.build is not None
    info = engine.manifest.build.model_copy(update={"version": built})
    fake_gpu(monkeypatch, "lean", version=installed)
    lean: Any = get_backend("tensorrt-lean")
    reason = lean.version_mismatch(info)
    assert reason is None if message is None else message in (reason or "")
    plain = info.model_copy(update={"version_compatible": False})
    assert "not built to be version-compatible" in (lean.version_mismatch(plain) or "")


def test_compatible_engine_of_another_version_needs_that_versions_lean_runtime(
    monkeypatch: pytest.MonkeyPatch, model: OnnxModel, engine_path: Path
) -> None:
    fake_gpu(monkeypatch, "11.4", version="11.2.1")
    engine = get_backend("tensorrt").build(model, engine_path, COMPATIBLE)
    fake_gpu(monkeypatch, "11.4", version="11.4.0")
    with pytest.raises(BackendError, match=r"that version's lean runtime, pip install tensorrt-lean==11.2.1"):
        get_backend("tensorrt").open(engine)


def test_stripped_engine_takes_its_weights_from_the_model_beside_it(
    gpu, tmp_path: Path, expected: Callable[[Any], Any]
) -> None:
    model = write_small_vit(tmp_path / "vit.onnx")
    engine = get_backend("tensorrt").build(model, tmp_path / "vit.engine", BuildTarget(strip=True))
    with get_backend("tensorrt").open(engine) as session:
        np.testing.assert_allclose(session.run({"input": images(1)})["logits"], expected(images(1)), atol=1e-5)
    model.path.rename(tmp_path / "elsewhere")
    with pytest.raises(BackendError, match=r"carries no weights: put the ONNX model that it was built from"):
        get_backend("tensorrt").open(engine)


@pytest.mark.parametrize(
    ("capability", "cores", "version", "message"),
    [
        ("8.9", 0, None, r"NVIDIA L4 has no deep-learning accelerator \(DLA\)"),
        ("11.0", 0, None, r"NVIDIA Thor has no deep-learning accelerator"),
        ("8.7", 0, "10.16.2", r"TensorRT 10.16.2 does not serve the deep-learning accelerator"),
        ("8.7", 2, "10.3.0", None),
    ],
)
def test_accelerator_is_used_where_the_board_has_one(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    model: OnnxModel,
    engine_path: Path,
    capability: str,
    cores: int,
    version: str | None,
    message: str | None,
) -> None:
    gpu = fake_gpu(monkeypatch, "10.16", capability, version=version)
    gpu.trt.record.dla_cores = cores
    backend, target = get_backend("tensorrt"), BuildTarget(dla_core=1)
    if message is not None:
        with pytest.raises(BuildError, match=message):
            backend.build(model, engine_path, target)
        return
    half = write_small_vit(tmp_path / "half.onnx", "fp16")
    engine = backend.build(half, engine_path, target)
    assert gpu.trt.record.configs[-1].DLA_core == 1
    assert "GPU_FALLBACK" in gpu.trt.record.set
    with backend.open(engine):
        assert gpu.trt.record.dla_runtimes[-1] == 1, "the runtime would take core 0"
    with pytest.raises(BuildError, match=r"computes in FP16 and INT8, and .* is FP32, so all of it"):
        backend.build(model, engine_path, target)
    for batch in ((1, 2, 4), ((1, 1, 1), (2, 2, 2))):
        with pytest.raises(UsageError, match=r"a deep-learning accelerator \(DLA\) runs one batch size"):
            backend.build(half, engine_path, replace(target, batch=batch))
    with pytest.raises(BuildError, match="there is no DLA core 5: this board has 0, 1"):
        backend.build(model, engine_path, replace(target, dla_core=5))


def test_rtx_records_by_itself_and_keeps_what_it_compiled(
    monkeypatch: pytest.MonkeyPatch, model: OnnxModel, engine_path: Path
) -> None:
    gpu = fake_gpu(monkeypatch, "rtx")
    backend = get_backend("tensorrt-rtx")
    engine = backend.build(model, engine_path, BuildTarget())
    compiled = gpu.trt.record.kernels_compiled
    with backend.open(engine) as session:
        session.run({"input": images(1)})
    (config,) = gpu.trt.record.contexts[-1]
    assert config.cuda_graph_strategy.name == "WHOLE_GRAPH_CAPTURE"
    assert gpu.trt.record.kernels_compiled == compiled, "the check after the build had them compiled"
    with backend.open(engine, SessionOptions(cache=False)):
        assert gpu.trt.record.kernels_compiled == compiled + 1


def test_plan_that_rtx_calls_invalid_is_refused_with_its_reasons(
    monkeypatch: pytest.MonkeyPatch, model: OnnxModel, engine_path: Path
) -> None:
    gpu = fake_gpu(monkeypatch, "rtx")
    engine = get_backend("tensorrt-rtx").build(model, engine_path, BuildTarget())
    gpu.trt.record.validity, gpu.trt.record.diagnostics = "INVALID", 2 | 4
    with pytest.raises(BackendError, match=r"cannot run .* here \(old cuda driver, unsupported cc\)"):
        get_backend("tensorrt-rtx").open(engine)


def test_hopper_is_no_gpu_of_tensorrt_rtx(monkeypatch: pytest.MonkeyPatch, model: OnnxModel, engine_path: Path) -> None:
    fake_gpu(monkeypatch, "rtx", "9.0")
    with pytest.raises(BuildError, match=r"does not serve this GPU \(compute capability '9.0'"):
        get_backend("tensorrt-rtx").build(model, engine_path, BuildTarget())
