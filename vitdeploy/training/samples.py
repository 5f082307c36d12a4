"""Training images, update by update.

What an update sees is a function of seed and update number alone: the order of an epoch, and the variation of each
image. A resumed training therefore sees what the uninterrupted one would have, and several processes together see what
one would.

n samples, b the images of one pass of one process, C channels, H and W size.
"""

from __future__ import annotations

import itertools
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from vitdeploy.datasets import Dataset, load_pixels
from vitdeploy.environment import usable_cores
from vitdeploy.errors import DataError, TrainingError, UsageError
from vitdeploy.preprocess import normalize, to_pixels
from vitdeploy.progress import SILENT, Progress
from vitdeploy.records import Preprocess
from vitdeploy.training.augment import RandomAffine, numpy_seed
from vitdeploy.training.options import MEMORY_BYTES, TrainOptions, augmentation_kind
from vitdeploy.training.schedule import seed_of

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Plan:
    """Who sees which sample when.

    ``batch`` images make one update; they are cut into ``accumulate`` passes, and each pass into ``world`` equal shares
    of which this process takes number ``rank``. An epoch is a fresh permutation without its incomplete last batch; with
    ``repeats`` each of its first samples comes that often in a row, and the last ones are left out.
    """

    count: int
    batch: int
    accumulate: int
    seed: int
    rank: int = 0
    world: int = 1
    repeats: int = 1

    def __post_init__(self) -> None:
        """Refuse batches that cannot be shared equally.

        Raises:
            UsageError: The message names batch, passes and processes.
        """
        if self.batch % (self.accumulate * self.world):
            raise UsageError(
                f"batch {self.batch} does not divide by {self.accumulate} accumulation steps × {self.world} processes: "
                f"choose a multiple of {self.accumulate * self.world}"
            )

    @property
    def updates_per_epoch(self) -> int:
        return self.count // self.batch

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Return the permutation of all samples for an epoch, [n]."""
        generator = torch.Generator().manual_seed(seed_of(self.seed, "order", epoch))
        order = torch.randperm(self.count, generator=generator)
        return order.repeat_interleave(self.repeats)[: self.count].numpy()

    def indices(self, order: NDArray[np.int64], update: int) -> NDArray[np.int64]:
        """Return the samples of an update, [batch]; ``order`` is that of its epoch."""
        start = update % self.updates_per_epoch * self.batch
        return order[start : start + self.batch]

    def share(self, part: int) -> slice:
        """Return which of an update's samples this process takes in pass ``part``."""
        size = self.batch // (self.accumulate * self.world)
        start = (part * self.world + self.rank) * size
        return slice(start, start + size)

    def updates(self, first: int, last: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Yield number and samples of the updates from ``first`` to before ``last``."""
        epoch, order = -1, np.empty(0, np.int64)
        for update in range(first, last):
            if update // self.updates_per_epoch != epoch:
                epoch = update // self.updates_per_epoch
                order = self.order(epoch)
            yield update, self.indices(order, update)


class MemorySamples:
    """Small images, all held on the device, normalised; variation happens there, on whole batches."""

    def __init__(self, images: Tensor, labels: Tensor, plan: Plan, affine: RandomAffine | None) -> None:
        self.images = images
        self.labels = labels
        self.plan = plan
        self.affine = affine

    def updates(self, first: int, last: int) -> Iterator[list[Batch]]:
        """Yield, for each update, this process's passes: images [b, C, H, W] and labels [b]."""
        for update, indices in self.plan.updates(first, last):
            matrices = _matrices(self.affine, self.plan, update)
            passes = []
            for part in range(self.plan.accumulate):
                share = self.plan.share(part)
                chosen = torch.from_numpy(indices[share]).to(self.images.device)
                images = self.images[chosen]
                if self.affine is not None and matrices is not None:
                    images = self.affine.apply(images, matrices[share])
                passes.append((images, self.labels[chosen]))
            yield passes


class StreamedSamples:
    """Images that are read, varied and normalised by worker processes while the model trains.

    An image that cannot be used ends the training with an error that names it; with ``skip`` another image of the same
    pass takes its place, and ``note`` names each such image once.
    """

    def __init__(
        self,
        images: _TrainingImages,
        plan: Plan,
        affine: RandomAffine | None,
        *,
        workers: int,
        device: torch.device,
        skip: bool = False,
        note: Callable[[str], None] = SILENT.note,
    ) -> None:
        self.images = images
        self.plan = plan
        self.affine = affine
        self.workers = workers
        self.device = device
        self.skip = skip
        self.note = note
        self._noted: set[str] = set()

    def updates(self, first: int, last: int) -> Iterator[list[Batch]]:
        """Yield, for each update, this process's passes: images [b, C, H, W] and labels [b].

        Raises:
            DataError: An image cannot be read or varied; the message names it.
            TrainingError: A worker process was killed.
        """
        batches = self._loaded(first, last)
        for update in range(first, last):
            matrices = _matrices(self.affine, self.plan, update)
            passes = []
            for part in range(self.plan.accumulate):
                images, labels = (value.to(self.device, non_blocking=True) for value in next(batches))
                if self.affine is not None and matrices is not None:
                    images = self.affine.apply(images, matrices[self.plan.share(part)])
                passes.append((images, labels))
            yield passes

    def _loaded(self, first: int, last: int) -> Iterator[Batch]:
        """Yield the passes as the workers load them; the workers end with this generator."""
        loader: DataLoader[_Pass] = DataLoader(
            self.images,  # type: ignore[arg-type]  # maps keys, without a length
            batch_sampler=_Passes(self.plan, first, last),
            num_workers=self.workers,
            collate_fn=_collate,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=_leave_signals_to_the_parent,
            prefetch_factor=2 * self.plan.accumulate if self.workers else None,
            generator=torch.Generator(),  # or the loader would draw from the caller's
        )
        failure = ""
        try:
            for found in loader:
                self._report(found.problems)
                if found.images is None or found.labels is None:
                    raise DataError(f"none of {len(found.problems)} images of a pass is usable: {found.problems[0]}")
                yield found.images, found.labels
        except RuntimeError as error:
            failure = worker_failure(error)
            if not failure:
                raise
        if failure:  # raised here, where no traceback keeps the loader and its other workers alive
            raise TrainingError(failure)

    def _report(self, problems: tuple[str, ...]) -> None:
        """Note the images that were left out.

        Raises:
            DataError: Images may not be left out.
        """
        for problem in problems:
            if not self.skip:
                raise DataError(problem)
            if problem not in self._noted:
                self._noted.add(problem)
                self.note(f"left out: {problem}")


Samples = MemorySamples | StreamedSamples


def open_samples(
    dataset: Dataset,
    preprocess: Preprocess,
    options: TrainOptions,
    plan: Plan,
    device: torch.device,
    progress: Progress,
) -> Samples:
    """Hold a dataset of small images in memory, or stream a larger one.

    Raises:
        DataError: Images that are held in memory cannot be read.
        UsageError: The augmentation policy does not exist.
    """
    kind = augmentation_kind(options.augmentation, preprocess.size)
    affine = RandomAffine(options.augmentation, preprocess) if kind == "affine" else None
    if kind != "timm" and fits_memory(dataset, preprocess):
        images, labels = in_memory(dataset, preprocess, device, progress)
        return MemorySamples(images, labels, plan, affine)
    transform = None
    if kind == "timm":
        from vitdeploy.training.photographs import photograph_transform

        transform = photograph_transform(options.augmentation, preprocess)
    return StreamedSamples(
        _TrainingImages(dataset, preprocess, transform, options.seed),
        plan,
        affine,
        workers=min(options.hardware.workers, usable_cores()),
        device=device,
        skip=options.skip_unreadable,
        note=progress.note,
    )


def fits_memory(dataset: Dataset, preprocess: Preprocess) -> bool:
    """Return whether all images as float32 take at most ``MEMORY_BYTES``."""
    height, width = preprocess.size
    return len(dataset) * height * width * preprocess.channels * 4 <= MEMORY_BYTES


def in_memory(
    dataset: Dataset, preprocess: Preprocess, device: torch.device, progress: Progress
) -> tuple[Tensor, Tensor]:
    """Return all images, normalised [n, C, H, W], and labels [n], on ``device``."""
    images = torch.from_numpy(normalize(load_pixels(dataset, preprocess, progress), preprocess))
    assert dataset.labels is not None
    return images.to(device), torch.from_numpy(dataset.labels).to(device)


@dataclass(frozen=True)
class _Unusable:
    """An image that could not be read or varied, and why."""

    problem: str


@dataclass(frozen=True)
class _Pass:
    """The images of one pass, [b, C, H, W], and labels [b]; None where no image is usable."""

    images: Tensor | None
    labels: Tensor | None
    problems: tuple[str, ...] = ()

    def pin_memory(self) -> _Pass:
        """Return the pass in page-locked memory, as the data loader asks for."""
        if self.images is None or self.labels is None:
            return self
        return _Pass(self.images.pin_memory(), self.labels.pin_memory(), self.problems)


def _collate(items: list[tuple[Tensor, int] | _Unusable]) -> _Pass:
    """Stack the images of a pass; the usable ones take the places of the others, in turn."""
    usable = [item for item in items if not isinstance(item, _Unusable)]
    problems = tuple(item.problem for item in items if isinstance(item, _Unusable))
    if not usable:
        return _Pass(None, None, problems)
    stand_ins = itertools.cycle(usable)
    taken = [next(stand_ins) if isinstance(item, _Unusable) else item for item in items]
    return _Pass(torch.stack([image for image, _ in taken]), torch.tensor([label for _, label in taken]), problems)


class _TrainingImages:
    """Maps (place, sample) to a normalised tensor [C, H, W] and its label, or to the reason why that failed.

    The place is a number of its own for each image of a training, and decides how the image is varied.
    """

    def __init__(self, dataset: Dataset, preprocess: Preprocess, transform: Any, seed: int) -> None:
        self.dataset = dataset
        self.preprocess = preprocess
        self.transform = transform
        self.seed = seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int] | _Unusable:
        place, index = key
        assert self.dataset.labels is not None
        name = self.dataset.name(index)
        try:
            return self._tensor(place, index), int(self.dataset.labels[index])
        except DataError as error:
            text = str(error)
            return _Unusable(text if name in text else f"image '{name}': {text}")
        except Exception as error:  # a transform may raise anything, and a worker's traceback does not name the image
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            return _Unusable(f"image '{name}' cannot be augmented ({reason})")

    def _tensor(self, place: int, index: int) -> Tensor:
        image = self.dataset.image(index)
        if self.transform is None:
            return torch.from_numpy(normalize(to_pixels(image, self.preprocess)[None], self.preprocess)[0])
        with _all_seeds(seed_of(self.seed, "image", place, index)):
            tensor: Tensor = self.transform(image.convert("RGB"))
        if self.preprocess.channels == 1:
            return tensor.mean(dim=0, keepdim=True)
        return tensor.flip(0) if self.preprocess.channel_order == "bgr" else tensor


def worker_failure(error: RuntimeError) -> str:
    """Return one line for torch's report of a dead worker process; empty for any other error."""
    text = " ".join(str(error).split())
    if not text.startswith("DataLoader worker"):
        return ""
    return (
        f"a process that loads images ended ({text.rstrip('. ')}), usually because memory ran out: "
        "lower hardware.workers or the batch"
    )


class _Passes:
    """The keys of each pass of this process, in order, for a data loader."""

    def __init__(self, plan: Plan, first: int, last: int) -> None:
        self.plan, self.first, self.last = plan, first, last

    def __len__(self) -> int:
        return (self.last - self.first) * self.plan.accumulate

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for update, indices in self.plan.updates(self.first, self.last):
            places = np.arange(update * self.plan.batch, (update + 1) * self.plan.batch)
            for part in range(self.plan.accumulate):
                share = self.plan.share(part)
                yield list(zip(places[share].tolist(), indices[share].tolist(), strict=True))


def _matrices(affine: RandomAffine | None, plan: Plan, update: int) -> Tensor | None:
    return None if affine is None else affine.draw(plan.batch, seed_of(plan.seed, "affine", update))


@contextmanager
def _all_seeds(seed: int) -> Iterator[None]:
    """Seed the generators that transforms draw from (Python's, NumPy's, torch's) for the block."""
    python = random.getstate()
    random.seed(seed)
    try:
        with numpy_seed(seed), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            yield
    finally:
        random.setstate(python)


def _leave_signals_to_the_parent(worker: int) -> None:
    """Let Ctrl-C, which reaches every process of the terminal, be handled by the training process alone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
