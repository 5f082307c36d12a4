"""Settings of CPU threads: carried out by the runtimes that have them, refused by the others, rows of their own."""

from __future__ import annotations

import os
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from digits_linear import write_linear

import vitdeploy as vd
from vitdeploy.artifacts import Engine
from vitdeploy.backends import get_backend, threads
from vitdeploy.backends.onnxruntime import session_settings
from vitdeploy.backends.openvino import OpenVINOSession
from vitdeploy.backends.pytorch import open_module
from vitdeploy.benching import probe
from vitdeploy.benching.candidates import of_artifact
from vitdeploy.cli import main
from vitdeploy.errors import BackendError, UsageError
from vitdeploy.report import read_report, write_report
from vitdeploy.sessions import SessionOptions
from vitdeploy.stages.bench import BenchOptions, bench

QUICK = BenchOptions(
    rounds=2, iterations=2, warmup=1, fill_s=0.0, samples=20, threads=1, processes=False, image_to_label=False,
    energy_s=0.0,
)  # fmt: skip


@pytest.fixture
def two_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that may use processors 2, 3, 6 and 7 of a machine, of which 2 and 6 are one core, as are 3 and 7."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2, 3, 6, 7}, raising=False)
    monkeypatch.setattr(threads, "TOPOLOGY", tmp_path)
    for processor, siblings in ((2, "2,6"), (6, "2,6"), (3, "3,7"), (7, "3,7")):
        folder = tmp_path / f"cpu{processor}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings + "\n", "ascii")


@pytest.mark.usefixtures("two_cores")
@pytest.mark.parametrize(
    ("count", "processors"), [(0, [2, 3]), (1, [2]), (2, [2, 3]), (3, [2, 3, 6]), (4, [2, 3, 6, 7])]
)
def test_threads_are_pinned_to_different_cores_first(count: int, processors: list[int]) -> None:
    assert threads.pinned_to(count) == processors


@pytest.mark.usefixtures("two_cores")
def test_more_threads_than_processors_are_not_pinned() -> None:
    with pytest.raises(BackendError, match="5 threads cannot be pinned to 4 processors"):
        threads.pinned_to(5)


@pytest.mark.usefixtures("two_cores")
@pytest.mark.parametrize(
    ("options", "number", "affinities", "spin"),
    [
        (SessionOptions(), 0, "", ""),
        (SessionOptions(pinning=True), 2, "4", ""),
        (SessionOptions(threads=3, pinning=True, spinning=False), 3, "4;7", "0"),
        (SessionOptions(pinning=False, spinning=True), 2, "", "1"),
    ],
)
def test_onnxruntime_gets_processors_counted_from_one(
    options: SessionOptions, number: int, affinities: str, spin: str
) -> None:
    settings = session_settings(options, "fp32")
    found = []
    for key in ("session.intra_op_thread_affinities", "session.intra_op.allow_spinning"):
        try:
            found.append(settings.get_session_config_entry(key))
        except RuntimeError:  # it has no such entry
            found.append("")
    assert (settings.intra_op_num_threads, *found) == (number, affinities, spin)


def _allowed() -> dict[str, str]:
    """Return thread → processors that it may run on, of this process."""
    status = {task.name: (task / "status").read_text() for task in Path("/proc/self/task").iterdir()}
    return {name: re.findall(r"^Cpus_allowed_list:\s*(.*)$", text, re.MULTILINE)[0] for name, text in status.items()}


@pytest.mark.parametrize("pinning", [True, False])
def test_the_threads_of_a_session_are_where_they_should_be(tmp_path: Path, pinning: bool) -> None:
    model, processors, before = write_linear(tmp_path / "m.onnx"), threads.cores(), _allowed()
    expected = [str(one) if pinning else before[str(os.getpid())] for one in processors[1:]]
    with get_backend("onnxruntime").open(model, SessionOptions(device="cpu", pinning=pinning)) as session:
        session.run({"input": np.zeros((1, 1, 8, 8), np.float32)})
        found: list[str] = []
        for _ in range(200):  # a thread pins itself when it starts
            found = sorted(allowed for name, allowed in _allowed().items() if name not in before)
            if found == sorted(expected):
                break
            time.sleep(0.05)
    assert found == sorted(expected)


def test_openvino_says_that_its_threads_are_pinned(tmp_path: Path) -> None:
    model = write_linear(tmp_path / "m.onnx")
    for pinning in (True, False):
        with get_backend("openvino").open(model, SessionOptions(threads=1, pinning=pinning)) as session:
            assert isinstance(session, OpenVINOSession)
            assert session._config["ENABLE_CPU_PINNING"] is pinning


@pytest.mark.parametrize(
    ("backend", "options", "message"),
    [
        ("openvino", SessionOptions(spinning=False), "OpenVINO has no setting for spinning of CPU threads here"),
        ("null", SessionOptions(pinning=True), "null has no setting for pinning of CPU threads here"),
        ("tensorrt-rtx", SessionOptions(pinning=False), "TensorRT-RTX has no setting for pinning of CPU threads here"),
    ],
)
def test_a_runtime_without_a_setting_refuses_it(
    backend: str, options: SessionOptions, message: str, tmp_path: Path
) -> None:
    model = write_linear(tmp_path / "m.onnx")
    artifact = Engine(model.path, model.manifest) if backend.startswith("tensorrt") else model
    with pytest.raises(BackendError, match=message):
        get_backend(backend).open(artifact, options)


def test_pytorch_refuses_both() -> None:
    import torch

    for options in (SessionOptions(pinning=True), SessionOptions(spinning=True)):
        with pytest.raises(BackendError, match="PyTorch has no setting for"):
            open_module(torch.nn.Flatten(), (None, 1, 8, 8), 64, options)


def test_each_setting_is_a_row_that_names_it(tmp_path: Path) -> None:
    model = write_linear(tmp_path / "m.onnx")
    options = replace(QUICK, pinning=(True, False), spinning=(False,))
    page = write_report(bench([model], "digits", options=options), tmp_path / "report")
    report = read_report(page.parent)
    rows = {row.name: (row.pinning, row.spinning, row.status) for row in report.rows}
    assert rows == {
        "m.onnx (ONNX Runtime, CPU, threads pinned and sleeping)": (True, False, "ok"),
        "m.onnx (ONNX Runtime, CPU, threads not pinned and sleeping)": (False, False, "ok"),
    }
    assert "ONNX Runtime · CPU · threads pinned and sleeping" in page.with_suffix(".md").read_text("utf8")
    assert "pinning=(True, False), spinning=(False,)" in str(report.command)


def test_the_process_of_a_row_opens_it_with_its_setting(tmp_path: Path) -> None:
    model, options = write_linear(tmp_path / "m.onnx"), replace(QUICK, processes=True, threads=4096, pinning=(True,))
    (row,) = bench([model], "digits", options=options).rows
    assert row.status == "failed"
    assert "4096 threads cannot be pinned to" in row.reason
    asked = probe.request_of(replace(of_artifact(model, "onnxruntime", "cpu"), pinning=True), batch=1, options=options)
    with pytest.raises(BackendError, match="4096 threads cannot be pinned to"):
        probe.probe(asked)


@pytest.mark.parametrize(
    ("runtimes", "changes", "message"),
    [
        (("openvino",), {"spinning": (False,)}, "OpenVINO has no setting for spinning"),
        (("null",), {"pinning": (True,)}, "null has no setting for pinning"),
        (("onnxruntime", "openvino"), {"spinning": (True,)}, "OpenVINO has no setting for spinning"),
    ],
)
def test_a_bench_refuses_a_setting_before_it_measures(
    runtimes: tuple[str, ...], changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model = write_linear(tmp_path / "m.onnx")
    with pytest.raises(UsageError, match=message):
        bench([model], "digits", options=replace(QUICK, runtimes=runtimes, **changes))


def test_settings_of_threads_without_a_graph_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"spinning is \(True, True\), expected each setting once"):
        BenchOptions(spinning=(True, True))


@pytest.mark.parametrize("words", ["yes", "", "on,of"])
def test_switches_are_on_or_off(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "m.onnx", "--pinning", words]) == 2
    assert f"--pinning is {words!r}, expected on, off or on,off" in capsys.readouterr().err


def test_predict_takes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: dict[str, Any] = {}

    def load(_: Path, options: SessionOptions) -> None:
        taken["options"] = options
        raise KeyboardInterrupt

    monkeypatch.setattr(vd, "load", load)
    assert main(["predict", "m.onnx", "a.png", "--threads", "2", "--pinning", "--no-spinning"]) == 130
    assert taken["options"] == SessionOptions(threads=2, pinning=True, spinning=False)
