"""How people lay out folders of images: which folders are splits, which only wrap others, what is no image.

photos/train/cat/1.jpg   photos/val/…        splits; also dev, eval, holdout, testing …
photos/cats_train/…      photos/cats_test/…  splits that share the rest of their names
photos/images/train/…    photos/train/images/cat/…   folders that only wrap others are looked through
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path, PurePosixPath

from vitdeploy.datasets.base import SPLITS, Split
from vitdeploy.errors import DataError
from vitdeploy.reading import is_of_system
from vitdeploy.text import is_text, name_text

_SPLIT_WORDS: dict[str, tuple[Split, ...]] = {
    **dict.fromkeys(("train", "training", "trainset", "trn"), ("train",)),
    **dict.fromkeys(("val", "valid", "validation", "valset", "dev", "devel", "development"), ("validation",)),
    **dict.fromkeys(("test", "testing", "testset", "tst"), ("test",)),
    # what is held out to be judged at the end, unless a test folder is there beside it
    **dict.fromkeys(("eval", "evaluation", "holdout", "heldout"), ("test", "validation")),
}
_NEUTRAL_WORDS = frozenset({"set", "split", "data", "dataset", "images", "image", "imgs", "img", "folder", "dir"})
_WRAPPERS = frozenset(
    {"images", "image", "imgs", "img", "data", "dataset", "photos", "pictures", "jpegimages", "classes", "class"}
)

_FORMATS_OF_ENDING = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"), "JPEG"),
    **dict.fromkeys((".png", ".apng"), "PNG"),
    **dict.fromkeys((".bmp", ".dib"), "BMP"),
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    **dict.fromkeys((".pbm", ".pgm", ".pnm", ".ppm"), "PPM"),
    **dict.fromkeys((".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"), "JPEG2000"),
    **dict.fromkeys((".avif",), "AVIF"),
    **dict.fromkeys((".webp",), "WEBP"),
    **dict.fromkeys((".gif",), "GIF"),
}
_OPTIONAL = {"AVIF": "avif", "JPEG2000": "jpg_2000", "WEBP": "webp"}


@cache
def endings() -> frozenset[str]:
    """Return the endings of the files that this Pillow reads; JPEG 2000, AVIF and WebP depend on how it was built."""
    from PIL import features

    lacking = {name for name, feature in _OPTIONAL.items() if not features.check(feature)}
    return frozenset(ending for ending, name in _FORMATS_OF_ENDING.items() if name not in lacking)


def is_image_name(name: str) -> bool:
    """Return whether a file's name ends as an image's does, in whatever case."""
    return PurePosixPath(name).suffix.lower() in endings()


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return what a folder holds, sorted by name, without what is hidden or belongs to a file system or NAS.

    Raises:
        DataError: The folder cannot be read.
    """
    try:
        with os.scandir(folder) as found:
            return sorted((entry for entry in found if not _is_system(entry.name)), key=lambda entry: entry.name)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"folder {str(folder)!r} cannot be read: {reason}") from error


def folders_in(folder: Path) -> list[str]:
    """Return the names of the folders in a folder, links followed."""
    return [entry.name for entry in entries(folder) if is_folder(entry)]


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder; a link that leads nowhere or in a circle is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def images_below(folder: Path, above: tuple[str, ...] | None = None) -> Iterator[str]:
    """Yield the paths of the images below ``folder``, relative to it, depth first.

    A link that leads back to a folder above it is passed over: through it, images of other classes would be there too.
    """
    real = os.path.realpath(folder)
    above = _folders_above(real) if above is None else above
    if real in above:
        return
    for entry in entries(folder):
        if is_folder(entry):
            for path in images_below(folder / entry.name, (*above, real)):
                yield f"{entry.name}/{path}"
        elif is_image_name(entry.name):
            yield entry.name


def count_left_out(folder: Path, above: tuple[str, ...] | None = None) -> Counter[str]:
    """Return ending → number of the files below ``folder`` that are not taken for images."""
    real = os.path.realpath(folder)
    above = _folders_above(real) if above is None else above
    counts: Counter[str] = Counter()
    if real in above:
        return counts
    for entry in entries(folder):
        if is_folder(entry):
            counts += count_left_out(folder / entry.name, (*above, real))
        elif not is_image_name(entry.name):
            counts[PurePosixPath(entry.name).suffix.lower() or "without an ending"] += 1
    return counts


def _folders_above(real: str) -> tuple[str, ...]:
    return tuple(map(str, Path(real).parents))


def class_names(folder: Path) -> list[str]:
    """Return the names of the class folders; none for a flat folder.

    Raises:
        DataError: There are images both beside the class folders and in them, or a class has no name that is text.
    """
    listed = entries(folder)
    classes = [entry.name for entry in listed if is_folder(entry)]
    loose = next((entry.name for entry in listed if not is_folder(entry) and is_image_name(entry.name)), None)
    if classes and loose is not None:
        if any(has_images(folder / name) for name in classes):
            raise DataError(
                f"{str(folder)!r} holds the image '{name_text(loose)}' beside class folders: move it into one of them, "
                "or away"
            )
        return []
    for name in classes:
        if not is_text(name):
            raise DataError(
                f"the class folder '{name_text(name)}' in {str(folder)!r} has a name that is no UTF-8, which no class "
                "can have: rename it"
            )
    return classes


def has_images(folder: Path) -> bool:
    """Return whether there is an image anywhere below a folder."""
    return next(images_below(folder), None) is not None


def refuse_splits_below(folder: Path, classes: Sequence[str]) -> None:
    """Refuse folders train and test within each class: classes alone would mix what somebody held apart.

    Raises:
        DataError: Every class has a train folder and another split below it.
    """
    below = [_split_names(folder / name, folders_in(folder / name)) for name in classes]
    if len(below) > 1 and all("train" in found and len(found) > 1 for found in below):
        first = (below[0][split] for split in SPLITS if split in below[0])
        names = ", ".join(repr(f"{classes[0]}/{name}") for name in first)
        raise DataError(
            f"{str(folder)!r} has its splits below the classes ({names}), where they would be mixed: move them above, "
            f"as in {below[0]['train']!r} with {classes[0]!r} in it"
        )


def find_layout(root: Path) -> tuple[str, dict[Split, str]]:
    """Return the folder below ``root`` in which the classes or images are, and split → its folder, both within root.

    The first is what counts where there are no splits; a single folder ``train`` is then where the classes are.

    Raises:
        DataError: Two folders are the same split, or the root cannot be read.
    """
    base = ""
    for _ in range(4):
        names = folders_in(root / base)
        found = _split_names(root / base, names)
        if found:
            splits: dict[Split, str] = {split: _unwrapped(root, _join(base, name)) for split, name in found.items()}
            return (splits["train"], {}) if list(splits) == ["train"] else ("", splits)
        inner = _wrapped_in(root / base, names)
        if inner is None:
            return base, {}
        base = _join(base, inner)
    return base, {}


def split_of_folder(folder: Path) -> tuple[Split, Path | None] | None:
    """Return which split a folder is by itself, and the root whose layout has it as that; None for any other folder.

    ``ds/test`` is the test split of ``ds`` where ``ds/train`` is there too. Where it is not, class folders in a folder
    that is called as a validation or test split is are that split, which no root has.
    """
    for inner in (folder, folder.parent) if folder.name.lower() in _WRAPPERS else (folder,):
        root, word = inner.parent, _split_word(inner.name)
        if word is None:
            continue
        split, siblings = word[1][0], [_split_word(name) for name in folders_in(root)]
        kinds = {other[1][0] for other in siblings if other is not None and other[0] == word[0]}
        if "train" in kinds and len(kinds) > 1:
            for known, path in find_layout(root)[1].items():
                if folder in (root / path, inner if path.partition("/")[0] == inner.name else None):
                    return known, root
        if inner == folder and split != "train" and (not word[0] or len(kinds) > 1) and class_names(folder):
            return split, None
    return None


def _split_names(folder: Path, names: Sequence[str]) -> dict[Split, str]:
    """Return split → name of its folder; empty where the folders are classes.

    Folders are splits where no other folder holds images, or where there is a train folder and another split. The words
    around ``train`` and ``test`` must be the same, so that ``bullet_train`` and
    ``crash_test`` are classes.
    """
    words = {name: word for name in names if (word := _split_word(name)) is not None}
    for affix in dict.fromkeys(affix for affix, _ in words.values()):
        here = {name: splits for name, (other_words, splits) in words.items() if other_words == affix}
        found = _assigned(folder, here)
        if len(found) > 1 and "train" in found:
            return found
        others = [name for name in names if name not in here]
        if found and not any(has_images(folder / name) for name in others):
            return found
    return {}


def _split_word(name: str) -> tuple[tuple[str, ...], tuple[Split, ...]] | None:
    """Return the other words of a name, and the splits that its one telling word may mean; None without one."""
    words = re.findall(r"[a-z]+|[0-9]+", re.sub(r"\bhold[ _-]?out\b", "holdout", name.lower()))
    split_words = [word for word in words if word in _SPLIT_WORDS]
    if len(split_words) != 1:
        return None
    rest = tuple(word for word in words if word not in _SPLIT_WORDS and word not in _NEUTRAL_WORDS)
    return rest, _SPLIT_WORDS[split_words[0]]


def _assigned(folder: Path, names: dict[str, tuple[Split, ...]]) -> dict[Split, str]:
    found: dict[Split, str] = {}
    for name, splits in sorted(names.items(), key=lambda item: (len(item[1]), item[0])):
        free = [split for split in splits if split not in found]
        if not free:
            first = found[splits[0]]
            raise DataError(f"{str(folder)!r} has two {splits[0]} folders, {first!r} and {name!r}: keep one")
        found[free[0]] = name
    return found


def _wrapped_in(folder: Path, names: Sequence[str]) -> str | None:
    """Return the one folder in which all images are, where it is no class: by its name, or because it holds splits."""
    if any(not is_folder(entry) and is_image_name(entry.name) for entry in entries(folder)):
        return None
    wrappers = [name for name in names if name.lower() in _WRAPPERS or name.lower() == folder.resolve().name.lower()]
    for name in wrappers or (names if len(names) == 1 else []):
        if any(has_images(folder / other) for other in names if other != name):
            continue
        if name in wrappers or len(_split_names(folder / name, folders_in(folder / name))) > 1:
            return name
    return None


def _unwrapped(root: Path, name: str) -> str:
    """Return the folder of a split, or the one in it that only wraps the classes (``train/images``)."""
    for _ in range(3):
        inner = _wrapped_in(root / name, folders_in(root / name))
        if inner is None:
            return name
        name = _join(name, inner)
    return name


def _join(base: str, name: str) -> str:
    return f"{base}/{name}" if base else name


def _is_system(name: str) -> bool:
    return name.startswith(".") or is_of_system(name)
