from __future__ import annotations

from pathlib import Path

import pytest
from conformance import SessionConformance
from small_vit import images, write_small_vit

from vitdeploy.artifacts import Checkpoint, OnnxModel
from vitdeploy.backends import get_backend
from vitdeploy.errors import BackendError, BuildError
from vitdeploy.sessions import BuildTarget, SessionOptions

pytest.importorskip("openvino", reason="openvino is an extra: pip install 'vitdeploy[openvino]'")
BACKEND = get_backend("openvino")


class TestOpenVINOSession(SessionConformance):
    @pytest.fixture
    def session(self, model: OnnxModel):
        with BACKEND.open(model, SessionOptions(threads=1)) as session:
            yield session


def test_int8_graph_runs(tmp_path: Path) -> None:
    with BACKEND.open(write_small_vit(tmp_path / "vit.onnx", "int8")) as session:
        assert session.run({"input": images(2)})["logits"].shape == (2, 10)


def test_graph_that_openvino_refuses_is_one_line(tmp_path: Path, model: OnnxModel) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(model.path.read_bytes()[:200])
    broken = type(model)(path, model.manifest)
    with pytest.raises(BackendError, match=r"openvino cannot open '.*broken.onnx'") as caught:
        BACKEND.open(broken)
    assert "\n" not in str(caught.value)


def test_what_it_does_not_do_is_refused(model: OnnxModel, engine_path: Path) -> None:
    with pytest.raises(BackendError, match="runs on the CPU here, got 'cuda'"):
        BACKEND.open(model, SessionOptions(device="cuda"))
    with pytest.raises(BackendError, match="runs on the CPU here, got 'npu'"):
        BACKEND.open(model, SessionOptions(provider="npu"))
    with pytest.raises(BackendError, match=r"opens ONNX models, .* is of kind 'checkpoint'"):
        BACKEND.open(Checkpoint(model.path, model.manifest.model_copy(update={"kind": "checkpoint"})))
    with pytest.raises(BuildError, match="openvino builds no engine"):
        BACKEND.build(model, engine_path, BuildTarget())


def test_missing_package_names_the_command(monkeypatch: pytest.MonkeyPatch, model: OnnxModel) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "openvino", None)
    assert "pip install 'vitdeploy[openvino]'" in (BACKEND.unavailable() or "")
    with pytest.raises(BackendError, match=r"pip install 'vitdeploy\[openvino\]'"):
        BACKEND.open(model)
