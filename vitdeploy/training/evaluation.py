"""Top-1 and loss of a module on a dataset, shared between processes, each image counted once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn

from vitdeploy.datasets import Dataset, batches
from vitdeploy.datasets.base import Subset
from vitdeploy.progress import SILENT
from vitdeploy.records import Preprocess
from vitdeploy.training.samples import fits_memory, in_memory

BATCH = 256


@dataclass(frozen=True)
class Score:
    """Accuracy as a fraction, mean cross-entropy in nats, and over how many images."""

    top1: float
    loss: float
    images: int


class Evaluation:
    """A dataset to be evaluated again and again; this process takes every ``world``-th sample from ``rank`` on.

    Small images stay on the device, larger ones are read anew each time.
    """

    def __init__(self, dataset: Dataset, preprocess: Preprocess, fabric: Fabric) -> None:
        self.fabric = fabric
        self.preprocess = preprocess
        indices = np.arange(fabric.global_rank, len(dataset), fabric.world_size)
        self.part = Subset(dataset, indices)
        self._memory = in_memory(self.part, preprocess, fabric.device, SILENT) if self._small(dataset) else None

    def _small(self, dataset: Dataset) -> bool:
        return fits_memory(dataset, self.preprocess)

    @torch.no_grad()
    def score(self, module: nn.Module) -> Score:
        """Evaluate ``module`` in evaluation mode, and leave it in the mode it was in.

        The module is called as it is, not through Fabric's wrapper: its forward must not wait for other processes,
        since shares may differ by one image.
        """
        training = module.training
        module.eval()
        sums = torch.zeros(3, dtype=torch.float64, device=self.fabric.device)  # correct, loss, images
        precision = self.fabric.strategy.precision
        with self.fabric.autocast():
            for images, labels in self._batches():
                logits = module(precision.convert_input(images)).float()
                correct = (logits.argmax(dim=1) == labels).sum()
                loss = F.cross_entropy(logits, labels, reduction="sum")
                sums += torch.stack([correct.double(), loss.double(), torch.tensor(len(labels), device=sums.device)])
        module.train(training)
        correct, loss, count = self.fabric.all_reduce(sums, reduce_op="sum").tolist()
        return Score(correct / count, loss / count, round(count))

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self._memory is not None:
            images, labels = self._memory
            for start in range(0, len(labels), BATCH):
                yield images[start : start + BATCH], labels[start : start + BATCH]
            return
        assert self.part.labels is not None
        start = 0
        for array in batches(self.part, self.preprocess, BATCH):
            truth = self.part.labels[start : start + len(array)]
            start += len(array)
            yield torch.from_numpy(array).to(self.fabric.device), torch.from_numpy(truth).to(self.fabric.device)
