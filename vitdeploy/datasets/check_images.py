"""Images to check a graph with: real ones where there are some, else smooth random ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vitdeploy.datasets import Dataset, DataSource, load_pixels, open_dataset
from vitdeploy.records import Preprocess

CHECKED_BATCH = 5
GOLDEN_BYTES = 600_000
MOST_GOLDEN = 8


def check_dataset(data: DataSource, *, seed: int = 0) -> Dataset:
    """Return the few images of a dataset that a graph is checked with: 8, or all of a smaller one."""
    whole = open_dataset(data)
    return open_dataset(whole, samples=min(MOST_GOLDEN, len(whole)), seed=seed)


def check_pixels(spec: Preprocess, data: DataSource | None = None, *, seed: int = 0) -> NDArray[np.uint8]:
    """Return pixels [n, H, W, C] to check a graph with.

    data: A dataset; None for images that are made, 5 of them.
    """
    if data is None:
        return smooth_random_pixels(spec, CHECKED_BATCH, seed)
    return load_pixels(check_dataset(data, seed=seed), spec)


def smooth_random_pixels(spec: Preprocess, count: int, seed: int) -> NDArray[np.uint8]:
    """Return seeded images [count, H, W, C]: three plane waves per channel of up to 4 periods, and noise of σ = 12.

    Patches of waves differ from each other as those of photographs do; those of noise alone all look the same to a
    transformer, so that a wrong order of patches would not be noticed.
    """
    rng = np.random.default_rng(seed)
    height, width = spec.pixel_size or spec.size
    y, x = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    images = np.full((count, height, width, spec.channels), 128.0)
    for image in images:
        for channel in range(spec.channels):
            for _ in range(3):
                down, right, phase = rng.uniform(-4, 4), rng.uniform(-4, 4), rng.uniform(0, 2 * np.pi)
                image[..., channel] += 36 * np.sin(2 * np.pi * (down * y + right * x) + phase)
    images += rng.normal(0, 12, images.shape)
    return np.clip(np.rint(images), 0, 255).astype(np.uint8)


def golden_count(spec: Preprocess, available: int) -> int:
    """Return how many samples travel with a model: up to 8, about 0.6 MB of pixels, at least one."""
    height, width = spec.pixel_size or spec.size
    fit = GOLDEN_BYTES // (height * width * spec.channels)
    return max(1, min(fit, MOST_GOLDEN, available))
