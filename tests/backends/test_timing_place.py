"""Where latency counts: what a text names, and that a graph in memory runs there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from machine import fake_gpu
from readout_vit import write_readout_vit
from small_vit import images, small_vit

from vitdeploy.artifacts import OnnxModel
from vitdeploy.backends import get_backend
from vitdeploy.backends.timing_place import TimingPlace
from vitdeploy.errors import BackendError, UsageError
from vitdeploy.stages.quantize import QuantizeOptions, quantize


@pytest.mark.parametrize(
    ("text", "device", "target", "builds"),
    [
        ("onnxruntime", "cpu", "onnxruntime", False),
        ("onnxruntime:cuda", "cuda", "onnxruntime", False),
        ("onnxruntime:tensorrt", "cuda", "tensorrt", False),
        ("openvino", "cpu", "openvino", False),
        ("tensorrt", "cuda", "tensorrt", True),
        ("tensorrt-rtx", "cuda", "tensorrt", True),
    ],
)
def test_a_text_names_runtime_device_and_target(text: str, device: str, target: str, builds: bool) -> None:
    place = TimingPlace.parse(text)
    assert (place.device, place.target, place.builds_engines) == (device, target, builds)


@pytest.mark.parametrize("text", ["abacus", "pytorch", "null", "tensorrt-lean", "openvino:cpu", ""])
def test_what_times_no_graph_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no runtime for time_on="):
        TimingPlace.parse(text)


def test_a_provider_that_is_not_here_is_refused_before_any_work() -> None:
    with pytest.raises(BackendError, match="no provider 'abacus' here"):
        TimingPlace.parse("onnxruntime:abacus").require()
    TimingPlace.parse("onnxruntime").require()


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_graph_in_memory_runs_on_the_cpu(model: OnnxModel, name: str) -> None:
    if get_backend(name).unavailable() is not None:
        with pytest.raises(BackendError, match=f"nothing can be timed on '{name}' here"):
            TimingPlace.parse(name).require()
        return
    graph = ir.serde.deserialize_model(small_vit())
    batch = images(2)
    with TimingPlace.parse("onnxruntime").opener(model.manifest, 2, 1)(graph) as session:
        expected = session.run({"input": batch})["logits"]
    with TimingPlace.parse(name).opener(model.manifest, 2, 1)(graph) as session:
        np.testing.assert_allclose(session.run({"input": batch})["logits"], expected, rtol=1e-3, atol=1e-4)
        assert session.time({"input": batch}, warmup=1, iterations=2).min() > 0


@pytest.mark.parametrize("release", ["10.16", "rtx"])
def test_an_engine_is_built_for_the_batch_that_counts(
    monkeypatch: pytest.MonkeyPatch, model: OnnxModel, release: str
) -> None:
    fakes = fake_gpu(monkeypatch, release)
    place = TimingPlace.parse("tensorrt-rtx" if release == "rtx" else "tensorrt")
    place.require()
    assert place.identity["device"] == "NVIDIA L4"
    with place.opener(model.manifest, 4)(ir.serde.deserialize_model(small_vit("fp16"))) as session:
        assert session.inputs["input"].shape == (4, 1, 8, 8)
        assert session.run({"input": images(4)})["logits"].shape == (4, 10)
    assert not fakes.cuda.alive


@pytest.mark.slow
def test_a_budget_is_met_with_engines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Few calls per turn: on the fake GPU each of them runs a graph on the CPU."""
    fake_gpu(monkeypatch, "10.16")
    monkeypatch.setattr("vitdeploy.measure.timing.MAX_CALLS_PER_TURN", 2)
    monkeypatch.setattr("vitdeploy.benching.latency.GPU_WARM_S", 0.0)
    monkeypatch.setattr("vitdeploy.measure.timing.wait_for_rest", lambda: True)
    source = write_readout_vit(tmp_path / "vit.onnx", 1)
    options = QuantizeOptions(
        threads=1, samples=40, method="minmax", equalization="off", steps=(), effort="fast",
        validation="digits:validation", max_drop=5.0, time_on="tensorrt", time_batch=25,
    )  # fmt: skip
    made = quantize(source, tmp_path / "made.onnx", precision="int8", calibration="digits:train", options=options)
    assert made.manifest.target == "tensorrt"
    assert (tmp_path / "made.budget" / "front.json").is_file()
