from __future__ import annotations

import itertools
import multiprocessing
import os
import re
import signal
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vitdeploy.datasets import open_dataset
from vitdeploy.datasets.base import DatasetBase, Subset
from vitdeploy.errors import DataError, TrainingError, UsageError
from vitdeploy.progress import SILENT
from vitdeploy.records import Preprocess
from vitdeploy.training.augment import RandomAffine
from vitdeploy.training.options import Augmentation, AugmentationKind, Hardware, TrainOptions
from vitdeploy.training.samples import MemorySamples, Plan, StreamedSamples, open_samples, worker_failure

CPU = torch.device("cpu")
NONE = TrainOptions(augmentation=Augmentation(kind="none"), hardware=Hardware(workers=0))


@pytest.fixture(scope="module")
def digits() -> Subset:
    return Subset(open_dataset("digits:train"), np.arange(20))


def opened(digits, options=NONE, **plan: Any):
    settings = {"count": 20, "batch": 8, "accumulate": 1, "seed": 0, **plan}
    return open_samples(digits, digits.preprocess, options, Plan(**settings), CPU, SILENT)


def test_an_epoch_takes_each_sample_at_most_once_in_a_fresh_order() -> None:
    plan = Plan(count=20, batch=6, accumulate=1, seed=0)
    updates = dict(plan.updates(0, 6))
    assert plan.updates_per_epoch == 3
    first, second = (np.concatenate([updates[u] for u in group]) for group in ((0, 1, 2), (3, 4, 5)))
    assert len(set(first.tolist())) == len(set(second.tolist())) == 18
    assert first.tolist() != second.tolist()
    assert [updates[4].tolist()] == [samples.tolist() for _, samples in plan.updates(4, 5)]


def test_repeated_samples_follow_each_other_and_are_varied_apart(digits: Subset) -> None:
    plan = Plan(count=20, batch=6, accumulate=1, seed=0, repeats=3)
    order = plan.order(0).reshape(-1)
    assert len(order) == 20
    assert (order[:18].reshape(6, 3) == order[:18:3, None]).all()
    assert len(set(order.tolist())) == 7
    options = replace(NONE, augmentation=Augmentation(kind="timm"))
    spec = Preprocess(size=(24, 24), channels=3, resize_size=24, mean=(0.5,) * 3, std=(0.5,) * 3)
    ((images, labels),) = next(iter(open_samples(digits, spec, options, plan, CPU, SILENT).updates(0, 1)))
    assert labels[0] == labels[1] == labels[2]
    assert not torch.equal(images[0], images[1])


@pytest.mark.parametrize(("accumulate", "world"), [(1, 1), (2, 1), (1, 2), (3, 2)])
def test_passes_and_processes_divide_an_update_without_gap_or_overlap(accumulate: int, world: int) -> None:
    shares = [
        range(12)[Plan(12, 12, accumulate, 0, rank, world).share(part)]
        for part, rank in itertools.product(range(accumulate), range(world))
    ]
    assert list(itertools.chain(*shares)) == list(range(12))
    assert len({len(share) for share in shares}) == 1


def test_a_batch_that_processes_cannot_share_is_refused() -> None:
    with pytest.raises(UsageError, match=r"batch 10 does not divide by 2 accumulation steps × 3 processes: .* 6"):
        Plan(count=100, batch=10, accumulate=2, seed=0, rank=0, world=3)


def test_resumed_samples_are_those_of_the_uninterrupted_training(digits: Subset) -> None:
    options = replace(NONE, augmentation=Augmentation(kind="affine"))
    whole = list(opened(digits, options).updates(0, 7))
    rest = list(opened(digits, options).updates(3, 7))
    for expected, found in zip(whole[3:], rest, strict=True):
        assert torch.equal(expected[0][0], found[0][0])
        assert torch.equal(expected[0][1], found[0][1])


@pytest.mark.parametrize(("accumulate", "world"), [(2, 1), (1, 2), (2, 2)])
def test_processes_together_see_the_images_of_one(digits: Subset, accumulate: int, world: int) -> None:
    options = replace(NONE, augmentation=Augmentation(kind="affine"))
    (alone,) = next(iter(opened(digits, options).updates(1, 2)))
    parts = [
        next(iter(opened(digits, options, accumulate=accumulate, world=world, rank=rank).updates(1, 2)))
        for rank in range(world)
    ]
    together = [parts[rank][part] for part in range(accumulate) for rank in range(world)]
    torch.testing.assert_close(torch.cat([images for images, _ in together]), alone[0])
    assert torch.cat([labels for _, labels in together]).tolist() == alone[1].tolist()


def test_streamed_images_are_those_held_in_memory(digits: Subset, monkeypatch: pytest.MonkeyPatch) -> None:
    held = opened(digits, accumulate=2)
    assert isinstance(held, MemorySamples)
    monkeypatch.setattr("vitdeploy.training.samples.MEMORY_BYTES", 0)
    streamed = opened(digits, accumulate=2)
    assert isinstance(streamed, StreamedSamples)
    for expected, found in zip(held.updates(1, 5), streamed.updates(1, 5), strict=True):
        assert len(found) == 2
        for (images, labels), (its_images, its_labels) in zip(expected, found, strict=True):
            assert torch.equal(images, its_images)
            assert torch.equal(labels, its_labels)


def test_affine_variation_is_the_same_streamed_and_in_memory(digits: Subset, monkeypatch: pytest.MonkeyPatch) -> None:
    options = replace(NONE, augmentation=Augmentation(kind="affine"))
    ((held, _),) = next(iter(opened(digits, options).updates(2, 3)))
    monkeypatch.setattr("vitdeploy.training.samples.MEMORY_BYTES", 0)
    ((streamed, _),) = next(iter(opened(digits, options).updates(2, 3)))
    assert torch.equal(held, streamed)
    assert isinstance(opened(digits, options).affine, RandomAffine)


def test_photograph_variation_is_a_function_of_seed_place_and_sample(digits: Subset) -> None:
    """However many workers load them, and wherever a resumed training starts."""
    spec = Preprocess(size=(24, 24), channels=3, resize_size=24, mean=(0.5,) * 3, std=(0.5,) * 3)
    options = TrainOptions(augmentation=Augmentation(kind="timm"), hardware=Hardware(workers=0))
    plan = Plan(count=20, batch=8, accumulate=1, seed=0)

    def images(first: int, last: int, workers: int = 0) -> list[torch.Tensor]:
        chosen = replace(options, hardware=Hardware(workers=workers))
        return [update[0][0] for update in open_samples(digits, spec, chosen, plan, CPU, SILENT).updates(first, last)]

    before = torch.get_rng_state()
    whole = images(0, 4)
    assert torch.equal(torch.get_rng_state(), before), "the caller's generator is left alone"
    assert whole[0].shape == (8, 3, 24, 24)
    for expected, found in zip(whole[1:], images(1, 4, workers=2), strict=True):
        assert torch.equal(expected, found)
    first, second = (_by_sample(plan, whole, epoch) for epoch in (0, 1))
    both = set(first) & set(second)
    assert both
    assert not any(torch.equal(first[index], second[index]) for index in both), "another epoch varies it otherwise"


def _by_sample(plan, updates, epoch):
    span = range(epoch * plan.updates_per_epoch, (epoch + 1) * plan.updates_per_epoch)
    numbered = dict(plan.updates(0, len(updates)))
    return {int(n): image for u in span for n, image in zip(numbered[u], updates[u], strict=True)}


class Faulty(DatasetBase):
    """Images of which some cannot be read, varied, or end the process that loads them."""

    def __init__(self, faults) -> None:
        super().__init__("faulty", [f"{index}.jpg" for index in range(20)], np.arange(20) % 2, ("a", "b"))
        self.faults = faults

    def image(self, index):
        fault = self.faults.get(index)
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if isinstance(fault, Exception):
            raise fault
        return Image.new("RGB", (12, 10), (index, 0, 0))


PHOTO = Preprocess(size=(72, 72), resize="squash", crop="none", mean=(0,) * 3, std=(1 / 255,) * 3)


def faulty(faults, *, skip: bool = False, note=lambda text: None, workers: int = 0, kind: AugmentationKind = "none"):
    options = TrainOptions(
        augmentation=Augmentation(kind=kind), hardware=Hardware(workers=workers), skip_unreadable=skip
    )
    progress = SimpleNamespace(note=note, task=SILENT.task)
    plan = Plan(count=20, batch=8, accumulate=2, seed=0)
    return plan, open_samples(Faulty(faults), PHOTO, options, plan, CPU, progress)


@pytest.fixture
def streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitdeploy.training.samples.MEMORY_BYTES", 0)


@pytest.mark.usefixtures("streamed")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (DataError("image 'photos/3.jpg' is truncated"), "^image 'photos/3.jpg' is truncated$"),
        (DataError("an image of 3×3 pixels is too small"), "^image '3.jpg': an image of 3×3 pixels is too small$"),
        (
            ValueError("bits must be\nbetween 1 and 8"),
            r"^image '3.jpg' cannot be augmented \(ValueError: bits must be between 1 and 8\)$",
        ),
        (MemoryError(), r"^image '3.jpg' cannot be augmented \(MemoryError:\)$"),
    ],
)
def test_an_error_about_an_image_is_one_line_with_its_name_and_the_workers_end(
    workers: int, fault: Exception, message: str
) -> None:
    before = {process.pid for process in multiprocessing.active_children()}
    _, samples = faulty({3: fault}, workers=workers)
    with pytest.raises(DataError, match=message):
        list(samples.updates(0, 2))
    assert {process.pid for process in multiprocessing.active_children()} <= before


@pytest.mark.usefixtures("streamed")
def test_images_that_cannot_be_used_are_left_out_on_demand_and_named_once() -> None:
    """Their places go to other images of the same pass, each with its own label."""
    notes: list[str] = []
    broken = DataError("damaged")
    plan, samples = faulty({3: broken, 11: broken}, skip=True, note=notes.append)
    for (update, indices), passes in zip(plan.updates(0, 6), samples.updates(0, 6), strict=True):
        assert update < 6
        for part, (images, labels) in enumerate(passes):
            wanted = indices[plan.share(part)]
            found = images[:, 0, 0, 0].round().int().tolist()
            assert not {3, 11} & set(found)
            assert [index % 2 for index in found] == labels.tolist()
            assert all(index in (3, 11) or index == its for index, its in zip(wanted, found, strict=True))
            assert set(found) == set(wanted) - {3, 11}
    assert sorted(notes) == ["left out: image '11.jpg': damaged", "left out: image '3.jpg': damaged"]


@pytest.mark.usefixtures("streamed")
def test_a_pass_without_any_usable_image_ends_the_training_even_then() -> None:
    _, samples = faulty({index: DataError(f"image {index} is damaged") for index in range(20)}, skip=True)
    with pytest.raises(DataError, match=r"none of 4 images of a pass is usable: image .* is damaged"):
        list(samples.updates(0, 1))


@pytest.mark.usefixtures("streamed")
def test_a_killed_worker_is_one_line_with_a_remedy() -> None:
    _, samples = faulty({3: "kill"}, workers=2)
    message = r"^a process that loads images ended \(DataLoader worker .*\), usually because memory ran out: lower ha"
    with pytest.raises((TrainingError, RuntimeError)) as raised:
        list(samples.updates(0, 2))
    error = raised.value
    text = worker_failure(error) if isinstance(error, RuntimeError) else str(error)
    assert re.match(message, text)
    assert "\n" not in text
    assert not multiprocessing.active_children()
