from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from lightning_fabric import Fabric
from small_job import OPTIONS, rows, run, small_job
from torch.multiprocessing.spawn import ProcessRaisedException

from vitdeploy.artifacts import read_checkpoint
from vitdeploy.errors import TrainingError, UsageError
from vitdeploy.training.launch import launch, make_fabric
from vitdeploy.training.options import Hardware

TWO = Hardware(accelerator="cpu", devices=2, strategy="ddp_spawn", threads=1)


def test_two_processes_have_the_loss_curve_of_one(tmp_path):
    """DDP with gloo, at equal global batch: 16 images an update either way, 33 for validation, each counted once."""
    one = run(small_job(tmp_path / "one.safetensors"))
    launch(small_job(tmp_path / "two.safetensors", replace(OPTIONS, hardware=TWO)))
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


def test_an_error_in_a_process_is_one_line(tmp_path, monkeypatch):
    def fail(*arguments):
        trace = (
            "\n\n-- Process 1 terminated with the following error:\nTraceback …\nvitdeploy.errors.TrainingError: no\n"
        )
        raise ProcessRaisedException(trace, 1, 4711)

    monkeypatch.setattr(Fabric, "launch", fail)
    with pytest.raises(TrainingError, match=r"^a training process failed: vitdeploy\.errors\.TrainingError: no$"):
        launch(small_job(tmp_path / "v.safetensors"))


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
def test_hardware_that_fabric_refuses_is_one_line(hardware, message):
    with pytest.raises(UsageError, match=message) as raised:
        make_fabric(hardware)
    assert "\n" not in str(raised.value)
