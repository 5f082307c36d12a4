"""The 1797 handwritten digits of scikit-learn, shipped as ``digits.npz``; ``digits.txt`` says source and licence."""

from __future__ import annotations

from functools import cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitdeploy.datasets.base import DatasetBase, Split, Subset, pixels_id
from vitdeploy.datasets.partition import partition
from vitdeploy.preprocess import DIGITS_PREPROCESS
from vitdeploy.records import Preprocess

CLASSES = tuple("0123456789")
SOURCE = "scikit-learn load_digits, from UCI Optical Recognition of Handwritten Digits (Alpaydin and Kaynak, 1998)"
LICENCE = "CC-BY-4.0"
VALIDATION_SIZE, TEST_SIZE = 250, 450
INK = 16  # the largest value in the file: each pixel counts the inked points of a 4×4 block


class Digits(DatasetBase):
    """All 1797 images of 8×8 pixels, mode ``L``; the ink 0…16 is spread over 0…255, so PNG files hold it exactly."""

    def __init__(self, uri: str, partition_seed: int = 0) -> None:
        ink, labels = read_digits()
        super().__init__(uri, [f"digits/{index:04d}" for index in range(len(labels))], labels, CLASSES)
        self.source, self.licence = SOURCE, LICENCE
        self.pixels = pixels_of_ink(ink)
        self.parts = partition(self._names, labels, partition_seed, sizes=(VALIDATION_SIZE, TEST_SIZE))
        self.preprocess = _preprocess(self.pixels[self.parts["train"]])

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index])

    def sample_id(self, index: int) -> str:
        return pixels_id(self.image(index))

    def split(self, split: Split) -> Subset:
        """Return one part of the fixed partition: 1097 train, 250 validation, 450 test."""
        return Subset(self, self.parts[split])


@cache
def read_digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return ink in 0…16, [1797, 8, 8], and the digit, [1797], in scikit-learn's order; both are read-only."""
    file = resources.files("vitdeploy.datasets").joinpath("digits.npz")
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
        ink, labels = archive["ink"], archive["label"].astype(np.int64)
    ink.setflags(write=False)
    labels.setflags(write=False)
    return ink, labels


def pixels_of_ink(ink: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return round(ink · 255 / 16); ``ink_of_pixels`` undoes it exactly."""
    return ((ink.astype(np.uint16) * 255 + INK // 2) // INK).astype(np.uint8)


def ink_of_pixels(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return round(pixels · 16 / 255)."""
    return ((pixels.astype(np.uint16) * INK + 127) // 255).astype(np.uint8)


def _preprocess(train: NDArray[np.uint8]) -> Preprocess:
    unit = train.astype(np.float64) / 255
    update = {"mean": (round(float(unit.mean()), 6),), "std": (round(float(unit.std()), 6),)}
    return DIGITS_PREPROCESS.model_copy(update=update)
