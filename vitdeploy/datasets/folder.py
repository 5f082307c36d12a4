"""Image folders: class folders, with train, validation and test folders above them or not, or a flat folder of images.

    photos/cat/1.jpg  photos/cat/more/2.png  photos/dog/3.JPEG          three images, two classes
    photos/train/cat/1.jpg  photos/val/cat/2.jpg  photos/test/dog/3.jpg the same in splits
    photos/1.jpg  photos/2.jpg                                          unlabelled

Order is that of the names, folder by folder, so it is the same on every machine; classes called by numbers come in the
order of these. Class names are compared and kept in Unicode's composed form. Names that begin with a dot are
skipped, links are followed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from vitdeploy.datasets.base import SPLITS, DatasetBase, Split, Subset
from vitdeploy.datasets.class_names import class_numbers, plain
from vitdeploy.datasets.partition import partition
from vitdeploy.errors import ArtifactError, DataError
from vitdeploy.preprocess import open_image
from vitdeploy.reading import sha256_of_file

EXTENSIONS = frozenset(
    {".bmp", ".gif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)
_SPLIT_FOLDERS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
_SMALLEST_CLASS = 3
_CARVED = 5  # one in five training images stands in for a validation folder that is not there


class ImageFiles(DatasetBase):
    """Images that are files below ``root``; ``names`` are their paths within it."""

    def __init__(self, uri: str, root: Path, names: list[str], labels: list[int] | None, classes: list[str]) -> None:
        super().__init__(uri, names, None if labels is None else np.array(labels, np.int64), classes)
        self.root = root
        self._ids: dict[int, str] = {}

    def file(self, index: int) -> Path:
        return self.root / self._names[index]

    def image(self, index: int) -> Image.Image:
        return open_image(self.file(index))

    def sample_id(self, index: int) -> str:
        if index not in self._ids:
            try:
                self._ids[index] = sha256_of_file(self.file(index))
            except ArtifactError as error:
                raise DataError(f"image {str(self.file(index))!r} cannot be read: {error}") from error
        return self._ids[index]


@dataclass(frozen=True)
class ImageFolder:
    """A folder of images as found on disk, before a split is chosen."""

    root: Path

    @cached_property
    def split_folders(self) -> dict[Split, str]:
        """Name of the folder of each split; empty where ``root`` holds classes or images itself.

        ``train`` beside a validation or test folder makes them splits; a single folder called ``test`` does too, but
        ``train`` and ``car`` are two classes.
        """
        names = [entry.name for entry in _entries(self.root) if entry.is_dir()]
        found: dict[Split, str] = {}
        for name in names:
            if (split := _SPLIT_FOLDERS.get(name.lower())) is None:
                continue
            if split in found:
                raise DataError(f"{str(self.root)!r} has two {split} folders, {found[split]!r} and {name!r}: keep one")
            found[split] = name
        return found if len(found) == len(names) or ("train" in found and len(found) > 1) else {}

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits that the folders define, in order."""
        return tuple(split for split in SPLITS if split in self.split_folders)

    def open(self, uri: str, split: Split | None, seed: int) -> DatasetBase:
        """Return everything, or one split.

        A split is its folder. Where there is a train folder and none for validation, one in five training images,
        chosen by ``seed`` and stratified, is the validation split and not in the training split. Where there are no
        split folders, ``seed`` divides the images: about 60, 15 and 25 % of every class.

        Raises:
            DataError: The folder holds no images, lacks the split, or has classes too small to divide.
        """
        if not self.split_folders:
            dataset = self._files(uri, [""])
            return dataset if split is None else _part(dataset, split, seed, sizes=None, smallest=_SMALLEST_CLASS)
        if split is None:
            return self._files(uri, [self.split_folders[split] for split in self.splits])
        if split in self.split_folders and (split != "train" or "validation" in self.split_folders):
            return self._files(uri, [self.split_folders[split]])
        if split != "test" and "train" in self.split_folders:
            train = self._files(uri, [self.split_folders["train"]])
            return _part(train, split, seed, sizes=(max(1, len(train) // _CARVED), 0), smallest=2)
        there = ", ".join(self.split_folders[split] for split in self.splits)
        raise DataError(
            f"{str(self.root)!r} has the folders {there} and none for {split}: add it, "
            f"or name another split, such as '{self.root}:{self.splits[-1]}'"
        )

    def _files(self, uri: str, folders: list[str]) -> ImageFiles:
        names: list[str] = []
        labels: list[int] = []
        classes = self._classes(folders)
        for folder in folders:
            there = _class_names(self.root / folder)
            if bool(there) != bool(classes):
                raise DataError(f"{str(self.root)!r} has class folders in one split and none in another")
            for name in there or [""]:
                found = [str(PurePosixPath(folder, name, file)) for file in _images_below(self.root / folder / name)]
                if not found and name and not self.split_folders:
                    raise DataError(
                        f"class folder {str(self.root / folder / name)!r} holds no images: add some or remove it"
                    )
                names += found
                labels += [classes.index(plain(name))] * len(found) if name else []
        if not names:
            raise DataError(
                f"{str(self.root.joinpath(*folders[:1]))!r} holds no images, expected files such as .jpg or .png, "
                f"in one folder per class"
            )
        return ImageFiles(uri, self.root, names, labels if classes else None, classes)

    def _classes(self, folders: list[str]) -> list[str]:
        """Return the classes; those of the train folder where there is one, so that labels agree between splits."""
        train = self.split_folders.get("train")
        if train is None:
            return _in_class_order({plain(name) for folder in folders for name in _class_names(self.root / folder)})
        classes = _in_class_order(map(plain, _class_names(self.root / train)))
        for folder in folders:
            there = {plain(name) for name in _class_names(self.root / folder)}
            if classes and (unknown := sorted(there - set(classes))):
                raise DataError(
                    f"{str(self.root / folder)!r} has class folders that {train!r} lacks: "
                    f"{', '.join(map(repr, unknown[:5]))}"
                )
        return classes


def _in_class_order(names: Iterable[str]) -> list[str]:
    """Return each name once, sorted; numbers by their value, because they are indices."""
    unique = sorted(set(names))
    numbers = class_numbers(unique)
    return unique if numbers is None else [name for _, name in sorted(zip(numbers, unique, strict=True))]


def _part(dataset: ImageFiles, split: Split, seed: int, *, sizes: tuple[int, int] | None, smallest: int) -> Subset:
    counts = [len(dataset)] if dataset.labels is None else np.bincount(dataset.labels, minlength=len(dataset.classes))
    if min(counts) < smallest:
        which = f"class {dataset.classes[int(np.argmin(counts))]!r} of " if dataset.classes else ""
        raise DataError(
            f"{which}{str(dataset.root)!r} has {min(counts)} images, but a division into splits needs at least "
            f"{smallest} of each class: add images, or make folders train, validation and test"
        )
    names = [dataset.name(index) for index in range(len(dataset))]
    return Subset(dataset, partition(names, dataset.labels, seed, sizes=sizes)[split])


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return what a folder holds, sorted by name, without hidden names.

    Raises:
        DataError: The folder cannot be read, or a name is not valid text.
    """
    try:
        with os.scandir(folder) as found:
            entries = sorted((entry for entry in found if not _hidden(entry.name)), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"folder {str(folder)!r} cannot be read: {error.strerror}") from error
    for entry in entries:
        try:
            entry.name.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"the name {entry.name!r} in {str(folder)!r} is not valid text: rename it") from error
    return entries


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def is_image_name(name: str) -> bool:
    """Tell whether a file's name ends as an image's does, in whatever case."""
    return PurePosixPath(name).suffix.lower() in EXTENSIONS


def _class_names(folder: Path) -> list[str]:
    """Return the names of the class folders; none for a flat folder.

    Raises:
        DataError: There are images both beside the class folders and in them.
    """
    entries = _entries(folder)
    classes = [entry.name for entry in entries if entry.is_dir()]
    loose = next((entry.name for entry in entries if not entry.is_dir() and is_image_name(entry.name)), None)
    if classes and loose is not None:
        if any(True for name in classes for _ in _images_below(folder / name)):
            raise DataError(
                f"{str(folder)!r} holds the image {loose!r} beside class folders: move it into one of them, or away"
            )
        return []
    return classes


def images_below(folder: Path) -> Iterator[Path]:
    """Yield all images below a folder, sorted by name within each folder.

    Raises:
        DataError: A folder cannot be read.
    """
    return (folder / name for name in _images_below(folder))


def _images_below(folder: Path, above: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the paths of the images below ``folder``, relative to it, depth first; a loop of links is entered once."""
    real = os.path.realpath(folder)
    if real in above:
        return
    for entry in _entries(folder):
        if entry.is_dir():
            for path in _images_below(folder / entry.name, (*above, real)):
                yield f"{entry.name}/{path}"
        elif is_image_name(entry.name):
            yield entry.name
