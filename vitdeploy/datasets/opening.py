"""``open_dataset``: from a text to images and labels."""

from __future__ import annotations

from vitdeploy.datasets.base import Dataset, Split, Subset
from vitdeploy.datasets.digits import Digits
from vitdeploy.datasets.partition import choose
from vitdeploy.datasets.uri import DatasetUri, parse_uri
from vitdeploy.errors import DataError


def open_dataset(uri: str, *, split: Split | None = None, samples: int | None = None, seed: int = 0) -> Dataset:
    """Open the dataset that ``uri`` names.

    Args:
        uri: ``digits``, a folder of class folders, a flat folder of images (no labels), a calibration set, or
            ``timm:NAME``; with ``:train``, ``:validation`` or ``:test`` behind it one split, and with ``@N`` before
            that another partition than the usual number 0.
        split: The same as a split in ``uri``; None and none in ``uri``: everything.
        samples: Keep that many, chosen by ``seed``, each class in proportion to its share.
        seed: Decides the choice of ``samples`` and nothing else; the partition into splits never depends on it.
    Raises:
        DataError: There is no such dataset or split, it holds no images, or fewer than ``samples``.
    """
    parsed = parse_uri(uri, split)
    dataset = _open(parsed)
    return dataset if samples is None else _take(dataset, samples, seed)


def splits_of(uri: str) -> tuple[Split, ...]:
    """Return the splits that the source itself defines; empty for a folder without split folders.

    ``open_dataset`` partitions such a folder when a split is asked for; whoever evaluates a folder that was handed in
    for that purpose alone wants all of it, and can tell the two apart with this.
    """
    parsed = parse_uri(uri)
    if parsed.where == "digits":
        return ("train", "validation", "test")
    return ()


def _open(parsed: DatasetUri) -> Dataset:
    if parsed.where == "digits":
        digits = Digits(parsed.text, parsed.partition)
        return digits if parsed.split is None else digits.split(parsed.split)
    raise DataError(f"there is no dataset {parsed.where!r}, expected 'digits', a folder, or 'timm:NAME'")


def _take(dataset: Dataset, samples: int, seed: int) -> Dataset:
    if samples < 1:
        raise DataError(f"{samples} samples were asked for, expected at least 1")
    if samples > len(dataset):
        raise DataError(f"{samples} samples were asked of {dataset.uri!r}, which has {len(dataset)}: ask for fewer")
    names = [dataset.name(index) for index in range(len(dataset))]
    return Subset(dataset, choose(names, dataset.labels, samples, seed))
