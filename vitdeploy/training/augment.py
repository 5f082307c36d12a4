"""Variation of training images on whole batches; B batch, C channels, H and W size."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from vitdeploy.preprocess import denormalized
from vitdeploy.records import Preprocess
from vitdeploy.training.options import Augmentation


class RandomAffine:
    """Turn, shift and scale each image by its own random amounts, bilinear, black outside.

    Drawing and applying are apart, so that a process can draw for a whole update and apply its share: the images of an
    update are then the same however many processes there are.
    """

    def __init__(self, options: Augmentation, preprocess: Preprocess) -> None:
        self.options = options
        self.height, self.width = preprocess.size
        self.black = torch.tensor(denormalized((0.0,) * preprocess.channels, preprocess)).view(1, -1, 1, 1)

    def draw(self, count: int, seed: int) -> Tensor:
        """Return ``count`` matrices [count, 2, 3] from output to input coordinates, in units of −1…1 per axis."""
        generator = torch.Generator().manual_seed(seed)
        angle, size, right, down = torch.rand(4, count, generator=generator) * 2 - 1
        angle = angle * math.radians(self.options.rotate_degrees)
        size = 1 + size * self.options.scale
        cosine, sine = size * angle.cos(), size * angle.sin()
        aspect = self.height / self.width  # a unit is half a side, so turning a rectangle needs its proportions
        across = torch.stack([cosine, -sine * aspect, right * 2 * self.options.translate], dim=1)
        along = torch.stack([sine / aspect, cosine, down * 2 * self.options.translate], dim=1)
        return torch.stack([across, along], dim=1)

    def apply(self, images: Tensor, matrices: Tensor) -> Tensor:
        """Return the images [B, C, H, W] transformed by matrices [B, 2, 3]."""
        black = self.black.to(images)
        grid = torch.nn.functional.affine_grid(matrices.to(images), list(images.shape), align_corners=False)
        # Outside the image the sampler gives 0, so the image is moved to where 0 is black.
        return torch.nn.functional.grid_sample(images - black, grid, align_corners=False) + black


class Mixing:
    """Mixup (arXiv:1710.09412) and cutmix (arXiv:1905.04899) by timm, with targets as smoothed distributions."""

    def __init__(self, options: Augmentation, *, classes: int, label_smoothing: float) -> None:
        from timm.data import Mixup

        self._mixup = Mixup(
            mixup_alpha=options.mixup,
            cutmix_alpha=options.cutmix,
            prob=options.mix_probability,
            label_smoothing=label_smoothing,
            num_classes=classes,
        )

    def __call__(self, images: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Return mixed images, and targets [B, classes]; the batch is even."""
        with numpy_seed(seed):
            mixed: tuple[Tensor, Tensor] = self._mixup(images.clone(), labels)
        return mixed


@contextmanager
def numpy_seed(seed: int) -> Iterator[None]:
    """Seed NumPy's global generator for the block, and put it back as it was; timm draws from it."""
    before = np.random.get_state()
    np.random.seed(seed % (1 << 32))
    try:
        yield
    finally:
        np.random.set_state(before)
