"""What the profilers of the runtimes say of a call, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_tensorrt_runtime import LAYER_MS
from machine import fake_gpu
from small_vit import images, write_small_vit
from tensorrt_signatures import releases

from vitdeploy.artifacts import OnnxModel
from vitdeploy.backends import get_backend
from vitdeploy.backends.onnxruntime import open_graph
from vitdeploy.backends.onnxruntime_profile import read_events
from vitdeploy.errors import BackendError
from vitdeploy.graph.parts import part_of_layer, parts_of
from vitdeploy.records import Precision
from vitdeploy.sessions import BuildTarget, SessionOptions

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("runtime", "precision"),
    [("onnxruntime", "fp32"), ("onnxruntime", "fp16"), ("openvino", "fp32"), ("openvino", "int8")],
)
def test_layers_of_a_cpu_runtime_have_times_precisions_and_parts(
    tmp_path: Path, runtime: str, precision: Precision
) -> None:
    if runtime == "openvino":
        pytest.importorskip("openvino", reason="openvino is an extra: pip install 'vitdeploy[openvino]'")
    model = write_small_vit(tmp_path / "vit.onnx", precision)
    with get_backend(runtime).open(model, SessionOptions(threads=1, device="cpu")) as session:
        before = session.run({"input": images(2)})["logits"]
        times = session.layer_times({"input": images(2)}, warmup=2, iterations=5)
        np.testing.assert_array_equal(session.run({"input": images(2)})["logits"], before)
    assert times is not None
    assert times.call_ms.shape == (5,)
    assert (times.call_ms > 0).all()
    assert all(layer.ms.shape in ((5,), (1,)) and (layer.ms >= 0).all() for layer in times.layers)
    assert sum(float(layer.ms.mean()) for layer in times.layers) <= 1.05 * times.call_ms.max()
    parts = parts_of(model.load())
    found = {part_of_layer(layer.operator, layer.sources, parts) for layer in times.layers}
    if runtime == "onnxruntime":  # OpenVINO counts whole microseconds, and some layers here take less
        assert {"embedding", "attention", "mlp", "norm", "head"} <= found
    assert any(layer.precision == "int8" for layer in times.layers) == (precision == "int8")


def test_a_graph_in_memory_is_not_profiled(model: OnnxModel) -> None:
    with open_graph(model.load(), SessionOptions(threads=1, device="cpu")) as session:
        assert session.layer_times({"input": images(1)}, warmup=1, iterations=2) is None


def _event(name: str, start: int, duration: int, category: str = "Node", operator: str = "Add") -> dict[str, Any]:
    arguments = {"op_name": operator, "output_type_shape": [{"float16": [1]}]}
    return {"cat": category, "name": name, "ts": start, "dur": duration, "args": arguments}


def test_events_count_in_the_call_in_which_they_lie_and_loops_add_up() -> None:
    events = [
        _event("model_run", 0, 50, "Session"),
        _event("a_kernel_time", 5, 40),
        _event("model_run", 100, 30, "Session"),
        _event("a_kernel_time", 101, 7),
        _event("loop_kernel_time", 109, 2, operator="MatMulInteger"),
        _event("loop_kernel_time", 112, 3, operator="MatMulInteger"),
        _event("model_run", 200, 20, "Session"),
        _event("a_kernel_time", 201, 9),
    ]
    times = read_events(events, {"a": ("a", "a_out")}, 2)
    assert times.call_ms.tolist() == [0.03, 0.02]
    a, loop = times.layers
    assert (a.sources, a.precision, a.ms.tolist()) == (("a", "a_out"), "fp16", [0.007, 0.009])
    assert (loop.sources, loop.precision, loop.ms.tolist()) == (("loop",), "int8", [0.005, 0.0])
    with pytest.raises(BackendError, match="has 3 calls of 4"):
        read_events(events, {}, 4)


@pytest.mark.parametrize("release", [*(one for one in releases() if one != "10.4"), "rtx"])
def test_layers_of_an_engine_come_from_its_profiler_and_its_inspector(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, release: str
) -> None:
    fakes = fake_gpu(monkeypatch, release)
    backend = get_backend("tensorrt-rtx" if release == "rtx" else "tensorrt")
    model = write_small_vit(tmp_path / "vit.onnx", "fp16")
    engine = backend.build(model, tmp_path / "vit.engine", BuildTarget())
    with backend.open(engine, SessionOptions(cuda_graph=False)) as session:
        times = session.layer_times({"input": images(1)}, warmup=2, iterations=3)
        assert session.run({"input": images(1)})["logits"].shape == (1, 10)
    assert not fakes.cuda.alive
    assert times is not None
    reformat, first, norm = times.layers[:3]
    assert (reformat.operator, reformat.precision) == ("Convert", "fp16")
    assert reformat.ms.tolist() == [LAYER_MS] * 3
    assert (first.operator, first.precision) == ("CaskConvolution", "fp16")
    assert first.ms.tolist() == [2 * LAYER_MS] * 3
    parts = parts_of(model.load())
    assert part_of_layer(first.operator, first.sources, parts) == "embedding"
    assert part_of_layer(reformat.operator, reformat.sources, parts) == "conversion"
    assert norm.sources == first.sources  # what the inspector says that a generated kernel came from


def test_an_engine_whose_launches_are_recorded_is_profiled_kernel_by_kernel_all_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_gpu(monkeypatch, "11.4")
    backend = get_backend("tensorrt")
    engine = backend.build(write_small_vit(tmp_path / "vit.onnx", "fp16"), tmp_path / "vit.engine", BuildTarget())
    with backend.open(engine) as session:
        for _ in range(2):  # the second launch is recorded
            session.run({"input": images(1)})
        assert session.layer_times({"input": images(1)}, warmup=2, iterations=2) is not None
        assert session.launch_mode(1) == "cuda-graph"


def test_a_library_that_launches_graphs_by_itself_reports_nothing_and_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_gpu(monkeypatch, "rtx")
    backend = get_backend("tensorrt-rtx")
    engine = backend.build(write_small_vit(tmp_path / "vit.onnx", "fp16"), tmp_path / "vit.engine", BuildTarget())
    with backend.open(engine) as session, pytest.raises(BackendError, match="reports no layer"):
        session.layer_times({"input": images(1)}, warmup=1, iterations=2)
