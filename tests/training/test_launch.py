from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lightning_fabric import Fabric
from small_job import OPTIONS, Watched, rows, run, small_job
from torch.multiprocessing.spawn import ProcessRaisedException

from vitdeploy.artifacts import read_checkpoint
from vitdeploy.errors import DataError, TrainingError, UsageError
from vitdeploy.training.launch import launch, make_fabric
from vitdeploy.training.options import Hardware

pytestmark = pytest.mark.slow

TWO = Hardware(accelerator="cpu", devices=2, threads=1)


def test_two_processes_have_the_loss_curve_of_one(tmp_path: Path) -> None:
    """DDP with gloo, at equal global batch: 16 images an update either way, 33 for validation, each counted once."""
    one = run(small_job(tmp_path / "one.safetensors"))
    watched = Watched()
    launch(small_job(tmp_path / "two.safetensors", replace(OPTIONS, hardware=TWO)), watched)
    assert watched.done == 12, "the bar of the first process is drawn here"
    assert watched.texts[-1].startswith("epoch 4/4  loss ")
    two = read_checkpoint(tmp_path / "two.safetensors")
    assert len(rows(two.path)) == len(rows(one.path)) == 4
    for found, expected in zip(rows(two.path), rows(one.path), strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4)
        assert found["validation_loss"] == pytest.approx(expected["validation_loss"], rel=1e-4)
        assert found["validation_top1"] == expected["validation_top1"]
    assert two.manifest.metrics["test_images"] == 21
    for name, value in one.tensors().items():
        if not name.endswith("qkv.bias"):  # k's bias moves no output, so Adam makes steps of its rounding errors
            np.testing.assert_allclose(two.tensors()[name], value, atol=1e-3, err_msg=name)


@pytest.mark.parametrize(
    ("last_line", "error", "message"),
    [
        ("vitdeploy.errors.TrainingError: no", TrainingError, "^no$"),
        ("vitdeploy.errors.DataError: image 'a.jpg': bad", DataError, "^image 'a.jpg': bad$"),
        ("RuntimeError: gloo: gone", TrainingError, "^a training process failed: RuntimeError: gloo: gone$"),
    ],
)
def test_an_error_in_a_process_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last_line: str, error: type[Exception], message: str
) -> None:
    def fail(*arguments) -> None:
        trace = f"\n\n-- Process 1 terminated with the following error:\nTraceback …\n{last_line}\n"
        raise ProcessRaisedException(trace, 1, 4711)

    monkeypatch.setattr(Fabric, "launch", fail)
    with pytest.raises(error, match=message):
        launch(small_job(tmp_path / "v.safetensors", replace(OPTIONS, hardware=TWO)))


def test_an_interrupt_of_the_processes_is_one_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments) -> None:
        raise ProcessRaisedException("\n\n-- Process 0 terminated:\nTraceback …\nKeyboardInterrupt\n", 0, 4711)

    monkeypatch.setattr(Fabric, "launch", fail)
    with pytest.raises(KeyboardInterrupt):
        launch(small_job(tmp_path / "v.safetensors", replace(OPTIONS, hardware=TWO)))


def test_one_device_needs_no_process_and_several_are_started_from_here() -> None:
    assert make_fabric(Hardware(accelerator="cpu")).strategy.launcher is None
    assert type(make_fabric(TWO).strategy.launcher).__name__ == "_MultiProcessingLauncher"


def test_under_torchrun_the_processes_are_those_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": 1, "LOCAL_RANK": 1, "WORLD_SIZE": 2, "GROUP_RANK": 0, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    fabric = make_fabric(TWO)
    assert fabric.strategy.cluster_environment.creates_processes_externally
    assert type(fabric.strategy.launcher).__name__ != "_MultiProcessingLauncher"
    with pytest.raises(UsageError, match=r"Lightning Fabric refuses .*devices=3"):
        make_fabric(replace(TWO, devices=3))


@pytest.mark.parametrize(
    ("hardware", "message"),
    [
        (Hardware(accelerator="abacus"), "Lightning Fabric refuses accelerator='abacus', .*: "),
        (Hardware(strategy="hope"), "Lightning Fabric refuses .*strategy='hope'"),
        (Hardware(accelerator="cpu", devices=0), "Lightning Fabric refuses .*devices=0"),
        (Hardware(accelerator="cpu", precision="16-mixed"), "precision '16-mixed' needs a GPU"),
        (Hardware(accelerator="cpu", devices="many"), "Lightning Fabric refuses .*devices='many'"),
    ],
)
def test_hardware_that_fabric_refuses_is_one_line(hardware: Hardware, message: str) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        make_fabric(hardware)
    assert "\n" not in str(raised.value)
