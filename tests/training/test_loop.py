from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from present import present
from small_job import OPTIONS, Watched, digits, rows, run, small_job

from vitdeploy.artifacts import read_checkpoint
from vitdeploy.datasets import Dataset
from vitdeploy.datasets.base import Subset
from vitdeploy.errors import DataError, TrainingError, UsageError
from vitdeploy.training.loss import Teacher
from vitdeploy.training.options import Augmentation, Distillation, Hardware, TrainPrecision
from vitdeploy.training.paths import last_path, metrics_path, state_path, tensorboard_path

pytestmark = pytest.mark.slow


class KilledError(Exception):
    """Stands for a process that ends between two statements."""


def die_at(update: int) -> Watched:
    def at(done: int) -> None:
        if done == update:
            raise KilledError

    return Watched(at)


def chosen(found):
    """Of all epochs within a standard error of the highest top-1 among 33 images, the one with the lowest loss."""
    peak = max(row["validation_top1"] for row in found)
    near = [row for row in found if row["validation_top1"] >= peak - (peak * (1 - peak) / 33) ** 0.5]
    return min(near, key=lambda row: row["validation_loss"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory):
    output = tmp_path_factory.mktemp("whole") / "v.safetensors"
    return run(small_job(output))


def same_training(one, other) -> None:
    assert rows(one.path) == rows(other.path)
    ours, theirs = one.tensors(), other.tensors()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)
    assert one.manifest == other.manifest


def test_the_loss_falls_and_every_epoch_has_a_row(whole) -> None:
    found = rows(whole.path)
    assert [row["epoch"] for row in found] == [1, 2, 3, 4]
    assert [row["updates"] for row in found] == [3, 6, 9, 12]
    assert found[-1]["loss"] < found[0]["loss"]
    best = chosen(found)
    metrics = whole.manifest.metrics
    assert metrics["best_epoch"] == best["epoch"]
    assert metrics["validation_top1"] == best["validation_top1"]
    assert metrics["test_images"] == 21
    assert 0 <= metrics["test_top1"] <= 1
    assert whole.manifest.key == "finished"
    assert not state_path(whole.path).exists()


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(whole, tmp_path: Path) -> None:
    same_training(run(small_job(tmp_path / "v.safetensors")), whole)
    other = run(small_job(tmp_path / "w.safetensors", replace(OPTIONS, seed=1)))
    assert rows(other.path)[0]["loss"] != rows(whole.path)[0]["loss"]


@pytest.mark.parametrize("update", [2, 4, 6, 12])
def test_killed_after_any_update_and_resumed_the_training_is_the_uninterrupted_one(
    whole, tmp_path: Path, update: int
) -> None:
    output = tmp_path / "v.safetensors"
    with pytest.raises(KilledError):
        run(small_job(output), die_at(update))
    assert not output.exists()
    watched = Watched()
    same_training(run(small_job(output, resume=True), watched), whole)
    assert watched.done == 12
    assert any(note.startswith("resuming after epoch") for note in watched.notes)


def test_every_part_of_the_state_is_resumed(tmp_path: Path) -> None:
    """Average, drop path, mixing, accumulation and early stopping: killed twice and resumed twice."""
    options = replace(
        OPTIONS, epochs=6, ema_decay=0.9, accumulate=2, augmentation=Augmentation(mixup=0.4, cutmix=1.0), patience=4
    )

    def job(name: str, resume: bool = False):
        made = small_job(tmp_path / name, options, resume=resume)
        for block in made.module.blocks:
            block.drop_path.rate = 0.3
        return made

    uninterrupted = run(job("whole.safetensors"))
    with pytest.raises(KilledError):
        run(job("v.safetensors"), die_at(5))
    with pytest.raises(KilledError):
        run(job("v.safetensors", resume=True), die_at(11))
    same_training(run(job("v.safetensors", resume=True)), uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_a_usable_checkpoint_and_a_state_to_resume(whole, tmp_path: Path, number: Any) -> None:
    output = tmp_path / "v.safetensors"
    watched = Watched(lambda done: os.kill(os.getpid(), number) if done == 7 else None)
    job = small_job(output, replace(OPTIONS, save_every_s=1e9))
    with pytest.raises(KeyboardInterrupt):
        run(job, watched)
    partial = read_checkpoint(output)
    assert partial.manifest.key == "", "a pipeline must not take it for the finished one"
    assert partial.manifest.metrics["epochs"] == 2
    assert "test_top1" not in partial.manifest.metrics
    assert partial.tensors().keys() == whole.tensors().keys()
    assert "stopped after 2 of 4 epochs" in watched.notes[-1]
    same_training(run(small_job(output, resume=True)), whole)


def test_kill_9_leaves_a_state_that_resumes(whole, tmp_path: Path) -> None:
    """A real process, killed while it trains; it would otherwise go on for hours."""
    output = tmp_path / "v.safetensors"
    code = (
        "import sys, time, pathlib; from small_job import *\n"
        "def slow(done):\n    if done == 8: pathlib.Path(sys.argv[2]).touch(); time.sleep(600)\n"
        "run(small_job(pathlib.Path(sys.argv[1])), Watched(slow))"
    )
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests / "support"), str(tests.parent)])}
    reached = tmp_path / "reached"
    process = subprocess.Popen([sys.executable, "-c", code, str(output), str(reached)], env=environment)
    try:
        for _ in range(1200):
            if reached.exists() or process.poll() is not None:
                break
            time.sleep(0.1)
        assert reached.exists()
    finally:
        process.kill()
        process.wait()
    assert not output.exists()
    assert state_path(output).exists()
    same_training(run(small_job(output, resume=True)), whole)


def test_accumulation_changes_no_loss(whole, tmp_path: Path) -> None:
    found = rows(run(small_job(tmp_path / "v.safetensors", replace(OPTIONS, accumulate=4))).path)
    for row, expected in zip(found, rows(whole.path), strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=1e-4)


def test_the_best_weights_are_written_and_the_last_beside_them(tmp_path: Path) -> None:
    """A learning rate that ruins the weights: the best epoch is an early one."""
    options = replace(OPTIONS, epochs=6, learning_rate=3.0, warmup_epochs=3, keep_last=True)
    checkpoint = run(small_job(tmp_path / "v.safetensors", options))
    found = rows(checkpoint.path)
    best = chosen(found)
    assert checkpoint.manifest.metrics["best_epoch"] == best["epoch"] < 6
    last = read_checkpoint(last_path(checkpoint.path))
    assert any((last.tensors()[name] != value).any() for name, value in checkpoint.tensors().items())
    assert last.manifest.metrics["validation_top1"] == found[-1]["validation_top1"]


def test_training_stops_when_validation_gets_no_better(tmp_path: Path) -> None:
    options = replace(OPTIONS, epochs=50, learning_rate=1e-9, patience=2)
    checkpoint = run(small_job(tmp_path / "v.safetensors", options))
    assert len(rows(checkpoint.path)) == checkpoint.manifest.metrics["best_epoch"] + 2 < 50


def test_frozen_parameters_stay_and_the_others_move(tmp_path: Path) -> None:
    job = small_job(tmp_path / "v.safetensors", replace(OPTIONS, epochs=1, freeze=("blocks.0.*",)))
    before = {name: value.numpy().copy() for name, value in job.module.state_dict().items()}
    for name, value in run(job).tensors().items():
        assert (value == before[name]).all() == name.startswith("blocks.0."), name


def test_the_average_of_the_weights_is_evaluated_and_written(tmp_path: Path) -> None:
    """After update u it moves by 1 − min(decay, (1 + u) / (10 + u)) of the way to the weights."""
    job = small_job(tmp_path / "v.safetensors", replace(OPTIONS, epochs=2, ema_decay=0.25, keep_last=True))
    expected = {name: value.clone() for name, value in job.module.state_dict().items()}

    def follow(done: int) -> None:
        for name, value in job.module.state_dict().items():
            expected[name] += (1 - min(0.25, (1 + done) / (10 + done))) * (value - expected[name])

    run(job, Watched(lambda done: follow(done) if done else None))
    average = read_checkpoint(last_path(job.output)).tensors()
    for name, value in expected.items():
        np.testing.assert_allclose(average[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    assert any((average[name] != value.numpy()).any() for name, value in job.module.state_dict().items())


def test_a_loss_that_is_not_a_number_names_the_epoch_and_a_remedy(tmp_path: Path) -> None:
    options = replace(OPTIONS, learning_rate=1e30, clip_norm=None, warmup_epochs=0)
    message = r"the loss is (nan|inf) in epoch 1 of 4: lower the learning rate 1e\+30, set clip_norm \(now None\)"
    with pytest.raises(TrainingError, match=message):
        run(small_job(tmp_path / "v.safetensors", options))
    assert not (tmp_path / "v.safetensors").exists()


def test_layer_decay_and_tensorboard_run_through(tmp_path: Path) -> None:
    options = replace(OPTIONS, epochs=2, layer_decay=0.5, tensorboard=True)
    checkpoint = run(small_job(tmp_path / "v.safetensors", options))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(tensorboard_path(checkpoint.path)))
    board.Reload()
    logged = [event.value for event in board.Scalars("validation_top1")]
    assert logged == pytest.approx([row["validation_top1"] for row in rows(checkpoint.path)])


def test_a_teacher_teaches(tmp_path: Path, whole) -> None:
    """A student that sees wrong labels only, and a teacher that is always right about the pixels' brightness."""
    job = small_job(tmp_path / "v.safetensors", replace(OPTIONS, distillation=Distillation("t", weight=1.0)))

    class Constant(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.one_hot(torch.full((len(x),), 3), 10).float()

    preprocess = present(digits("train", 56).preprocess)
    options = replace(job.options, epochs=8, label_smoothing=0.0)
    run(replace(job, options=options, teacher=Teacher(Constant(), preprocess, preprocess)))
    assert rows(job.output)[-1]["loss"] < 0.3 < rows(whole.path)[-1]["loss"]


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_bf16_trains_and_writes_float32(tmp_path: Path, precision: TrainPrecision) -> None:
    options = replace(OPTIONS, epochs=2, ema_decay=0.5, hardware=Hardware(precision=precision))
    checkpoint = run(small_job(tmp_path / "v.safetensors", options))
    assert {value.dtype for value in checkpoint.tensors().values()} == {np.dtype(np.float32)}
    assert rows(checkpoint.path)[-1]["loss"] < rows(checkpoint.path)[0]["loss"]


def test_the_bar_says_epoch_loss_and_validation(tmp_path: Path) -> None:
    watched = Watched()
    run(small_job(tmp_path / "v.safetensors"), watched)
    assert re.fullmatch(r"epoch 1/4  loss \d\.\d{3}", watched.texts[0])
    assert re.fullmatch(r"epoch 4/4  loss \d\.\d{3}  val top-1 \d+\.\d %", watched.texts[-1])


def test_the_callers_generator_and_threads_are_left_alone(tmp_path: Path) -> None:
    threads, generator = torch.get_num_threads(), None
    job = small_job(tmp_path / "v.safetensors", replace(OPTIONS, epochs=1))
    generator = torch.get_rng_state()
    run(job)
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"freeze": ("head.wieght",)}, r"freeze 'head\.wieght' matches no parameter"),
        (
            {"batch": 15, "augmentation": Augmentation(mixup=1.0)},
            "a pass of one process has 15: choose a batch .* of 2",
        ),
    ],
)
def test_impossible_settings_are_refused_before_training(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    options = replace(OPTIONS, **changes)
    with pytest.raises(UsageError, match=message):
        run(small_job(tmp_path / "v.safetensors", options))
    assert not metrics_path(tmp_path / "v.safetensors").exists()


class Flaky(Subset):
    """Digits of which one cannot be read for a while, or for good."""

    def __init__(self, parent: Dataset, broken: set[int]) -> None:
        super().__init__(parent, np.arange(len(parent)))
        self.broken = broken

    def image(self, index: int) -> Image.Image:
        if index in self.broken:
            raise DataError(f"image {self.name(index)!r} is truncated")
        return super().image(index)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_an_image_that_cannot_be_read_keeps_the_state_and_resuming_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    """Read again as before, the result is that of a training without the fault."""
    monkeypatch.setattr("vitdeploy.training.samples.MEMORY_BYTES", 0)
    options = replace(OPTIONS, save_every_s=1e9, hardware=Hardware(workers=0))
    job = small_job(tmp_path / "v.safetensors", options)
    uninterrupted = run(small_job(tmp_path / "whole.safetensors", options))
    data = Flaky(getattr(job, split), {5})
    name = re.escape(data.name(5))
    done = r"\d+ of 12" if split == "train" else "3 of 12"
    faulty: dict[str, Any] = {split: data}
    with pytest.raises(DataError, match=rf"^image '{name}' is truncated; the state after {done} updates is kept: res"):
        run(replace(job, **faulty))
    assert state_path(job.output).exists()
    with pytest.raises(DataError, match=f"^image '{name}' is truncated"):
        run(small_job(job.output, options, resume=True, **{split: data}))
    data.broken.clear()
    same_training(run(small_job(job.output, options, resume=True, **{split: data})), uninterrupted)


def test_resuming_without_the_images_that_cannot_be_read_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitdeploy.training.samples.MEMORY_BYTES", 0)
    options = replace(OPTIONS, hardware=Hardware(workers=0))
    job = small_job(tmp_path / "v.safetensors", options)
    data = Flaky(job.train, {5, 20})
    with pytest.raises(DataError, match="resume with skip_unreadable=True goes on without such images"):
        run(replace(job, train=data))
    watched = Watched()
    skipping = replace(options, skip_unreadable=True)
    assert skipping.key() == options.key()
    run(small_job(job.output, skipping, resume=True, train=data), watched)
    left_out = sorted(note for note in watched.notes if note.startswith("left out"))
    assert left_out == sorted(f"left out: image {data.name(index)!r} is truncated" for index in (5, 20))
    assert len(rows(job.output)) == 4
