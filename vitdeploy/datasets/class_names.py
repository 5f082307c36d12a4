"""Names of a model's classes, as text files and configurations of Hugging Face and timm have them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitdeploy.errors import DataError
from vitdeploy.reading import decode_text, parse_json, read_bytes

LARGEST = 8 << 20
_PLACEHOLDER = re.compile(r"LABEL_\d+")
_NUMBERED = (
    re.compile(r"(?P<index>\d{1,6})\s*[,;:\t ]\s*(?P<name>\S.*)", re.ASCII),
    re.compile(r"(?P<name>.*\S)\s*[,;:\t]\s*(?P<index>\d{1,6})", re.ASCII),
)
_LISTED = 5
_TABLES = ("classes", "class_names", "labels", "names")
_WORDNET_ID = re.compile(r"n\d{8}", re.ASCII)


def read_class_names(path: Path, classes: int | None = None) -> tuple[str, ...]:
    """Return the names in a file, in the order of the logits.

    Args:
        path: A text file with one name per line, each with its index or none; a JSON list; or a JSON object, which is
            ``{index: name}``, ``{name: index}``, a configuration with ``id2label``, ``label2id`` or ``label_names``, or
            has such a table as ``classes``, ``class_names``, ``labels`` or ``names``.
        classes: How many the model has; None for any number.
    Raises:
        ArtifactError: The file cannot be read.
        DataError: It names no classes, or another number of them.
    """
    try:
        text = decode_text(read_bytes(path, LARGEST))
    except UnicodeDecodeError as error:
        raise DataError(f"{str(path)!r} is not a text file with one class name per line") from error
    names = _names_of_json(text, path) if text.lstrip().startswith(("{", "[")) else _names_of_lines(text)
    if not names or (classes is not None and len(names) != classes):
        has = "" if classes is None else f", the model has {classes} outputs"
        raise DataError(f"{str(path)!r} has {len(names)} class names{has}")
    empty = next((index for index, name in enumerate(names) if not name), None)
    if empty is not None:
        raise DataError(f"{str(path)!r} has no name for class {empty}: an empty line or text stands there")
    return names


def repeated_names(names: Sequence[str], source: str) -> str:
    """Return a note on classes that share a name, empty where none do."""
    places: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        places.setdefault(plain(name), []).append(index)
    shared = [(names[found[0]], found) for found in places.values() if len(found) > 1]
    if not shared:
        return ""
    shown = "; ".join(f"{name!r} for {', '.join(map(str, found))}" for name, found in shared[:_LISTED])
    more = f" and {len(shared) - _LISTED} more" if len(shared) > _LISTED else ""
    return (
        f"{source} has one name for several classes: {shown}{more}; a folder of that name fits them all, and "
        "vd.bench(['ARTIFACT'], 'DATA', options=vd.BenchOptions(label_map='FILE')) says which it is"
    )


def class_names_of(config: Mapping[str, Any], source: str) -> tuple[str, ...]:
    """Return the class names of a model's configuration; none where it has none or placeholders such as LABEL_0.

    Args:
        config: With ``id2label`` (an object or a list, in any order), ``label2id``, or timm's ``label_names``.
        source: What errors call it.
    Raises:
        DataError: Classes are left out or named by no index, or ``id2label`` and ``label2id`` contradict each other.
    """
    by_id = _table(config.get("id2label"), f"id2label of {source}")
    if by_id:
        _refuse_contradiction(by_id, config.get("label2id"), source)
        return by_id
    by_name = _table(config.get("label2id"), f"label2id of {source}")
    if by_name:
        return by_name
    names = config.get("label_names") or (config.get("pretrained_cfg") or {}).get("label_names")
    return _table(names, f"label_names of {source}")


def usable_class_names(config: Mapping[str, Any], source: str, *counts: int) -> tuple[tuple[str, ...], str]:
    """Return the class names of a model's configuration, or none and a note on why they are of no use.

    A model is of use without names, and whoever knows them can give them: so what cannot be used refuses nothing.

    Args:
        config: As for ``class_names_of``.
        source: What notes call it.
        counts: How many names the model can have; the first is that of its outputs.
    """
    try:
        names = class_names_of(config, source)
    except DataError as error:
        return (), f"the model has no class names ({error}); labels='FILE' gives them"
    if not names or len(names) in counts:
        return names, ""
    return (), f"{source} names {len(names)} classes and the model has {counts[0]}: no names; labels='FILE' gives them"


def _refuse_contradiction(names: Sequence[str], label2id: Any, source: str) -> None:
    """Compare with ``label2id``, which may lack names: ImageNet has two classes called crane."""
    for name, index in label2id.items() if isinstance(label2id, Mapping) else ():
        place = _index(index)
        if place is None or _PLACEHOLDER.fullmatch(str(name)) is not None:
            continue
        if place >= len(names) or names[place] != plain(str(name).strip()):
            raise DataError(
                f"label2id of {source} calls class {place} {name!r}, which id2label does not: remove the wrong one"
            )


def plain(name: str) -> str:
    """Return a name in Unicode's composed form, in which equal texts are equal."""
    return unicodedata.normalize("NFC", name)


def loosely(name: str) -> str:
    """Return a name without regard to case, blanks, hyphens and underscores."""
    return re.sub(r"[\s_\-]+", " ", plain(name)).strip().casefold()


def class_numbers(names: Sequence[str]) -> list[int] | None:
    """Return the numbers that folders are called by, None unless all are, each by its own."""
    if not names or not all(name.isascii() and name.isdecimal() for name in names):
        return None
    numbers = [int(name) for name in names]
    return numbers if len(set(numbers)) == len(numbers) else None


def _names_of_lines(text: str) -> tuple[str, ...]:
    lines = [plain(line.strip()) for line in text.splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    return _numbered(lines) or _numbered(lines[1:]) or tuple(lines)  # a table may have a line of headings


def _numbered(lines: Sequence[str]) -> tuple[str, ...]:
    """Return the names of lines such as ``1 dog``, ``1,dog`` and ``dog,1`` by their indices; none where not all are."""
    for pattern in _NUMBERED:
        found = [pattern.fullmatch(line) for line in lines]
        table = {int(one["index"]): one["name"] for one in found if one is not None}
        if lines and len(table) == len(lines) and sorted(table) == list(range(len(lines))):
            return tuple(table[index] for index in range(len(lines)))
    return ()


def _names_of_json(text: str, path: Path) -> tuple[str, ...]:
    try:
        raw = parse_json(text)
    except ValueError as error:
        raise DataError(f"{str(path)!r} begins like JSON and is none: {error}") from error
    if isinstance(raw, dict) and raw.keys() & {"id2label", "label2id", "label_names", "pretrained_cfg"}:
        return class_names_of(raw, repr(str(path)))
    if isinstance(raw, dict):
        raw = next((raw[key] for key in _TABLES if isinstance(raw.get(key), list | dict)), raw)
    return _table(raw, repr(str(path)))


def _table(raw: Any, where: str) -> tuple[str, ...]:
    """Return the names in order of a list, or of an object from index to name or from name to index."""
    if not raw:
        return ()
    if isinstance(raw, Mapping):
        raw = _in_order(raw, where)
    if not isinstance(raw, Sequence) or isinstance(raw, str):
        raise DataError(f"{where} is {type(raw).__name__}, expected a list or an object of class names")
    names = tuple(plain(_name(value, where).strip()) for value in _by_own_index(raw))
    return () if all(_PLACEHOLDER.fullmatch(name) for name in names) else names


def _by_own_index(values: Sequence[Any]) -> Sequence[Any]:
    """Return objects such as ``{"id": 1, "name": "dog"}`` in the order of their indices; anything else as it is."""
    for key in ("id", "index", "class_id"):
        indices = [_index(value.get(key)) if isinstance(value, Mapping) else None for value in values]
        if sorted(index for index in indices if index is not None) == list(range(len(values))):
            return sorted(values, key=lambda value: int(value[key]))
    return values


def _name(value: Any, where: str) -> str:
    """Return one class's name: a text or number, an object's ``name``, or the word behind a WordNet id.

    Raises:
        DataError: It is something else.
    """
    if isinstance(value, Mapping):
        value = next((value[key] for key in ("name", "label") if isinstance(value.get(key), str)), value)
    elif isinstance(value, list) and len(value) == 2 and _WORDNET_ID.fullmatch(str(value[0])):
        value = value[1]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DataError(f"{where} has {value!r} for a class, expected its name")
    return str(value)


def _in_order(table: Mapping[Any, Any], where: str) -> list[Any]:
    if all(_index(key) is not None for key in table):
        by_index = {_index(key): name for key, name in table.items()}
    elif all(_index(value) is not None for value in table.values()):
        by_index = {_index(index): name for name, index in table.items()}
    else:
        raise DataError(f"{where} does not number the classes: expected an index for each name")
    missing = next((index for index in range(len(table)) if index not in by_index), None)
    if missing is not None:
        raise DataError(f"{where} has {len(table)} classes and none for index {missing}: number them from 0")
    return [by_index[index] for index in range(len(table))]


def _index(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    return int(value) if isinstance(value, str) and value.isascii() and value.isdecimal() else None
