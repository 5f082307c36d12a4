"""What the bench compares with: the checkpoint behind the artifacts, a named source, stored logits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from digits_linear import (
    BIAS,
    PREPROCESS,
    QUICK,
    SPEC,
    WEIGHT,
    ScriptedBackend,
    in_steps,
    linear_logits,
    linear_manifest,
    row_of,
    write_linear,
)
from notes import Notes

from vitdeploy.artifacts import write_checkpoint
from vitdeploy.artifacts.reference import ReferenceInfo, write_reference
from vitdeploy.benching import probe
from vitdeploy.benching.baseline import Scene, choose_baseline
from vitdeploy.benching.candidates import Candidate, list_candidates, of_loaded
from vitdeploy.datasets import load_pixels, open_dataset
from vitdeploy.errors import BackendError
from vitdeploy.preprocess import normalize
from vitdeploy.records import ModelSpec
from vitdeploy.sessions import Session
from vitdeploy.sources.source import SourceOptions, open_source
from vitdeploy.stages.bench import BenchOptions, bench

pytestmark = pytest.mark.slow


def test_a_checkpoint_among_the_artifacts_is_the_baseline(tmp_path: Path, checkpoint, script) -> None:
    script(ScriptedBackend("pytorch", call_ms={"cpu": 100.0}))
    report = bench([write_linear(tmp_path / "m.onnx").path, checkpoint.path], "digits", options=QUICK)
    assert [row.name for row in report.rows] == ["linear.safetensors", "m.onnx"]
    assert report.baseline.row == "linear.safetensors"
    assert report.baseline.accuracy_against == "PyTorch eager FP32 of linear.safetensors"
    assert report.baseline.payload_sha256 == checkpoint.digest
    row = row_of(report, "m.onnx")
    assert row.delta_top1_pp == 0
    assert row.timings[0].speedup > 10
    assert report.baseline.latency_rows == {"m.onnx": "linear.safetensors"}


def test_the_checkpoint_that_an_artifact_was_made_from_is_found_beside_it_over_all_links(
    tmp_path: Path, checkpoint, script
) -> None:
    script(ScriptedBackend("pytorch"))
    fp32 = write_linear(tmp_path / "m.onnx", parents={"checkpoint": checkpoint.digest})
    int8 = write_linear(
        tmp_path / "m.int8.onnx", in_steps(WEIGHT, 127), precision="int8", parents={"onnx": fp32.digest}
    )
    report = bench([int8.path], "digits", options=QUICK)
    assert [row.name for row in report.rows] == ["linear.safetensors", "m.int8.onnx"]


def test_a_checkpoint_of_another_digest_or_a_damaged_one_is_not_taken(tmp_path: Path, checkpoint, script) -> None:
    script(ScriptedBackend("pytorch"))
    model = write_linear(tmp_path / "m.onnx", parents={"checkpoint": checkpoint.digest})
    data = bytearray(checkpoint.path.read_bytes())
    data[-1] ^= 1
    checkpoint.path.write_bytes(data)
    write_checkpoint(tmp_path / "other.safetensors", {"weight": WEIGHT * 2}, linear_manifest(kind="checkpoint"))
    report = bench([model.path], "digits", options=QUICK)
    assert [row.name for row in report.rows] == ["m.onnx"]
    assert "not PyTorch" in report.baseline.accuracy_against


@pytest.mark.parametrize("foreign", ["best.pth", "pytorch_model.bin", "model.safetensors", None])
def test_what_was_looked_for_is_said_and_foreign_weights_that_are_there(
    tmp_path: Path, script, foreign: str | None
) -> None:
    script(ScriptedBackend("pytorch"))
    model = write_linear(tmp_path / "m.onnx", parents={"checkpoint": "5" * 64})
    write_checkpoint(tmp_path / "other.safetensors", {"weight": WEIGHT}, linear_manifest(kind="checkpoint"))
    if foreign is not None:
        content = b"PK" if not foreign.endswith(".safetensors") else (2).to_bytes(8, "little") + b"{}"
        (tmp_path / foreign).write_bytes(content)
    notes, data = Notes(), open_dataset("digits:test")
    found = choose_baseline(Scene([model], [], ("onnxruntime",), None, data), None, notes)
    assert "555555555555…, which they were made from, is not beside them" in found.accuracy_against
    advice = [line for line in notes.lines if "beside them: no checkpoint of vitdeploy's" in line]
    assert len(advice) == (foreign is not None)
    assert all(line.startswith(f"{foreign} ") and f"weights='{tmp_path / str(foreign)}'" in line for line in advice)


def test_a_named_baseline_is_taken_and_is_the_first_row(tmp_path: Path, checkpoint, script) -> None:
    script(ScriptedBackend("pytorch"))
    shutil.copy(checkpoint.path, tmp_path / "copy.safetensors")
    other = write_checkpoint(tmp_path / "o.safetensors", {"weight": WEIGHT * 2}, linear_manifest(kind="checkpoint"))
    model = write_linear(tmp_path / "m.onnx")
    report = bench([model.path, checkpoint.path], "digits", baseline=str(other.path), options=QUICK)
    assert [row.name for row in report.rows] == ["o.safetensors", "linear.safetensors", "m.onnx"]
    graph = bench([checkpoint.path], "digits", baseline=str(model.path), options=QUICK)
    assert graph.baseline.row == "m.onnx"
    assert graph.baseline.accuracy_against == "m.onnx under ONNX Runtime, as named"


def test_a_named_checkpoint_needs_torch_and_the_line_says_how_to_get_it(tmp_path: Path, checkpoint, script) -> None:
    absent = ScriptedBackend("pytorch", missing="torch cannot be imported: pip install 'vitdeploy[torch]'")
    script(absent)
    model = write_linear(tmp_path / "m.onnx")
    with pytest.raises(BackendError, match=r"needs PyTorch: torch cannot be imported.*pip install"):
        bench([model.path], "digits", baseline=str(checkpoint.path), options=QUICK)
    report = bench([model.path, checkpoint.path], "digits", options=QUICK)
    assert row_of(report, "linear.safetensors").status == "skipped"
    assert "pip install" in row_of(report, "linear.safetensors").reason
    assert "torch is not installed" in report.baseline.accuracy_against
    assert report.baseline.row == "m.onnx"


def test_without_torch_stored_logits_stand_in_for_pytorch_and_latency_is_against_the_fp32_graph(
    tmp_path: Path, script
) -> None:
    absent = ScriptedBackend("pytorch", missing="torch cannot be imported: pip install 'vitdeploy[torch]'")
    script(absent)
    fp32 = write_linear(tmp_path / "m.onnx")
    int8 = write_linear(
        tmp_path / "m.int8.onnx", in_steps(WEIGHT, 127), precision="int8", parents={"onnx": fp32.digest}
    )
    test = open_dataset("digits:test")
    stored = linear_logits(normalize(load_pixels(test, PREPROCESS), PREPROCESS)) + np.float32(0.01)
    info = ReferenceInfo(
        onnx_sha256=fp32.digest, data_sha256=test.digest, sample_ids=test.sample_ids, origin="", logits_sha256=""
    )
    write_reference(fp32.path, info, stored)
    for artifacts in ([fp32.path, int8.path], [int8.path]):
        report = bench(artifacts, "digits", options=QUICK)
        assert report.baseline.row is None
        assert "PyTorch's logits as export stored them (torch is not installed)" in report.baseline.accuracy_against
        row = row_of(report, "m.int8.onnx")
        assert row.delta_top1_pp is not None
        assert 20 < row.logits_sqnr_db < 60
    report = bench([fp32.path, int8.path], "digits", options=QUICK)
    assert 40 < row_of(report, "m.onnx").logits_sqnr_db < 80
    assert report.baseline.latency_against == "the FP32 graph on the same runtime and device"
    assert report.baseline.latency_rows == {"m.int8.onnx": "m.onnx"}
    other = bench([fp32.path], "digits:validation", options=QUICK)  # samples that were not stored
    assert other.baseline.row == "m.onnx"


@pytest.mark.torch
def test_the_checkpoint_under_pytorch_is_the_baseline_of_what_was_exported_from_it(tmp_path: Path) -> None:
    """Nothing scripted: PyTorch, its process of its own, and a graph that export wrote."""
    import torch

    from vitdeploy.models.registry import create_model
    from vitdeploy.stages.export import export

    arguments = {"image_size": 8, "patch": 4, "channels": 1, "num_classes": 10, "width": 32, "depth": 1, "heads": 2}
    torch.manual_seed(0)
    module = create_model("vit", **arguments)
    spec = ModelSpec(family="vit", name="small", arguments=arguments, classes=SPEC.classes)
    weights = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    checkpoint = write_checkpoint(tmp_path / "vit.safetensors", weights, linear_manifest(kind="checkpoint", model=spec))
    model = export(str(checkpoint.path), tmp_path / "vit.onnx")
    options = BenchOptions(**{**QUICK.__dict__, "processes": True, "threads": 1})
    report = bench([model.path], "digits", options=options)
    base, row = report.rows
    assert (base.name, base.backend, base.provider) == ("vit.safetensors", "pytorch", "eager-cpu")
    assert base.peak_memory_bytes > row.peak_memory_bytes  # torch is the larger library
    assert row.logits_sqnr_db > 90
    assert row.agreement == 1.0
    assert row.delta_top1_pp == 0.0
    assert row.timings[0].speedup_ci95 is not None
    assert report.baseline.latency_rows == {"vit.onnx": "vit.safetensors"}


@pytest.mark.torch
def test_a_source_that_is_no_artifact_is_loaded_into_pytorch_as_the_baseline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from vitdeploy.sources import load as sources
    from vitdeploy.sources.load import LoadedModel

    linear = torch.nn.Linear(64, 10)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(WEIGHT.T.copy()))
        linear.bias.copy_(torch.from_numpy(BIAS))
    loaded = LoadedModel(torch.nn.Sequential(torch.nn.Flatten(), linear), SPEC, PREPROCESS, "d" * 64, "a hub")
    asked = []

    def load(source):
        asked.append(source.text)
        return loaded

    monkeypatch.setattr(sources, "_load", load)

    report = bench([write_linear(tmp_path / "m.onnx").path], "digits", baseline="timm:linear", options=QUICK)
    base, row = report.rows
    assert (base.name, base.backend, base.size_bytes, base.status) == ("timm:linear", "pytorch", None, "ok")
    assert base.payload_sha256 == loaded.digest
    assert report.baseline.accuracy_against == "PyTorch eager FP32 of timm:linear"
    assert row.logits_identical or row.logits_sqnr_db > 90

    candidate = of_loaded(open_source("timm:linear"), loaded, "cpu")
    cost = probe.probe(probe.request_of(candidate, batch=2, options=BenchOptions(threads=1)))
    assert cost.reason == ""
    assert cost.load_ms > 0
    assert cost.first_inference_ms > 0
    assert asked == ["timm:linear", "timm:linear"]


@pytest.mark.torch
@pytest.mark.parametrize("named", ["weights", "random", "features"])
def test_the_process_of_a_baseline_opens_it_with_all_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    """A family with weights, labels, preprocessing and arguments beside it is the same model there."""
    from safetensors.torch import save_file

    from vitdeploy.sources.load import load

    (tmp_path / "own.txt").write_text("no\nyes\n")
    arguments = {"image_size": 8, "patch": 4, "width": 16, "depth": 1, "heads": 2, "channels": 1, "num_classes": 2}
    path = tmp_path / "own.safetensors"
    drawn = load(open_source("vit", SourceOptions(random_weights=True, arguments=arguments, preprocess=PREPROCESS)))
    save_file(drawn.module.state_dict(), path)
    brought: dict[str, Any] = {"arguments": arguments, "labels": tmp_path / "own.txt", "preprocess": PREPROCESS}
    if named == "features":
        body = {name: value for name, value in arguments.items() if name != "num_classes"}
        brought = {"arguments": body, "preprocess": PREPROCESS, "task": "features"}
    weights: dict[str, Any] = {"random_weights": True} if named == "random" else {"weights": path}
    source = open_source("vit", SourceOptions(**weights, **brought))
    candidate = of_loaded(source, load(source), "cpu")
    assert candidate.name == ("vit" if named == "random" else "own.safetensors")
    assert candidate.size_bytes() == (None if named == "random" else path.stat().st_size)
    request = json.loads(json.dumps(probe.request_of(candidate, batch=1, options=BenchOptions())))
    assert probe.probe(request).reason == ""


def test_a_candidate_is_opened_in_its_own_process_as_in_the_bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a graph whose nodes may fall back to the CPU is measured, and its load time said to be unknown."""
    (candidate, *_) = list_candidates([write_linear(tmp_path / "m.onnx")], ("onnxruntime",), "cpu")
    opened: list[dict[str, object]] = []
    opening = Candidate.open

    def open_candidate(self: Candidate, **options: object) -> Session:
        opened.append(options)
        return opening(self)

    monkeypatch.setattr(Candidate, "open", open_candidate)
    options = BenchOptions(threads=2, tf32=True, cuda_graph=False, cpu_fallback=True)
    assert probe.probe(probe.request_of(candidate, batch=1, options=options)).reason == ""
    assert opened == [{"threads": 2, "tf32": True, "cuda_graph": False, "cpu_fallback": True}]
