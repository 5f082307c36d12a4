"""From a dataset's classes to a model's logits.

Folders are matched by name, by name without regard to case, blanks, hyphens and underscores, and by WordNet id or
ImageNet word; where all are numbers, they are indices. Names that Unicode writes in several ways are equal. A folder
that matches nothing, or two classes, is an error: a guessed label is a wrong accuracy.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitdeploy.datasets.base import Dataset, Subset
from vitdeploy.datasets.class_names import class_numbers, loosely, plain, repeated_names
from vitdeploy.datasets.imagenet import imagenet_classes
from vitdeploy.errors import DataError, warn
from vitdeploy.reading import decode_text, parse_json, read_bytes

LARGEST = 8 << 20
_LISTED = 5
_FIRST_OF_TWO_DIGITS = 10  # up to 9 the orders of numbers and of words are the same
_IMAGENET_AGREEMENT = 900  # of 1000 names, at their own position, to take a model's classes for ImageNet's


def require_labels(dataset: Dataset) -> NDArray[np.int64]:
    """Return the dataset's labels.

    Raises:
        DataError: The images are unlabelled, or there is one class only.
    """
    if dataset.labels is None:
        raise DataError(f"{dataset.uri!r} has no labels, expected one folder per class")
    if len(dataset.classes) < 2:
        raise DataError(
            f"{dataset.uri!r} has one class only, {dataset.classes[0]!r}, expected at least two class folders "
            f"(if that folder holds the class folders, name it instead)"
        )
    return dataset.labels


def rename_classes(dataset: Dataset, names: Sequence[str]) -> Dataset:
    """Return the dataset with other names for its classes, in their order.

    Raises:
        DataError: There are more or fewer names, or one of them is that of a folder at another place.
    """
    if len(names) != len(dataset.classes):
        raise DataError(f"{dataset.uri!r} has {len(dataset.classes)} classes, and {len(names)} names were given")
    for index, hits in enumerate(_candidates(dataset.classes, names).values()):
        if hits and index not in hits:
            raise DataError(
                f"class {index} of {dataset.uri!r} is called {dataset.classes[index]!r}, and the names have that at "
                f"{hits[0]}: give them in the order of the folders, {', '.join(dataset.classes[:_LISTED])} …"
            )
    if note := repeated_names(names, "the list of names"):
        warn(note)
    return Subset(dataset, np.arange(len(dataset)), classes=names)


def match_labels(
    dataset: Dataset,
    classes: Sequence[str],
    *,
    count: int | None = None,
    label_map: Path | None = None,
    by_order: bool = False,
) -> NDArray[np.int64]:
    """Return the dataset's labels as indices of the model's classes, [n].

    Args:
        dataset: Its classes may be fewer than the model's.
        classes: The model's, in the order of its logits; empty where it does not name them.
        count: How many classes the model has, where it does not name them; None where that is not known either.
        label_map: JSON ``{"folder": "label"}`` or CSV ``folder,label`` with a row per folder; a label is the name of
            a class of the model, or its index. Two folders may share a label.
        by_order: Take the first folder for the first class and so on; only where the counts are equal and no name
            matches.
    Raises:
        DataError: The dataset has no labels or one class, a folder matches no class or several, or ``by_order`` does
            not apply.
    """
    labels = require_labels(dataset)
    if by_order and label_map is not None:
        raise DataError("labels by order and a label map were both asked for: leave one of the two out")
    known = len(classes) or count
    if label_map is not None:
        targets = _mapped(dataset, classes, known, label_map)
    elif by_order:
        targets = _ordered(dataset, classes, known)
    else:
        targets = _matched(dataset, classes, known)
    return np.array(targets, np.int64)[labels]


def _matched(dataset: Dataset, classes: Sequence[str], count: int | None) -> list[int]:
    found = _candidates(dataset.classes, classes)
    unmatched = [name for name, hits in found.items() if not hits]
    if len(unmatched) == len(dataset.classes) and (numbers := class_numbers(dataset.classes)) is not None:
        if not classes and sorted(numbers) == list(range(count or 0)) and len(numbers) > _FIRST_OF_TWO_DIGITS:
            warn(
                f"the folders of {dataset.uri!r} are numbers and were taken for the indices of the classes; a model "
                f"trained with torchvision's ImageFolder has them in the order of words (0, 1, 10, …): for such a one "
                "write these names, one per line in that order, into a file for vd.export(..., "
                "options=vd.ExportOptions(labels='FILE'))"
            )
        return _numbered(dataset, numbers, count)
    if not classes:
        raise DataError(
            "the model does not name its classes: give it their names with vd.export(..., "
            "options=vd.ExportOptions(labels='FILE')), or pass label_map='FILE' with an index for each folder"
        )
    if unmatched:
        raise DataError(_unmatched_text(dataset, unmatched, classes))
    for name, hits in found.items():
        if len(hits) > 1:
            examples = ", ".join(f"{index} ({classes[index]!r})" for index in hits[:_LISTED])
            raise DataError(
                f"folder {name!r} fits several classes of the model, {examples}: say which in label_map='FILE'"
            )
    targets = [hits[0] for hits in found.values()]
    _refuse_shared(dataset.classes, targets, classes)
    return targets


def _numbered(dataset: Dataset, numbers: Sequence[int], count: int | None) -> list[int]:
    """Take numbers for indices, if the model has that many classes."""
    if count is None:
        raise DataError(
            f"the folders of {dataset.uri!r} are numbers, and how many classes the model has is not known: name them "
            "with vd.export(..., options=vd.ExportOptions(labels='FILE')), or say what each folder means in "
            "label_map='FILE'"
        )
    if max(numbers) >= count:
        raise DataError(
            f"the folders of {dataset.uri!r} are numbers from {min(numbers)} to {max(numbers)}, and the model has the "
            f"classes 0 to {count - 1}: say what each folder means in label_map='FILE'"
        )
    return list(numbers)


def _unmatched_text(dataset: Dataset, unmatched: Sequence[str], classes: Sequence[str]) -> str:
    listed = ", ".join(map(repr, unmatched[:_LISTED]))
    more = f" and {len(unmatched) - _LISTED} more" if len(unmatched) > _LISTED else ""
    known = ", ".join(map(repr, classes[:_LISTED])) + (", …" if len(classes) > _LISTED else "")
    return (
        f"{len(unmatched)} of the {len(dataset.classes)} classes of {dataset.uri!r} are not classes of the model: "
        f"{listed}{more}; the model has {len(classes)}: {known}; rename the folders, or pass label_map='FILE'"
    )


def _refuse_shared(names: Sequence[str], targets: Sequence[int], classes: Sequence[str]) -> None:
    seen: dict[int, str] = {}
    for name, target in zip(names, targets, strict=True):
        if target in seen:
            raise DataError(
                f"folders {seen[target]!r} and {name!r} both fit the class {classes[target]!r}: merge them, "
                "or pass label_map='FILE'"
            )
        seen[target] = name


def _ordered(dataset: Dataset, classes: Sequence[str], count: int | None) -> list[int]:
    if count is None:
        raise DataError(
            "how many classes the model has is not known: name them, in order, with vd.export(..., "
            "options=vd.ExportOptions(labels='FILE'))"
        )
    if len(dataset.classes) != count:
        raise DataError(
            f"{dataset.uri!r} has {len(dataset.classes)} classes and the model {count}: labels by order need "
            "equal counts; pass label_map='FILE'"
        )
    matching = [name for name, hits in _candidates(dataset.classes, classes).items() if hits]
    if matching:
        raise DataError(
            f"labels by order were asked for, but {len(matching)} folders match classes by name, such as "
            f"{matching[0]!r}: leave labels_by_order=True out, or pass label_map='FILE'"
        )
    return list(range(count))


def _mapped(dataset: Dataset, classes: Sequence[str], count: int | None, file: Path) -> list[int]:
    table = {plain(folder): label for folder, label in read_label_map(file).items()}
    missing = [name for name in dataset.classes if plain(name) not in table]
    if missing:
        listed = ", ".join(map(repr, missing[:_LISTED]))
        raise DataError(f"the label map {str(file)!r} lacks {len(missing)} folders: {listed}; add a row for each")
    return [_target(table[plain(name)], classes, count, file) for name in dataset.classes]


def _target(label: str | int, classes: Sequence[str], count: int | None, file: Path) -> int:
    wanted = plain(label) if isinstance(label, str) else label
    positions = [index for index, name in enumerate(classes) if plain(name) == wanted]
    if len(positions) == 1:
        return positions[0]
    if not positions and str(label).isdecimal() and (count is None or int(label) < count):
        return int(label)
    what = "names no class of the model" if not positions else f"names {len(positions)} classes of the model"
    raise DataError(f"the label {label!r} in {str(file)!r} {what}, expected a class name or an index")


def read_label_map(file: Path) -> dict[str, str | int]:
    """Read a label map.

    Raises:
        DataError: The file is neither a JSON object nor CSV with two columns, or names a folder twice.
        ArtifactError: The file cannot be read.
    """
    expected = 'expected JSON {"folder": "label"} or CSV lines folder,label'
    try:
        text = decode_text(read_bytes(file, LARGEST))
        return _json_map(text) if text.lstrip().startswith("{") else _csv_map(text)
    except (ValueError, csv.Error) as error:
        raise DataError(f"the label map {str(file)!r} cannot be read: {error}; {expected}") from error


def _json_map(text: str) -> dict[str, str | int]:
    table = parse_json(text, unique_keys=True)
    for name, label in table.items():
        if isinstance(label, bool) or not isinstance(label, (str, int)):
            raise ValueError(f"the label of {name!r} is {label!r}")
    return dict(table)


def _csv_map(text: str) -> dict[str, str | int]:
    table: dict[str, str | int] = {}
    for number, row in enumerate(csv.reader(io.StringIO(text, newline="")), 1):
        cells = [cell.strip() for cell in row]
        if not any(cells) or (not table and cells == ["folder", "label"]):
            continue
        if len(cells) != 2 or not all(cells):
            raise ValueError(f"line {number} has {len(cells)} columns")
        if cells[0] in table:
            raise ValueError(f"line {number} names {cells[0]!r} again")
        table[cells[0]] = cells[1]
    if not table:
        raise ValueError("it is empty")
    return table


def _candidates(names: Sequence[str], classes: Sequence[str]) -> dict[str, list[int]]:
    """Return, for each folder, the indices of the classes that it may mean, by the most exact rule that gives any."""
    exact = _index(classes, lambda name: [plain(name)])
    loose = _index(classes, lambda name: [loosely(name)])
    synsets: Mapping[str, list[int]] | None = None
    found: dict[str, list[int]] = {}
    for name in names:
        hits = exact.get(plain(name)) or loose.get(loosely(name))
        if not hits:
            if synsets is None:
                synsets = _synsets_of(classes)
            hits = sorted({index for synset in _meanings(name) for index in synsets.get(synset, ())})
        found[name] = list(hits)
    return found


def _index(classes: Sequence[str], keys: Callable[[str], Sequence[str]]) -> dict[str, list[int]]:
    table: dict[str, list[int]] = {}
    for index, name in enumerate(classes):
        for key in keys(name):
            table.setdefault(key, []).append(index)
    return table


def _synsets_of(classes: Sequence[str]) -> dict[str, list[int]]:
    """Return which of the model's classes each WordNet id may mean."""
    table = imagenet_classes()
    if len(classes) == len(table):
        agreeing = sum(entry.synset in _meanings(name) for entry, name in zip(table, classes, strict=True))
        if agreeing >= _IMAGENET_AGREEMENT:
            return {entry.synset: [entry.index] for entry in table}
    return _index(classes, lambda name: sorted(_meanings(name)))


def _meanings(name: str) -> frozenset[str]:
    """Return the WordNet ids that a class name may mean: itself, a label, a first word, or words shared by one id."""
    if (synset := re.match(r"n\d{8}(?=\s|$)", name)) is not None:  # alone, or as in "n01440764 tench, Tinca tinca"
        return frozenset({synset[0]})
    first, others = _words()
    if (hits := first.get(loosely(name))) is not None:
        return hits
    parts = [others.get(loosely(part), frozenset()) for part in name.split(",")]
    return frozenset.intersection(*parts)


@cache
def _words() -> tuple[dict[str, frozenset[str]], dict[str, frozenset[str]]]:
    first: dict[str, set[str]] = {}
    every: dict[str, set[str]] = {}
    for entry in imagenet_classes():
        for word in (entry.label, entry.lemmas[0]):
            first.setdefault(loosely(word), set()).add(entry.synset)
        for word in (entry.label, *entry.lemmas):
            every.setdefault(loosely(word), set()).add(entry.synset)
    return _frozen(first), _frozen(every)


def _frozen(table: Mapping[str, set[str]]) -> dict[str, frozenset[str]]:
    return {word: frozenset(ids) for word, ids in table.items()}
