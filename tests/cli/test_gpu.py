"""``--gpu N``: one GPU of several, for every runtime of the process alike."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from vitdeploy import environment
from vitdeploy.cli import main
from vitdeploy.errors import UsageError

COMMANDS = (["build", "m.onnx", "-o", "m.engine"], ["bench", "m.onnx"], ["run"])


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine whose driver lists two GPUs, in a process that has not looked yet."""
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.setenv(name, "")  # put back when the test ends
        del os.environ[name]
    monkeypatch.setattr(environment, "_output", lambda command: "GPU 0: A (UUID: GPU-a)\nGPU 1: B (UUID: GPU-b)")
    environment.current.cache_clear()
    yield
    environment.current.cache_clear()


@pytest.mark.parametrize(
    ("visible", "number", "chosen"),
    [(None, 0, "0"), (None, 1, "1"), ("3,5", 1, "5"), ("GPU-b,GPU-a", 0, "GPU-b")],
)
def test_the_gpu_is_the_only_one_of_the_process(
    two_gpus: None, monkeypatch: pytest.MonkeyPatch, visible: str | None, number: int, chosen: str
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    environment.select_gpu(number)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == chosen
    assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_a_gpu_that_is_not_there_is_refused(two_gpus: None) -> None:
    with pytest.raises(UsageError, match="there is no GPU 2: this machine has 2, numbered from 0"):
        environment.select_gpu(2)
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_a_gpu_is_not_changed_once_the_process_has_looked(two_gpus: None) -> None:
    environment.current()
    with pytest.raises(UsageError, match="the GPU has to be chosen before CUDA is used"):
        environment.select_gpu(1)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_chooses_it_first(
    command: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(number: int) -> None:
        raise UsageError(f"there is no GPU {number}: this machine has 2, numbered from 0")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(environment, "select_gpu", refuse)
    assert main([*command, "--gpu", "7"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("there is no GPU 7: this machine has 2, numbered from 0")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", COMMANDS[:2])
def test_another_machine_has_gpus_of_its_own(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--gpu", "1", "--on", "me@board"]) == 2
    assert "--gpu chooses among the GPUs of this machine: leave it out with --on" in capsys.readouterr().err
