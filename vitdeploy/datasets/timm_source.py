"""Datasets that timm's factory opens: ``timm:torch/cifar10?root=/data&download=true:train``.

``torch/…`` (torchvision's datasets) and ``hfds/…`` (Hugging Face ``datasets``) have random access and are taken;
``hfids/``, ``tfds/`` and ``wds/`` are streams without a length or an order, and a folder is better opened by its path.
timm and torch are imported only when such a dataset is opened.
"""

from __future__ import annotations

import importlib.util
import re
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitdeploy.datasets.base import DatasetBase, Split, Subset, pixels_id
from vitdeploy.datasets.partition import partition
from vitdeploy.datasets.uri import DatasetUri
from vitdeploy.errors import DataError
from vitdeploy.preprocess import open_image
from vitdeploy.text import one_line

TIMM = "timm:"
_TRAIN_AND_TEST = {"cifar10", "cifar100", "mnist", "qmnist", "kmnist", "fashion_mnist"}
_TRAIN_AND_VALIDATION = {"imagenet", "places365", "inaturalist", "inat"}
_OPTIONS = {"root", "download", "input_key", "target_key"}
_CARVED = 5  # one in five training images stands in for a validation split that the source lacks


class TimmDataset(DatasetBase):
    """One split as timm's factory opened it; images are decoded here, because timm skips unreadable ones silently."""

    def __init__(self, uri: str, dataset: Any, prefix: str) -> None:
        labels = _labels(dataset)
        classes = _classes(dataset, labels)
        super().__init__(uri, [f"{prefix}/{index:07d}" for index in range(len(dataset))], labels, classes)
        self.source = uri
        self._dataset = dataset

    def image(self, index: int) -> Image.Image:
        reader = getattr(self._dataset, "reader", None)
        if reader is not None:
            stream, *_ = reader[index]
            with stream:
                return open_image(stream.read(), self.name(index))
        try:
            image: Image.Image = self._dataset[index][0]
            return image if image.mode in {"L", "RGB"} else image.convert("RGB")
        except Exception as error:  # torchvision hands on whatever the decoder raises
            raise DataError(f"image {self.name(index)!r} of {self.uri!r} cannot be read: {error}") from error

    def sample_id(self, index: int) -> str:
        return pixels_id(self.image(index))


def timm_splits(where: str) -> tuple[Split, ...]:
    """Return the splits that the source defines; a Hugging Face dataset is taken to have all three."""
    kind, name, _ = _parse(where)
    if kind == "torch":
        return ("train", "test") if name in _TRAIN_AND_TEST else ("train", "validation")
    return ("train", "validation", "test")


def open_timm(parsed: DatasetUri) -> DatasetBase:
    """Open one split.

    Of a source with train and test alone, one in five training images, stratified, is the validation split.

    Raises:
        DataError: timm is not installed, does not know the dataset, cannot find its files, or lacks the split.
    """
    kind, name, options = _parse(parsed.where)
    if parsed.split is None:
        raise DataError(f"{parsed.where!r} has splits and none was named: ask for '{parsed.where}:train' or another")
    if parsed.split not in timm_splits(parsed.where) and not (parsed.split == "validation" and name in _TRAIN_AND_TEST):
        raise DataError(f"{parsed.where!r} has no {parsed.split} split: ask for '{parsed.where}:validation'")
    carved = kind == "torch" and name in _TRAIN_AND_TEST and parsed.split != "test"
    split = "train" if carved else parsed.split
    dataset = TimmDataset(parsed.text, _create(f"{kind}/{name}", split, options), f"{name}/{split}")
    if not len(dataset):
        raise DataError(f"{parsed.text!r} holds no images")
    if not carved:
        return dataset
    names = [dataset.name(index) for index in range(len(dataset))]
    parts = partition(names, dataset.labels, parsed.partition, sizes=(max(1, len(dataset) // _CARVED), 0))
    return Subset(dataset, parts[parsed.split])


def _parse(where: str) -> tuple[str, str, dict[str, Any]]:
    match = re.fullmatch(r"timm:([A-Za-z]+)/([^?]+)(?:\?(.*))?", where)
    if match is None:
        raise DataError(
            f"{where!r} names no dataset of timm, expected 'timm:torch/NAME?root=FOLDER' or 'timm:hfds/NAME'"
        )
    kind, name, query = match[1].lower(), match[2], match[3] or ""
    if kind in {"hfids", "tfds", "wds"}:
        raise DataError(f"{where!r} is a stream without random access: use 'timm:hfds/…', or unpack it into a folder")
    if kind not in {"torch", "hfds"}:
        raise DataError(f"timm has no kind of dataset {kind!r}, expected 'timm:torch/…' or 'timm:hfds/…'")
    name = name.lower() if kind == "torch" else name
    if kind == "torch" and name not in _TRAIN_AND_TEST | _TRAIN_AND_VALIDATION:
        known = ", ".join(sorted(_TRAIN_AND_TEST | _TRAIN_AND_VALIDATION))
        raise DataError(
            f"timm opens no torchvision dataset {name!r}, expected one of {known}; a folder goes by its path"
        )
    options: dict[str, Any] = dict(parse_qsl(query))
    if kind == "torch" and "root" not in options:
        raise DataError(f"{where!r} does not say where its files are: write '{where}?root=FOLDER'")
    if unknown := sorted(set(options) - _OPTIONS):
        raise DataError(f"{where!r} has the unknown option {unknown[0]!r}, expected {', '.join(sorted(_OPTIONS))}")
    if "download" in options:
        options["download"] = options["download"].lower() in {"1", "true", "yes"}
    return kind, name, options


def _create(name: str, split: str, options: dict[str, Any]) -> Any:
    if name.startswith("hfds/") and not _has_hugging_face_datasets():
        raise DataError(f"{name!r} needs Hugging Face's package datasets, which is not installed: pip install datasets")
    try:
        from timm.data import create_dataset
    except ImportError as error:
        raise DataError("timm is not installed, which 'timm:' datasets need: pip install 'vitdeploy[torch]'") from error
    try:
        return create_dataset(name, split=split, search_split=False, **options)
    except Exception as error:  # the factory hands on whatever torchvision, datasets and the network raise
        raise DataError(f"timm cannot open {name!r}, split {split!r}: {one_line(error)}") from error


def _has_hugging_face_datasets() -> bool:
    """Return whether the package is there; a folder called ``datasets`` in the working directory looks like one."""
    spec = importlib.util.find_spec("datasets")
    return spec is not None and spec.origin is not None


def _labels(dataset: Any) -> NDArray[np.int64]:
    """Return the class of every sample, without decoding images where the source allows it."""
    reader = getattr(dataset, "reader", None)
    if reader is not None:
        return np.array([int(target) for target in reader.iter_targets()], np.int64)
    targets = getattr(dataset, "targets", None)
    if targets is not None:
        return np.asarray(targets, np.int64)
    return np.array([int(dataset[index][1]) for index in range(len(dataset))], np.int64)


def _classes(dataset: Any, labels: NDArray[np.int64]) -> list[str]:
    reader = getattr(dataset, "reader", None)
    if reader is not None and reader.class_to_idx:
        return [str(name) for name, _ in sorted(reader.class_to_idx.items(), key=lambda item: int(item[1]))]
    names = getattr(dataset, "classes", None)
    if names is None:
        return [str(index) for index in range(int(labels.max(initial=-1)) + 1)]
    return [name[0] if isinstance(name, tuple) else str(name) for name in names]
