from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from present import present
from torch import nn

from vitdeploy.datasets import load_pixels, open_dataset
from vitdeploy.datasets.base import Subset
from vitdeploy.preprocess import normalize
from vitdeploy.training import evaluation
from vitdeploy.training.evaluation import Evaluation


class Share(Fabric):
    """One of several processes, as far as an evaluation can tell; sums are added up by the test."""

    def __init__(self, rank: int, world: int) -> None:
        super().__init__(accelerator="cpu", devices=1)
        self._place = rank, world

    @property
    def global_rank(self) -> int:
        return self._place[0]

    @property
    def world_size(self) -> int:
        return self._place[1]


@pytest.fixture(scope="module")
def digits() -> Subset:
    return Subset(open_dataset("digits:test"), np.arange(101))


@pytest.fixture(scope="module")
def module() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Dropout(0.9))


@pytest.mark.parametrize("in_memory", [True, False])
def test_the_score_is_that_of_one_pass_in_evaluation_mode(
    digits: Subset, module: nn.Sequential, in_memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not in_memory:
        monkeypatch.setattr("vitdeploy.training.samples.MEMORY_BYTES", 0)
    monkeypatch.setattr(evaluation, "BATCH", 32)
    module.train()
    score = Evaluation(digits, present(digits.preprocess), Share(0, 1)).score(module)
    assert module.training
    spec = present(digits.preprocess)
    images = torch.from_numpy(normalize(load_pixels(digits, spec), spec))
    with torch.no_grad():
        logits = module.eval()(images)
    labels = torch.from_numpy(digits.labels)
    assert score.images == 101
    assert score.top1 == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    assert score.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)


@pytest.mark.parametrize("world", [2, 3])
def test_processes_divide_the_images_and_count_each_once(digits: Subset, world: int) -> None:
    shares = [Evaluation(digits, present(digits.preprocess), Share(rank, world)).part for rank in range(world)]
    seen = [share.name(index) for share in shares for index in range(len(share))]
    assert sorted(seen) == sorted(digits.name(index) for index in range(101))
