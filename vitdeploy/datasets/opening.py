"""``open_dataset``: from a text to images and labels."""

from __future__ import annotations

from pathlib import Path

from vitdeploy.datasets.base import SPLITS, Dataset, DataSource, Split, Subset
from vitdeploy.datasets.calibration_set import is_calibration_set, open_calibration_set
from vitdeploy.datasets.digits import Digits
from vitdeploy.datasets.folder import ImageFolder
from vitdeploy.datasets.partition import choose
from vitdeploy.datasets.timm_source import TIMM, open_timm, timm_splits
from vitdeploy.datasets.uri import DatasetUri, exists, parse_uri
from vitdeploy.errors import CalibrationError, DataError


def open_dataset(uri: DataSource, *, split: Split | None = None, samples: int | None = None, seed: int = 0) -> Dataset:
    """Open the dataset that ``uri`` names; one that is open already is returned as it is, or a part of it.

    Args:
        uri: ``digits``, a folder of class folders, a flat folder of images (no labels), a calibration set, or
            ``timm:NAME``; with ``:train``, ``:validation`` or ``:test`` behind it one split, and with ``@N`` before
            that another partition than the usual number 0.
        split: The same as a split in ``uri``; None and none in ``uri``: everything.
        samples: Keep at most that many, chosen by ``seed``, each class in proportion to its share.
        seed: Decides the choice of ``samples`` and nothing else; the partition into splits never depends on it.
    Raises:
        DataError: There is no such dataset or split, or it holds no images.
    """
    if isinstance(uri, str | Path):
        dataset = _open(parse_uri(str(uri), split))
    elif split is None or parse_uri(uri.uri).split == split:
        dataset = uri
    else:
        raise DataError(f"{uri.uri!r} is open already, so its split cannot be chosen: open it with split={split!r}")
    return dataset if samples is None else _take(dataset, samples, seed)


def splits_of(uri: DataSource) -> tuple[Split, ...]:
    """Return the splits that the source itself defines; empty for a folder without split folders, or an open dataset.

    ``open_dataset`` divides such a folder by a seed when a split is asked for.
    """
    if not isinstance(uri, str | Path):
        return ()
    where = parse_uri(str(uri)).where
    if where == "digits":
        return SPLITS
    if where.startswith(TIMM):
        return timm_splits(where)
    root = _existing(where)
    return () if is_calibration_set(root) else ImageFolder(root).splits


def _open(parsed: DatasetUri) -> Dataset:
    if parsed.where == "digits":
        digits = Digits(parsed.text, parsed.partition)
        return digits if parsed.split is None else digits.split(parsed.split)
    if parsed.where.startswith(TIMM):
        return open_timm(parsed)
    root = _existing(parsed.where)
    if is_calibration_set(root):
        if parsed.split in {"validation", "test"}:
            raise DataError(f"{parsed.where!r} is a calibration set, which has no {parsed.split} split")
        return open_calibration_set(root)
    return ImageFolder(root).open(parsed.text, parsed.split, parsed.partition)


def _existing(where: str) -> Path:
    """Return the folder called ``where``; a folder that is called ``digits`` is reached as ``./digits``."""
    root = Path(where)
    if exists(where):
        if root.is_dir():
            return root
        raise DataError(f"{where!r} is a file, expected a folder of images, 'digits', or 'timm:NAME'")
    head, colon, tail = where.rpartition(":")
    if colon and (head == "digits" or head.startswith(TIMM) or exists(head)):
        raise DataError(f"there is no split {tail!r} of {head!r}, expected one of {', '.join(SPLITS)}, or all")
    raise DataError(f"there is no dataset {where!r}, expected 'digits', a folder of images, or 'timm:NAME'")


def _take(dataset: Dataset, samples: int, seed: int) -> Dataset:
    if samples < 1:
        raise DataError(f"{samples} samples were asked for, expected at least 1")
    if samples >= len(dataset):
        return dataset
    names = [dataset.name(index) for index in range(len(dataset))]
    return Subset(dataset, choose(names, dataset.labels, samples, seed))


def calibration_split(data: DataSource) -> Split | None:
    """Return the split that calibration takes where ``data`` names none: the training images, else all.

    A folder of class folders without splits is divided as for training, so that its test part stays unseen; one that
    is too small to be divided, a flat folder and ``:all`` are taken whole.

    Raises:
        CalibrationError: ``data`` is a test split.
    """
    text = str(data) if isinstance(data, str | Path) else data.uri
    parsed = parse_uri(text)
    if parsed.split == "test":
        raise CalibrationError(f"{text!r} is a test split, which calibration must not see: take '{parsed.where}:train'")
    if not isinstance(data, str | Path):
        return None
    if parsed.split is not None or parsed.is_all:
        return parsed.split
    if splits_of(data) == ("test",):
        raise CalibrationError(
            f"{text!r} is a test split by its name, which calibration must not see: take training images, or "
            f"'{text}:all' where it is none"
        )
    return "train" if "train" in splits_of(data) or _is_divisible(parsed) else None


def evaluation_split(data: DataSource) -> Split | None:
    """Return the split that accuracy is measured on where ``data`` names none.

    The test split, else validation; one with labels before one without. A folder of class folders without splits is
    divided as for training, and its test part counts; one that is too small to be divided, a flat folder and ``:all``
    are taken whole.
    """
    if not isinstance(data, str | Path):
        return None
    parsed = parse_uri(str(data))
    if parsed.split is not None or parsed.is_all:
        return parsed.split
    if _is_divisible(parsed):
        return "test"
    order: tuple[Split, ...] = ("test", "validation")
    own = splits_of(data)
    labelled = labelled_splits_of(data)
    return next((split for among in (labelled, own) for split in order if split in among), None)


def labelled_splits_of(data: DataSource) -> tuple[Split, ...]:
    """Return those of ``splits_of(data)`` that have labels; the test folder of a contest may hold images alone."""
    splits = splits_of(data)
    where = parse_uri(str(data)).where if isinstance(data, str | Path) else ""
    if not splits or where == "digits" or where.startswith(TIMM):
        return splits
    return ImageFolder(_existing(where)).labelled_splits


def _is_divisible(parsed: DatasetUri) -> bool:
    if parsed.where == "digits" or parsed.where.startswith(TIMM):
        return False
    root = _existing(parsed.where)
    return not is_calibration_set(root) and ImageFolder(root).is_divisible
