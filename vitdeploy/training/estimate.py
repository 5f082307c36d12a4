"""How long a training will take, from a few passes on a copy of the model before it starts."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from vitdeploy.datasets import Dataset
from vitdeploy.training.loss import Criterion, Teacher
from vitdeploy.training.samples import Samples, StreamedSamples

FEW = 4
WHOLE_PASS_S = 2.0
"""A whole pass is measured where it is expected to take less; of longer ones a few images stand for the rest."""
FORWARD_SHARE = 1 / 3
"""Of a training pass, that evaluation takes: a backward pass costs about two forward passes."""


def seconds_per_image(
    fabric: Fabric, module: nn.Module, batch: Tensor, labels: Tensor, criterion: Criterion, teacher: Teacher | None
) -> float:
    """Return how long forward and backward take per image of ``batch`` [b, C, H, W], on a copy of the module."""
    copied = copy.deepcopy(module).train()

    def run(images: Tensor, truth: Tensor) -> None:
        with fabric.autocast():
            taught = None if teacher is None else teacher(images)
            loss = criterion(copied(fabric.strategy.precision.convert_input(images)), truth, taught)
        loss.backward()  # type: ignore[no-untyped-call]
        copied.zero_grad(set_to_none=True)

    few = slice(0, min(FEW, len(batch)))
    with _kept_generator():
        run(batch[few], labels[few])  # the first pass also prepares memory and kernels
        taken = _timed(lambda: run(batch[few], labels[few]), fabric.device) / len(batch[few])
        if taken * len(batch) < WHOLE_PASS_S:
            taken = min(_timed(lambda: run(batch, labels), fabric.device) for _ in range(2)) / len(batch)
    return taken


def loading_seconds(samples: Samples, dataset: Dataset) -> float:
    """Return how long an image takes to be read and varied, shared by the worker processes; 0 for images in memory."""
    if not isinstance(samples, StreamedSamples):
        return 0.0
    few = range(0, len(dataset), max(1, len(dataset) // FEW))[:FEW]
    start = time.perf_counter()
    for index in few:
        samples.images[(0, index)]
    return (time.perf_counter() - start) / len(few) / max(1, samples.workers)


def _timed(run: Callable[[], None], device: torch.device) -> float:
    _wait_for(device)
    start = time.perf_counter()
    run()
    _wait_for(device)
    return time.perf_counter() - start


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _kept_generator() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        yield
