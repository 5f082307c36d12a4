"""Image folders: class folders, with train, validation and test folders above them or not, or a flat folder of images.

    photos/cat/1.jpg  photos/cat/more/2.png  photos/dog/3.JPEG          three images, two classes
    photos/train/cat/1.jpg  photos/val/cat/2.jpg  photos/test/dog/3.jpg the same in splits
    photos/1.jpg  photos/2.jpg                                          unlabelled
    test/cat/1.jpg  test/dog/2.jpg                                      a test split by itself

Order is that of the names, folder by folder, so it is the same on every machine; classes called by numbers come in the
order of these. Class names are compared and kept in Unicode's composed form. ``layout`` says which folders are splits
and what is no image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitdeploy.datasets.base import SPLITS, DatasetBase, Split, Subset
from vitdeploy.datasets.class_names import class_numbers, loosely, plain
from vitdeploy.datasets.layout import (
    class_names,
    count_left_out,
    find_layout,
    images_below,
    refuse_splits_below,
    split_of_folder,
)
from vitdeploy.datasets.partition import partition
from vitdeploy.errors import ArtifactError, DataError
from vitdeploy.preprocess import open_image
from vitdeploy.reading import sha256_of_file
from vitdeploy.text import name_text

_SMALLEST_CLASS = 3
_NO_CLASS = frozenset({"unknown", "unlabelled", "unlabeled", "none", "all", "test"})
_CARVED = 5  # one in five training images stands in for a validation folder that is not there


class ImageFiles(DatasetBase):
    """Images that are files below ``root``; ``names`` are their paths within it."""

    def __init__(self, uri: str, root: Path, names: list[str], labels: list[int] | None, classes: list[str]) -> None:
        super().__init__(uri, names, None if labels is None else np.array(labels, np.int64), classes)
        self.root = root
        self._ids: dict[int, str] = {}

    def name(self, index: int) -> str:
        return name_text(self._names[index])

    def file(self, index: int) -> Path:
        return self.root / self._names[index]

    def image(self, index: int) -> Image.Image:
        return open_image(self.file(index))

    def sample_id(self, index: int) -> str:
        if index not in self._ids:
            try:
                self._ids[index] = sha256_of_file(self.file(index))
            except ArtifactError as error:
                raise DataError(f"image '{name_text(self.file(index))}' cannot be read: {error}") from error
        return self._ids[index]


@dataclass(frozen=True)
class ImageFolder:
    """A folder of images as found on disk, before a split is chosen."""

    root: Path

    @cached_property
    def _layout(self) -> tuple[str, dict[Split, str]]:
        return find_layout(self.root)

    @property
    def split_folders(self) -> dict[Split, str]:
        """Folder of each split within ``root``; empty where it holds classes or images itself."""
        return self._layout[1]

    @cached_property
    def only_split(self) -> Split | None:
        """The split that the folder is by its own name, as one called ``test``; None where it may hold any images."""
        found = None if self.split_folders else split_of_folder(self.root)
        return None if found is None else found[0]

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits that the folders define, in order."""
        if self.only_split is not None:
            return (self.only_split,)
        return tuple(split for split in SPLITS if split in self.split_folders)

    @cached_property
    def labelled_splits(self) -> tuple[Split, ...]:
        """The splits that have class folders; a test split may hold images alone."""
        if self.only_split is not None:
            return self.splits
        return tuple(split for split in self.splits if self._class_folders(self.split_folders[split]))

    @cached_property
    def is_divisible(self) -> bool:
        """Return whether there are classes, no split folders, and enough images of each class to divide them."""
        if self.splits:
            return False
        dataset = self._files(str(self.root), [self._layout[0]])
        return dataset.labels is not None and min(_counts(dataset)) >= _SMALLEST_CLASS

    def open(self, uri: str, split: Split | None, seed: int) -> DatasetBase:
        """Return everything, or one split.

        A split is its folder. Where there is a train folder and none for validation, one in five training images,
        chosen by ``seed`` and stratified, is the validation split and not in the training split. Where there are no
        split folders, ``seed`` divides the images: about 60, 15 and 25 % of every class; but a folder that is a split
        by its own name is that split and no other. Everything is every image that has a label, where some have.

        Raises:
            DataError: The folder holds no images, lacks the split, or has classes too small to divide.
        """
        folders = self.split_folders
        if self.only_split is not None and split not in (None, self.only_split):
            raise DataError(
                f"{str(self.root)!r} is a {self.only_split} split by its name, so it has no {split} split: name "
                "the folder above it, with folders train, val and test, or give it another name"
            )
        if not folders:
            dataset = self._files(uri, [self._layout[0]])
            if split is None or split == self.only_split:
                return dataset
            return _part(dataset, split, seed, sizes=None, smallest=_SMALLEST_CLASS)
        if split is None:
            return self._files(uri, [folders[split] for split in self.labelled_splits or self.splits])
        if split in folders and (split != "train" or "validation" in self.labelled_splits):
            return self._files(uri, [folders[split]])
        if split != "test" and "train" in folders:
            train = self._files(uri, [folders["train"]])
            return _part(train, split, seed, sizes=(max(1, len(train) // _CARVED), 0), smallest=2)
        there = ", ".join(folders[split] for split in self.splits)
        raise DataError(
            f"{str(self.root)!r} has the folders {there} and none for {split}: add it, "
            f"or name another split, such as '{self.root}:{self.splits[-1]}'"
        )

    def _files(self, uri: str, folders: list[str]) -> ImageFiles:
        names: list[str] = []
        labels: list[int] = []
        classes = self._classes(folders)
        for folder in folders:
            if not self.split_folders:
                refuse_splits_below(self.root / folder, self._class_folders(folder))
            for name in self._class_folders(folder) or [""]:
                found = [str(PurePosixPath(folder, name, file)) for file in images_below(self.root / folder / name)]
                if not found and name and not self.split_folders:
                    raise DataError(
                        f"class folder {str(self.root / folder / name)!r} holds no images: add some or remove it"
                    )
                names += found
                labels += [classes.index(plain(name))] * len(found) if name else []
        if not names:
            raise DataError(
                f"{str(self.root.joinpath(*folders[:1]))!r} holds no images, expected files such as .jpg or .png, "
                f"in one folder per class{self._left_out_text(folders)}"
            )
        dataset = ImageFiles(uri, self.root, names, labels if classes else None, classes)
        text = self._left_out_text(folders)
        where = str(self.root.joinpath(*folders[:1])) if len(folders) == 1 else str(self.root)
        dataset.notes = ((f"{where}{text}",) if text else ()) + tuple(_doubts(uri, classes, names))
        return dataset

    def _left_out_text(self, folders: list[str]) -> str:
        """Return in words how many files of which endings are left out; empty where none is."""
        counts: Counter[str] = Counter()
        for folder in folders:
            counts += count_left_out(self.root / folder)
        listed = ", ".join(f"{count} {ending}" for ending, count in counts.most_common())
        return f": left out are {listed}, which are not read as images" if listed else ""

    def _classes(self, folders: list[str]) -> list[str]:
        """Return the classes; those of the train folder where there is one, so that labels agree between splits."""
        train = self.split_folders.get("train")
        here = _in_class_order({plain(name) for folder in folders for name in self._class_folders(folder)})
        if train is None or not here:
            return here
        classes = _in_class_order(map(plain, class_names(self.root / train)))
        for folder in folders:
            there = {plain(name) for name in self._class_folders(folder)}
            if classes and (unknown := sorted(there - set(classes))):
                raise DataError(
                    f"{str(self.root / folder)!r} has class folders that {train!r} lacks: "
                    f"{', '.join(map(repr, unknown[:5]))}"
                )
        return classes or here

    def _class_folders(self, folder: str) -> list[str]:
        """Return the class folders of a split; none where its one folder says that classes are not known."""
        names, train = class_names(self.root / folder), self.split_folders.get("train")
        if len(names) == 1 and train not in (None, folder) and names[0].lower() in _NO_CLASS:
            return []
        return names


def _doubts(uri: str, classes: list[str], names: list[str]) -> Iterator[str]:
    """Yield what may not be meant so: classes with nearly the same name, and classes made of folders of their own."""
    alike: dict[str, list[str]] = {}
    for name in classes:
        alike.setdefault(loosely(name), []).append(name)
    for several in alike.values():
        if len(several) > 1:
            listed = ", ".join(map(repr, several))
            yield f"{uri}: the class folders {listed} are classes of their own, nearly alike in name"
    inner = {PurePosixPath(name).parent for name in names}
    if classes and len(inner) > len(classes) and not any(path.name in classes for path in inner):
        shown = name_text(sorted(map(str, inner))[0])
        yield (
            f"{uri}: the classes are {', '.join(map(repr, classes[:5]))}{' …' if len(classes) > 5 else ''}; folders in "
            f"them, such as '{shown}', are no classes of their own"
        )


def _images(count: int) -> str:
    return f"{count} image{'' if count == 1 else 's'}"


def _counts(dataset: ImageFiles) -> list[int]:
    if dataset.labels is None:
        return [len(dataset)]
    return [int(count) for count in np.bincount(dataset.labels, minlength=len(dataset.classes))]


def _in_class_order(names: Iterable[str]) -> list[str]:
    """Return each name once, sorted; numbers by their value, because they are indices."""
    unique = sorted(set(names))
    numbers = class_numbers(unique)
    return unique if numbers is None else [name for _, name in sorted(zip(numbers, unique, strict=True))]


def _part(dataset: ImageFiles, split: Split, seed: int, *, sizes: tuple[int, int] | None, smallest: int) -> Subset:
    counts = _counts(dataset)
    if min(counts) < smallest:
        prefix = f"class {dataset.classes[int(np.argmin(counts))]!r} of " if dataset.classes else ""
        raise DataError(
            f"{prefix}{str(dataset.root)!r} has {_images(min(counts))}, but a division into splits needs at least "
            f"{smallest} of each class: add images, or make folders train, validation and test"
        )
    names = [dataset.name(index) for index in range(len(dataset))]
    parts = partition(names, dataset.labels, seed, sizes=sizes)
    chosen = Subset(dataset, parts[split])
    chosen.notes = (*chosen.notes, _division_text(dataset, parts))
    return chosen


def _division_text(dataset: ImageFiles, parts: Mapping[Split, NDArray[np.int64]]) -> str:
    """Return how a folder was divided, the same for each of its splits."""
    count, root = len(dataset), str(dataset.root)
    if not len(parts["test"]):
        return f"{root!r} has no validation folder: {len(parts['validation'])} of its {count} training images are that"
    listed = ", ".join(f"{len(parts[split])} {split}" for split in SPLITS)
    return f"{root!r} has no folders for splits, so its {count} images are divided: {listed}"
