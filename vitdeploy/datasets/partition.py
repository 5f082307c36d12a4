"""Seeded, stratified choices that are the same on every machine and with every version of every library.

A sample's rank is the SHA-256 of seed and name, not a draw from a random generator: adding a file to a folder moves few
others, and no NumPy release can change who is in the test set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from vitdeploy.datasets.base import SPLITS, Split

VALIDATION, TEST = Fraction(15, 100), Fraction(25, 100)


def partition(
    names: Sequence[str],
    labels: NDArray[np.int64] | None,
    seed: int,
    *,
    sizes: tuple[int, int] | None = None,
) -> dict[Split, NDArray[np.int64]]:
    """Return the indices of train, validation and test, each sorted: about 60, 15 and 25 % of every class.

    Args:
        names: One per sample, unique; they and the seed alone decide who goes where.
        labels: Class per sample, [n]; None treats all as one class.
        seed: Another number gives another partition.
        sizes: Total number of (validation, test) samples; 15 % and 25 % rounded down where None. A part that is
            not 0 gets at least one sample of every class that has three, which may raise its total.
    """
    groups = _groups(len(names), labels)
    counts = [len(group) for group in groups]
    total = len(names)
    validation, test = sizes if sizes is not None else (max(1, int(total * VALIDATION)), max(1, int(total * TEST)))
    test_counts = _at_least_one(apportion(counts, test), counts) if test else [0] * len(counts)
    validation_counts = _at_least_one(apportion(counts, validation), counts) if validation else [0] * len(counts)
    parts: dict[Split, list[int]] = {split: [] for split in SPLITS}
    for group, n_test, n_validation in zip(groups, test_counts, validation_counts, strict=True):
        ranked = _ranked(group, names, f"partition/{seed}")
        parts["test"] += ranked[:n_test]
        parts["validation"] += ranked[n_test : n_test + n_validation]
        parts["train"] += ranked[n_test + n_validation :]
    return {split: np.array(sorted(indices), np.int64) for split, indices in parts.items()}


def choose(names: Sequence[str], labels: NDArray[np.int64] | None, samples: int, seed: int) -> NDArray[np.int64]:
    """Return the sorted indices of ``samples`` samples, each class in proportion to its share."""
    groups = _groups(len(names), labels)
    chosen: list[int] = []
    for group, count in zip(groups, apportion([len(group) for group in groups], samples), strict=True):
        chosen += _ranked(group, names, f"choose/{seed}")[:count]
    return np.array(sorted(chosen), np.int64)


def apportion(counts: Sequence[int], total: int) -> list[int]:
    """Divide ``total`` in proportion to ``counts`` by largest remainders; ties go to the earlier entry."""
    everything = sum(counts)
    if everything == 0:
        return [0] * len(counts)
    shares = [Fraction(total * count, everything) for count in counts]
    whole = [int(share) for share in shares]
    by_remainder = sorted(range(len(counts)), key=lambda entry: (whole[entry] - shares[entry], entry))
    for entry in by_remainder[: total - sum(whole)]:
        whole[entry] += 1
    return whole


def _at_least_one(parts: list[int], counts: Sequence[int]) -> list[int]:
    return [max(part, 1) if count >= 3 else part for part, count in zip(parts, counts, strict=True)]


def _groups(count: int, labels: NDArray[np.int64] | None) -> list[list[int]]:
    if labels is None:
        return [list(range(count))]
    return [np.flatnonzero(labels == label).tolist() for label in np.unique(labels)]


def _ranked(group: Sequence[int], names: Sequence[str], salt: str) -> list[int]:
    return sorted(group, key=lambda index: hashlib.sha256(f"{salt}/{names[index]}".encode()).digest())
