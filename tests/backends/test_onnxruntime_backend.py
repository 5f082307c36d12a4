from __future__ import annotations

import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from conformance import SessionConformance
from small_vit import golden_of, images, small_vit, write_small_vit

from vitdeploy import environment
from vitdeploy.artifacts import Checkpoint, OnnxModel
from vitdeploy.backends import get_backend
from vitdeploy.backends import onnxruntime as backend_module
from vitdeploy.backends.onnxruntime import PROVIDERS, choose_provider, open_graph, provider_list
from vitdeploy.errors import BackendError, BuildError
from vitdeploy.records import Precision
from vitdeploy.sessions import BuildTarget, SessionOptions

BACKEND = get_backend("onnxruntime")


class TestOnnxRuntimeSession(SessionConformance):
    @pytest.fixture
    def session(self, model: OnnxModel):
        with BACKEND.open(model, SessionOptions(threads=1)) as session:
            yield session


class TestGraphInMemory(SessionConformance):
    @pytest.fixture
    def session(self):
        with open_graph(ir.serde.deserialize_model(small_vit())) as session:
            yield session


class TestLargeGraphThroughAFile(SessionConformance):
    @pytest.fixture
    def session(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(backend_module, "IN_MEMORY_LIMIT", 1)
        with open_graph(ir.serde.deserialize_model(small_vit())) as session:
            yield session


def test_graph_with_external_data_opens_from_memory(tmp_path: Path) -> None:
    model = ir.serde.deserialize_model(small_vit())
    ir.save(model, tmp_path / "vit.onnx", external_data="vit.data")
    loaded = ir.load(tmp_path / "vit.onnx")
    assert any(isinstance(value.const_value, ir.ExternalTensor) for value in loaded.graph.initializers.values())
    with open_graph(loaded) as session, open_graph(model) as reference:
        feed = {"input": images(2)}
        np.testing.assert_array_equal(session.run(feed)["logits"], reference.run(feed)["logits"])


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_low_precision_graphs_run(tmp_path: Path, precision: Precision) -> None:
    golden = golden_of(small_vit(precision))
    with BACKEND.open(write_small_vit(tmp_path / "vit.onnx", precision)) as session:
        assert session.run({"input": images(3)})["logits"].dtype == np.float32
    assert np.isfinite(golden.outputs).all()


def test_threads_stop_spinning_between_calls(model: OnnxModel, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    entries = []

    class Watched(onnxruntime.SessionOptions):
        def add_session_config_entry(self, key, value) -> None:
            entries.append((key, value))
            super().add_session_config_entry(key, value)

    monkeypatch.setattr(onnxruntime, "SessionOptions", Watched)
    BACKEND.open(model).close()
    assert ("session.force_spinning_stop", "1") in entries


def test_checkpoint_is_refused_with_the_command_that_converts_it(model: OnnxModel) -> None:
    checkpoint = Checkpoint(model.path, model.manifest.model_copy(update={"kind": "checkpoint"}))
    with pytest.raises(BackendError, match=r"opens ONNX models, .* is of kind 'checkpoint': vd.export"):
        BACKEND.open(checkpoint)


def test_graph_that_onnxruntime_refuses_is_one_line(tmp_path: Path) -> None:
    model = small_vit()
    model.graph.node[3].op_type = "NoSuchOperator"
    with pytest.raises(BackendError, match=r"cannot open the graph: .*NoSuchOperator") as caught:
        open_graph(ir.serde.deserialize_model(model))
    assert "\n" not in str(caught.value)


def test_building_is_refused_because_the_graph_is_opened_as_it_is(model: OnnxModel, engine_path: Path) -> None:
    with pytest.raises(BuildError, match="onnxruntime builds no engine"):
        BACKEND.build(model, engine_path, BuildTarget())
    assert not engine_path.exists()


def test_absent_provider_names_the_package_that_brings_it(model: OnnxModel, monkeypatch: pytest.MonkeyPatch) -> None:
    there = environment.current().model_copy(update={"gpu": "NVIDIA L4"})
    monkeypatch.setattr(environment, "current", lambda: there)
    with pytest.raises(
        BackendError, match=r"no provider 'cuda' here, expected one of cpu: pip install onnxruntime-gpu"
    ):
        BACKEND.open(model, SessionOptions(provider="cuda"))
    with pytest.raises(BackendError, match=r"no provider 'quantum' here, expected one of cpu: choose one of cpu"):
        BACKEND.open(model, SessionOptions(provider="quantum"))
    with pytest.raises(BackendError, match=r"onnxruntime is built for the CPU alone: pip install onnxruntime-gpu"):
        BACKEND.open(model, SessionOptions(device="cuda"))


@pytest.mark.parametrize("options", [{"device": "cuda"}, {"provider": "cuda"}, {"provider": "tensorrt"}])
def test_without_a_gpu_no_package_is_named(
    model: OnnxModel, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    monkeypatch.setattr(environment, "reason_without_gpu", lambda: "there is no GPU")
    with pytest.raises(BackendError, match=r"there is no GPU; .* 'cpu' works without") as caught:
        BACKEND.open(model, SessionOptions(**options))
    assert "pip" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:Specified provider:UserWarning")  # this build of onnxruntime has no CUDA
def test_provider_that_falls_back_silently_is_refused(model: OnnxModel, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [*PROVIDERS.values()])
    refusal = r"could not load 'CUDAExecutionProvider' and fell back to 'CPUExecutionProvider'"
    for options in (SessionOptions(provider="cuda"), SessionOptions(device="cuda")):
        with pytest.raises(BackendError, match=refusal):
            BACKEND.open(model, options)


def test_auto_takes_cuda_only_where_a_gpu_is(monkeypatch: pytest.MonkeyPatch) -> None:
    both = [PROVIDERS["cuda"], PROVIDERS["cpu"]]
    machine = environment.current()
    for gpu, expected in ((None, "cpu"), ("NVIDIA L4", "cuda")):
        there = machine.model_copy(update={"gpu": gpu})
        monkeypatch.setattr(environment, "current", lambda there=there: there)
        assert choose_provider(SessionOptions(), both) == PROVIDERS[expected]
        assert choose_provider(SessionOptions(device="cpu"), both) == PROVIDERS["cpu"]
        assert choose_provider(SessionOptions(provider="CPUExecutionProvider"), both) == PROVIDERS["cpu"]


def test_tf32_is_off_unless_asked_for() -> None:
    for tf32, value in ((False, "0"), (True, "1")):
        providers = provider_list(PROVIDERS["cuda"], SessionOptions(tf32=tf32), "fp32")
        assert providers[0] == (PROVIDERS["cuda"], {"use_tf32": value})


def test_tensorrt_provider_gets_leave_for_the_graphs_precision_only() -> None:
    leave = {p: provider_list(PROVIDERS["tensorrt"], SessionOptions(), p)[0][1] for p in ("fp32", "fp16", "int8")}
    assert leave["fp32"] == {"trt_fp16_enable": "0", "trt_int8_enable": "0"}
    assert leave["fp16"] == {"trt_fp16_enable": "1", "trt_int8_enable": "0"}
    assert leave["int8"] == {"trt_fp16_enable": "1", "trt_int8_enable": "1"}


class DividedSession:
    """A session of which the CUDA provider took only a part."""

    left_to_the_cpu = 3

    def __init__(self, source, settings, providers, **_: Any) -> None:
        assert settings.get_session_config_entry("session.record_ep_graph_assignment_info") == "1"

    def get_providers(self):
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def get_provider_graph_assignment_info(self):
        def part(name, count) -> types.SimpleNamespace:
            return types.SimpleNamespace(ep_name=name, get_nodes=lambda: [None] * count)

        on_cpu = [part("CPUExecutionProvider", self.left_to_the_cpu)] if self.left_to_the_cpu else []
        return [part("CUDAExecutionProvider", 40), part("CUDAExecutionProvider", 7), *on_cpu]

    def get_inputs(self):
        return [types.SimpleNamespace(name="input", type="tensor(float)", shape=["batch", 1, 8, 8])]

    def get_outputs(self):
        return [types.SimpleNamespace(name="logits", type="tensor(float)", shape=["batch", 10])]


@pytest.fixture
def divided(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print("Failed to load libcudnn"), raising=False)
    monkeypatch.setattr(onnxruntime, "InferenceSession", DividedSession)


def test_nodes_that_a_gpu_provider_leaves_to_the_cpu_are_an_error_unless_allowed(
    divided: None, model: OnnxModel, capsys: pytest.CaptureFixture[str]
) -> None:
    options = SessionOptions(provider="cuda")
    with pytest.raises(BackendError, match=r"leaves 3 of 50 nodes to the CPU.*allow it with cpu_fallback=True"):
        get_backend("onnxruntime").open(model, options)
    session: Any = get_backend("onnxruntime").open(model, replace(options, cpu_fallback=True))
    assert session.nodes_by_provider == {"CUDAExecutionProvider": 47, "CPUExecutionProvider": 3}
    assert "nodes of the graph: 47 by CUDAExecutionProvider, 3 by CPUExecutionProvider" in session.notes
    assert capsys.readouterr().out == "", "stdout belongs to --json"


def test_a_graph_that_a_gpu_provider_takes_whole_needs_no_leave(
    divided: None, model: OnnxModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DividedSession, "left_to_the_cpu", 0)
    session: Any = get_backend("onnxruntime").open(model, SessionOptions(provider="cuda"))
    assert session.nodes_by_provider == {"CUDAExecutionProvider": 47}
    assert not any("nodes of the graph" in note for note in session.notes)


def test_nodes_of_a_real_session_are_counted(model: OnnxModel) -> None:
    with get_backend("onnxruntime").open(model, SessionOptions(provider="cpu")) as session:
        assert isinstance(session, backend_module.OnnxRuntimeSession)
        assert list(session.nodes_by_provider) in (["CPUExecutionProvider"], [])  # none before onnxruntime 1.24
        assert session.notes == ()
