"""A training of a second for tests: a tiny ViT on a few digits."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitdeploy.artifacts import Checkpoint, read_checkpoint
from vitdeploy.datasets import Dataset, open_dataset
from vitdeploy.datasets.base import Subset
from vitdeploy.models import model_from_spec
from vitdeploy.progress import SILENT
from vitdeploy.records import Manifest, ModelSpec
from vitdeploy.training.launch import make_fabric
from vitdeploy.training.loop import Job, fit
from vitdeploy.training.options import TrainOptions
from vitdeploy.training.paths import metrics_path

OPTIONS = TrainOptions(epochs=4, batch=16, learning_rate=5e-3, save_every_s=0.0)
ARGUMENTS = {
    "image_size": 8, "patch": 4, "channels": 1, "num_classes": 10, "width": 16, "depth": 2, "heads": 2,
    "init": "xavier", "position_std": 0.2,
}  # fmt: skip


@functools.cache
def digits(split: str, count: int) -> Dataset:
    return Subset(open_dataset(f"digits:{split}"), np.arange(count))


def small_job(output: Path, options: TrainOptions = OPTIONS, **changes: Any) -> Job:
    train = digits("train", 56)  # 3 updates of 16, and 8 images left over in each epoch
    spec = ModelSpec(family="vit", name="vit", arguments=dict(ARGUMENTS), classes=train.classes)
    manifest = Manifest(kind="checkpoint", key="finished", model=spec, preprocess=train.preprocess)
    torch.manual_seed(0)
    module = model_from_spec(spec)
    job = Job(module, manifest, options, output, train, digits("validation", 33), digits("test", 21))
    return replace(job, **changes)


class Watched:
    """A progress that records what it is told, and calls ``at`` with the number of updates done."""

    def __init__(self, at: Callable[[int], None] = lambda done: None) -> None:
        self.at = at
        self.done = 0
        self.notes: list[str] = []
        self.texts: list[str] = []

    @contextmanager
    def task(self, description: str, total: float | None = None) -> Iterator[Any]:
        with SILENT.task(description) as silent:
            yield self if description.startswith("training") else silent

    def advance(self, steps: float = 1) -> None:
        self.done += int(steps)
        self.at(self.done)

    def describe(self, text: str) -> None:
        self.texts.append(text)

    def note(self, text: str) -> None:
        self.notes.append(text)


def run(job: Job, progress: Any = None) -> Checkpoint:
    """Train in this process."""
    fabric = make_fabric(replace(job.options.hardware, accelerator="cpu"))
    fabric.launch(fit, job, progress or Watched())
    return read_checkpoint(job.output)


def rows(output: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in metrics_path(output).read_text().splitlines()]
