"""A lowered graph gives what the portable one gives, and is refused by whatever it was not made for."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from notes import Notes
from readout_vit import write_readout_vit

from vitdeploy import environment
from vitdeploy.artifacts import OnnxModel, read_onnx
from vitdeploy.backends import get_backend, lowering
from vitdeploy.backends.lowered import lowered_path
from vitdeploy.backends.lowering import lower
from vitdeploy.backends.onnxruntime import OnnxRuntimeBackend
from vitdeploy.errors import BackendError, UsageError
from vitdeploy.records import CpuIntegers, PairedSpeed
from vitdeploy.sessions import SessionOptions
from vitdeploy.stages.inspect import inspect
from vitdeploy.stages.package import package
from vitdeploy.stages.quantize import QuantizeOptions, quantize
from vitdeploy.stages.triton import write_triton_repository

LOWER = QuantizeOptions(threads=1, samples=60, method="minmax", equalization="off", effort="fast", lower=True)
ON_CPU = SessionOptions(provider="cpu", threads=1)


FASTER, SLOWER, EQUAL = (
    PairedSpeed(batch=1, speedup=ratio, interval=(ratio - 0.1, ratio + 0.1)) for ratio in (1.2, 0.8, 1.0)
)


@pytest.fixture(scope="module")
def portable(tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    folder = tmp_path_factory.mktemp("lowered")
    source = write_readout_vit(folder / "vit.onnx", 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lowering, "pair_timer", lambda *_: lambda *_: (FASTER, EQUAL))
        return quantize(
            source, folder / "int8.onnx", precision="int8", target="onnxruntime", calibration="digits", options=LOWER
        )


@pytest.fixture
def lowered(portable: OnnxModel) -> OnnxModel:
    return read_onnx(lowered_path(portable.path))


def test_it_gives_the_portable_graphs_logits_and_says_what_it_is_for(portable: OnnxModel, lowered: OnnxModel) -> None:
    assert portable.manifest.lowered is None
    made_for, (check,) = lowered.manifest.lowered, lowered.manifest.checks
    assert made_for is not None
    assert (made_for.runtime, made_for.cpu, made_for.portable) == ("onnxruntime", environment.cpu_name(), "int8.onnx")
    assert (check.name, check.status, check.limit) == ("logits SQNR of the portable graph", "passed", 60.0)
    images = np.random.default_rng(0).standard_normal((5, 1, 8, 8), np.float32)
    with OnnxRuntimeBackend().open(portable, ON_CPU) as before, OnnxRuntimeBackend().open(lowered, ON_CPU) as after:
        old, new = before.run({"input": images})["logits"], after.run({"input": images})["logits"]
    assert 10 * np.log10(np.sum(old**2) / max(np.sum((new - old) ** 2), 1e-30)) >= 60
    census = inspect(lowered, runtime="onnxruntime").census
    assert census is not None
    assert portable.manifest.plan is not None
    planned = [entry for entry in portable.manifest.plan.entries if entry.precision == "int8"]
    divided = [node for node in portable.load().graph if node.op_type == "Split"]
    assert len(divided) == 2, "q, k and v of each block"
    assert census.integer == census.planned == len(planned) + 2 * len(divided)


def test_a_step_that_does_not_gain_is_left_out(
    portable: OnnxModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = OnnxModel(tmp_path / "int8.onnx", portable.manifest)
    copy.path.write_bytes(portable.path.read_bytes())
    for verdicts, kept in (([FASTER, SLOWER, EQUAL], "biases"), ([SLOWER, EQUAL], None)):
        left, notes = list(verdicts), Notes()
        monkeypatch.setattr(lowering, "pair_timer", lambda *_, left=left: lambda *_: (left.pop(0),))
        found = lower(copy, notes)
        steps = () if found is None or found.manifest.lowered is None else found.manifest.lowered.steps
        assert [step.split()[0] for step in steps] == ([] if kept is None else [kept])
        assert not left
        assert any("slower: 1.250× [1.111, 1.429] the time at batch 1, left out" in line for line in notes.lines)
    assert notes.lines[-1].endswith(
        "no step makes int8.onnx faster on this machine; int8.lowered.onnx as it is there was made of an earlier graph"
    )


def test_another_release_processor_or_runtime_names_the_portable_graph(
    lowered: OnnxModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(OnnxRuntimeBackend, "version", lambda self: "1.99.0")
        with pytest.raises(BackendError, match=r"lowered for ONNX Runtime .* and this is ONNX Runtime 1\.99\.0"):
            OnnxRuntimeBackend().open(lowered, ON_CPU)
    with monkeypatch.context() as patch:
        patch.setattr(environment, "cpu_name", lambda: "A Processor of 2011")
        with pytest.raises(BackendError, match=r"on A Processor of 2011: take 'int8.onnx', which it was made from"):
            OnnxRuntimeBackend().open(lowered, ON_CPU)
    pytest.importorskip("openvino", reason="openvino is an extra: pip install 'vitdeploy[openvino]'")
    with pytest.raises(BackendError, match="and this is OpenVINO"):
        get_backend("openvino").open(lowered)


def test_a_processor_of_the_same_name_that_multiplies_otherwise_is_another(
    lowered: OnnxModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lowered.manifest.lowered is not None
    here = lowered.manifest.lowered.integers
    words = {"any": "without VNNI", "vnni": "with VNNI", "amx": "with AMX", None: ""}
    there: CpuIntegers = "any" if here != "any" else "vnni"
    monkeypatch.setattr(environment, "cpu_integers", lambda: there)
    cpu = re.escape(environment.cpu_name())
    with pytest.raises(BackendError, match=rf"on {cpu} {words[here]}, and this is .* on {cpu} {words[there]}: take"):
        OnnxRuntimeBackend().open(lowered, ON_CPU)


def test_the_portable_graph_is_named_as_it_is_called_now(
    portable: OnnxModel, lowered: OnnxModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "über hier"
    folder.mkdir()
    copy = Path(shutil.copy(lowered.path, folder / "schnell 1.onnx"))
    monkeypatch.setattr(environment, "cpu_name", lambda: "A Processor of 2011")
    digest = portable.digest[:12]
    gone = f"take 'int8.onnx', which it was made from and which is not beside it (digest {digest})"
    with pytest.raises(BackendError, match=re.escape(gone)):
        OnnxRuntimeBackend().open(read_onnx(copy), ON_CPU)
    shutil.copy(portable.path, folder / "für alle.onnx")
    with pytest.raises(BackendError, match=r"take 'für alle.onnx', which it was made from$"):
        OnnxRuntimeBackend().open(read_onnx(copy), ON_CPU)


def test_what_others_are_to_run_is_not_made_of_it(portable: OnnxModel, lowered: OnnxModel, tmp_path: Path) -> None:
    message = r"was lowered for ONNX Runtime .*, which others refuse: take 'int8.onnx', which it was made from"
    for artifacts in ([lowered], [portable, lowered]):
        with pytest.raises(UsageError, match=message):
            package(artifacts, tmp_path / "vit.bundle")
        with pytest.raises(UsageError, match=message):
            write_triton_repository(artifacts, tmp_path / "models")
    assert list(tmp_path.iterdir()) == []


def test_with_an_unknown_release_it_is_not_written_and_that_is_said(
    portable: OnnxModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OnnxRuntimeBackend, "version", lambda self: "1.99.0")
    copy = OnnxModel(tmp_path / "int8.onnx", portable.manifest)
    copy.path.write_bytes(portable.path.read_bytes())
    notes = Notes()
    assert lower(copy, notes) is None
    assert "int8.lowered.onnx was not written: lowering was measured with ONNX Runtime 1.32, not 1.99.0" in notes.lines
    assert not lowered_path(copy.path).exists()


@pytest.mark.parametrize(("precision", "target"), [("int8", "openvino"), ("int8", "tensorrt"), ("fp16", "onnxruntime")])
def test_it_is_for_int8_in_onnxruntime(portable: OnnxModel, tmp_path: Path, precision: str, target: str) -> None:
    source = portable.path.with_name("vit.onnx")
    with pytest.raises(UsageError, match="lower is for precision 'int8' and target 'onnxruntime'"):
        quantize(
            source,
            tmp_path / "out.onnx",
            precision=precision,  # type: ignore[arg-type]
            target=target,  # type: ignore[arg-type]
            calibration="digits",
            options=LOWER,
        )
    assert list(tmp_path.iterdir()) == []
