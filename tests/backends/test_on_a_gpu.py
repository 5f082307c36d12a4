"""The same conformance on a real GPU, for each runtime that can use it here; skipped, with the reason, elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conformance import SessionConformance
from small_vit import write_small_vit

from vitdeploy import environment
from vitdeploy.artifacts import OnnxModel, read_engine
from vitdeploy.backends import get_backend
from vitdeploy.errors import BuildError
from vitdeploy.records import Precision
from vitdeploy.sessions import BuildTarget, SessionOptions

pytestmark = pytest.mark.gpu
ANY_BATCH = BuildTarget(batch=(1, 2, 8))


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def builder(request: pytest.FixtureRequest):
    backend: Any = get_backend(request.param)
    reason = backend.can_run()
    if reason is not None:
        pytest.skip(reason)
    here = environment.current().compute_capability
    try:
        backend.capabilities(backend.library(), BuildTarget())
    except BuildError as error:
        pytest.skip(f"compute capability {here}: {error}")
    return backend


class TestEngineOnAGpu(SessionConformance):
    tolerance = 1e-3  # another order of summation; TF32 is off

    @pytest.fixture(params=[False, True], ids=["launch", "cuda-graph"])
    def session(self, request: pytest.FixtureRequest, builder, model: OnnxModel, engine_path: Path):
        engine = builder.build(model, engine_path, ANY_BATCH)
        with builder.open(engine, SessionOptions(cuda_graph=request.param)) as session:
            yield session


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_engine_passes_its_own_checks(builder, tmp_path: Path, precision: Precision) -> None:
    model = write_small_vit(tmp_path / "vit.onnx", precision)
    engine = read_engine(builder.build(model, tmp_path / "vit.engine", BuildTarget()).path)
    checks = {check.name: check.status for check in engine.manifest.checks}
    assert checks["golden"] == "passed"
    assert checks["layer precision"] in ("passed", "unchecked")
    assert engine.manifest.build is not None
    assert engine.manifest.build.inspected
    assert engine.manifest.build.precision_by_layer


class TestOnnxRuntimeOnAGpu(SessionConformance):
    tolerance = 1e-3

    @pytest.fixture
    def session(self, model: OnnxModel):
        if environment.current().gpu is None:
            pytest.skip("there is no NVIDIA GPU here")
        import onnxruntime

        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            pytest.skip("this onnxruntime has no CUDA provider: pip install onnxruntime-gpu")
        with get_backend("onnxruntime").open(model, SessionOptions(provider="cuda")) as session:
            assert session.provider == "CUDAExecutionProvider"
            yield session
