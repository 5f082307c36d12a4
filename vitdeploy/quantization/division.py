"""Divide calibration images: to take ranges from, to choose by, and to check with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitdeploy.datasets import Dataset
from vitdeploy.datasets.base import Subset
from vitdeploy.datasets.partition import choose
from vitdeploy.errors import CalibrationError, CalibrationWarning, warn

HELD_OUT_SHARE = 0.2
LEAST_HELD_OUT = 16
MOST_COMPARED = 64
FEWEST_IMAGES = 32
"""Calibration images below which every use of them says how few they are."""


@dataclass(frozen=True)
class Division:
    """Three disjoint parts of a calibration set.

    ``fit`` gives the ranges among which ``compare`` chooses; the final ranges come from both. ``check`` is never seen
    before the finished graph is judged. None: that part is empty.
    """

    fit: Dataset
    compare: Dataset | None
    check: Dataset | None

    @property
    def calibration_parts(self) -> tuple[Dataset, ...]:
        """The parts that the final ranges come from."""
        return (self.fit,) if self.compare is None else (self.fit, self.compare)

    @property
    def calibrated(self) -> int:
        """How many images the final ranges come from."""
        return sum(len(part) for part in self.calibration_parts)

    @property
    def words(self) -> str:
        """Which images do what: ``23 give ranges, 8 choose the method, 8 judge the graph``."""
        parts = ((self.fit, "give ranges"), (self.compare, "choose the method"), (self.check, "judge the graph"))
        return ", ".join(f"{len(part)} {what}" for part, what in parts if part is not None)


def divide(dataset: Dataset, *, hold_out: bool, compare: bool, seed: int = 0) -> Division:
    """Divide a set, each class in proportion to its share, by ``seed``.

    Held out is a fifth, at least 16 images, at most half. Of the rest, a fifth (at most 64 images) is compared with;
    where fewer than 16 images are left, nothing is, because so few say nothing.

    Raises:
        CalibrationError: The set is too small to leave anything to calibrate with.
    """
    everything = np.arange(len(dataset))
    held = min(max(LEAST_HELD_OUT, round(HELD_OUT_SHARE * len(dataset))), len(dataset) // 2) if hold_out else 0
    if len(dataset) - held < 1 or (hold_out and held < 1):
        raise CalibrationError(
            f"the calibration set {dataset.uri!r} has {len(dataset)} image(s), expected at least 2: some are kept "
            "out for the check: take more, or name others with validation='DATA'"
        )
    checked = _chosen(dataset, everything, held, seed)
    rest = np.setdiff1d(everything, checked)
    count = min(round(HELD_OUT_SHARE * len(rest)), MOST_COMPARED) if compare and len(rest) >= LEAST_HELD_OUT else 0
    compared = _chosen(dataset, rest, count, seed + 1)
    return Division(
        Subset(dataset, np.setdiff1d(rest, compared)),
        Subset(dataset, compared) if len(compared) else None,
        Subset(dataset, checked) if len(checked) else None,
    )


def warn_of_few_images(dataset: Dataset) -> None:
    """Warn of a calibration set of fewer than ``FEWEST_IMAGES``."""
    if len(dataset) < FEWEST_IMAGES:
        count = "1 image" if len(dataset) == 1 else f"{len(dataset)} images"
        warn(
            f"the calibration set {dataset.uri!r} has {count}, fewer than {FEWEST_IMAGES}: ranges may be too narrow, "
            "100 to 500 images like those in use are usual",
            CalibrationWarning,
        )


def _chosen(dataset: Dataset, among: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    if not count:
        return among[:0]
    labels = None if dataset.labels is None else dataset.labels[among]
    return among[choose([dataset.name(int(index)) for index in among], labels, count, seed)]
