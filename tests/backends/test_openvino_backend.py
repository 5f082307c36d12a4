from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conformance import SessionConformance
from small_vit import images, write_small_vit

from vitdeploy.artifacts import Checkpoint, OnnxModel
from vitdeploy.backends import get_backend, openvino
from vitdeploy.backends.openvino import Mode
from vitdeploy.errors import BackendError, BuildError
from vitdeploy.measure.statistics import logits_sqnr_db
from vitdeploy.records import PrecisionPlan
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


@pytest.mark.parametrize("closed", [(0, 1), (1, 0), (1, 2, 0)], ids=lambda closed: "".join(map(str, closed)))
def test_a_signal_after_sessions_have_closed_reaches_its_handler(tmp_path: Path, closed: tuple[int, ...]) -> None:
    model = write_small_vit(tmp_path / "vit.onnx", "int8")
    subprocess.run([sys.executable, "-c", SIGNALLED, str(model.path), *map(str, closed)], check=True)


SIGNALLED = """
import signal, sys
import numpy as np
from vitdeploy.artifacts import read_onnx
from vitdeploy.backends import get_backend

path, *closed = sys.argv[1:]
sessions = [get_backend("openvino").open(read_onnx(path)) for _ in closed]
for index in range(len(closed)):
    sessions[index].run({"input": np.zeros((1, 1, 8, 8), np.float32)})
for index in map(int, closed):
    sessions[index].close()
    sessions[index] = None
heard = []
signal.signal(signal.SIGUSR1, lambda *signalled: heard.append(signalled))
signal.raise_signal(signal.SIGUSR1)
assert len(heard) == 1
"""


def test_the_first_batch_sizes_have_models_of_their_own_and_others_share_one(
    small_export: Callable[[str], OnnxModel],
) -> None:
    model = small_export("pvt_v2")
    found: dict[int, Counter[str]] = {}
    with BACKEND.open(model) as session, BACKEND.open(model) as one_by_one:
        for batch in (3, 2, 5, 3):
            logits = session.run({"input": images(batch)})["logits"]
            alone = [one_by_one.run({"input": image[None]})["logits"] for image in images(batch)]
            np.testing.assert_allclose(logits, np.concatenate(alone), rtol=0, atol=1e-5)
            kernels = session.kernels()
            assert kernels is not None
            found[batch] = Counter(kernel.operator for kernel in kernels)
    assert found[3] == found[2]
    assert found[3]["Eltwise"] == 0 < found[5]["Eltwise"]
    assert found[3]["Transpose"] < found[5]["Transpose"], "those around convolutions are layouts of their memory"


@pytest.mark.parametrize("count", [1, 3, 8])
def test_throughput_divides_a_batch_and_gives_the_same(model: OnnxModel, count: int) -> None:
    feed = {"input": images(count)}
    with (
        BACKEND.open(model, SessionOptions(threads=2)) as whole,
        BACKEND.open(model, SessionOptions(threads=2, provider="throughput")) as divided,
    ):
        assert "divided over" in " ".join(divided.notes)
        np.testing.assert_allclose(divided.run(feed)["logits"], whole.run(feed)["logits"], rtol=1e-5, atol=1e-5)
        assert (whole.provider, divided.provider) == ("CPU", "CPU throughput")


def test_bf16_beside_8_bits_is_asked_for_by_option_or_plan(model: OnnxModel, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = PrecisionPlan(profile="linear", remainder="bf16")
    planned = OnnxModel(model.path, model.manifest.model_copy(update={"plan": plan}))
    feed = {"input": images(4)}
    with BACKEND.open(model) as session:
        exact = session.run(feed)["logits"]
    monkeypatch.setattr(openvino, "computes_bf16", lambda: True)
    for artifact, options in ((model, SessionOptions(provider="bf16")), (planned, SessionOptions())):
        with BACKEND.open(artifact, options) as session:
            assert session.provider == "CPU BF16"
            assert logits_sqnr_db(session.run(feed)["logits"], exact) > 30
    with BACKEND.open(planned, SessionOptions(provider="fp32")) as session:
        assert session.provider == "CPU"
        assert np.array_equal(session.run(feed)["logits"], exact)


def test_a_cpu_without_bf16_refuses_the_option_and_says_of_a_plan_that_it_ran_in_fp32(
    model: OnnxModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino, "computes_bf16", lambda: False)
    with pytest.raises(BackendError, match="neither AVX-512 BF16 nor AMX, so OpenVINO computes FP32"):
        BACKEND.open(model, SessionOptions(provider="bf16"))
    plan = PrecisionPlan(profile="linear", remainder="bf16")
    with BACKEND.open(OnnxModel(model.path, model.manifest.model_copy(update={"plan": plan}))) as session:
        assert session.provider == "CPU"
        assert "this CPU has not: it ran in FP32" in " ".join(session.notes)


@pytest.mark.parametrize("text", ["npu", "bf16+npu", "fp32+bf16"])
def test_a_mode_that_is_not_known_is_refused(text: str) -> None:
    with pytest.raises(BackendError, match=r"^openvino .*got"):
        Mode.parse(text)


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


@pytest.mark.parametrize("first", ["unavailable()", "version()", "open(read_onnx(sys.argv[1])).close()"])
def test_importing_openvino_tells_nobody(tmp_path: Path, model: OnnxModel, first: str) -> None:
    """Its telemetry would make ``intel`` in the user's home; a package of it that was imported before is left alone."""
    lines = (
        "import sys",
        "from vitdeploy.artifacts import read_onnx",
        "from vitdeploy.backends import get_backend",
        f"get_backend('openvino').{first}",
        "print('openvino' in sys.modules, 'openvino_telemetry' in sys.modules)",
    )
    kept = {name: value for name, value in os.environ.items() if name not in ("CI", "TF_BUILD", "JENKINS_URL")}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines), str(model.path)],
        env=kept | {"HOME": str(tmp_path)}, capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert done.stdout.split() == ["True", "False"]
    assert not (tmp_path / "intel").exists()
