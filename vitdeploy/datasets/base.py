"""What every dataset offers, and a seeded part of one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitdeploy.records import Preprocess, sha256_of

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class Dataset(Protocol):
    """Images in a fixed order, with labels or without.

    ``labels`` are indices into ``classes``; None (and no classes) where the images are unlabelled. ``sample_ids`` name
    samples by content: the SHA-256 of the file, or of the pixels where there is no file (``pixels_id``), so that two
    datasets overlap exactly where their ids do. ``digest`` is over classes, ids and labels. Ids and digest read every
    file and are therefore computed when first asked for. ``preprocess`` is what the dataset suggests to whoever trains
    on it, or None. ``licence`` and ``source`` are empty where the dataset does not say.
    ``notes`` are sentences for whoever uses it: what was left out.
    """

    @property
    def uri(self) -> str: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def labels(self) -> NDArray[np.int64] | None: ...
    @property
    def sample_ids(self) -> tuple[str, ...]: ...
    @property
    def digest(self) -> str: ...
    @property
    def preprocess(self) -> Preprocess | None: ...
    @property
    def source(self) -> str: ...
    @property
    def licence(self) -> str: ...
    @property
    def notes(self) -> tuple[str, ...]: ...
    def __len__(self) -> int: ...
    def image(self, index: int) -> Image.Image:
        """Return image ``index``, upright, of mode ``L`` or ``RGB``."""
        ...

    def name(self, index: int) -> str:
        """Return what a person calls the sample: its path within the dataset."""
        ...

    def file(self, index: int) -> Path | None:
        """Return the file that holds the sample, or None where it is not a file of its own."""
        ...

    def sample_id(self, index: int) -> str:
        """Return ``sample_ids[index]`` without reading the other files."""
        ...


DataSource = Dataset | Path | str
"""What names a dataset: the opened one, or the text or path that ``open_dataset`` takes."""


class DatasetBase:
    """What is the same for all datasets; a subclass adds ``image``, ``sample_id`` and, where it can, ``file``."""

    def __init__(
        self,
        uri: str,
        names: Sequence[str],
        labels: NDArray[np.int64] | None = None,
        classes: Sequence[str] = (),
    ) -> None:
        self.uri = uri
        self.classes = tuple(classes)
        self.labels = labels
        self._names = tuple(names)
        self.preprocess: Preprocess | None = None
        self.source = ""
        self.licence = ""
        self.notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.uri!r}: {len(self)} images, {len(self.classes)} classes>"

    def image(self, index: int) -> Image.Image:
        raise NotImplementedError

    def sample_id(self, index: int) -> str:
        raise NotImplementedError

    def name(self, index: int) -> str:
        return self._names[index]

    def file(self, index: int) -> Path | None:
        return None

    @cached_property
    def sample_ids(self) -> tuple[str, ...]:
        return tuple(self.sample_id(index) for index in range(len(self)))

    @cached_property
    def digest(self) -> str:
        return content_digest(self.classes, self.sample_ids, self.labels)


class Subset(DatasetBase):
    """Some samples of another dataset, in the order given; ``classes`` are other names for its classes."""

    def __init__(
        self,
        parent: Dataset,
        indices: NDArray[np.int64],
        uri: str | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        labels = None if parent.labels is None else parent.labels[indices]
        names = [parent.name(int(index)) for index in indices]
        super().__init__(
            parent.uri if uri is None else uri, names, labels, parent.classes if classes is None else classes
        )
        self.preprocess, self.source, self.licence = parent.preprocess, parent.source, parent.licence
        self.notes = parent.notes
        self._parent = parent
        self._indices = indices

    def image(self, index: int) -> Image.Image:
        return self._parent.image(int(self._indices[index]))

    def sample_id(self, index: int) -> str:
        return self._parent.sample_id(int(self._indices[index]))

    def file(self, index: int) -> Path | None:
        return self._parent.file(int(self._indices[index]))


def pixels_id(image: Image.Image) -> str:
    """Return the SHA-256 over mode, size and pixels: the id of a sample that is no file."""
    head = f"{image.mode} {image.width}x{image.height}\n".encode()
    return hashlib.sha256(head + image.tobytes()).hexdigest()


def content_digest(classes: Sequence[str], sample_ids: Sequence[str], labels: NDArray[np.int64] | None) -> str:
    """Return the SHA-256 over classes, sample ids and labels in order; file names and places do not count."""
    return sha256_of(
        {"classes": list(classes), "ids": list(sample_ids), "labels": None if labels is None else labels.tolist()}
    )
