"""The text that names a dataset: ``WHERE[@PARTITION][:SPLIT]``.

digits                      all 1797 digits
digits:test                 its test split
digits@1:test               the test split of another partition, number 1
photos                      a folder
photos:all                  all of it, for a command that would take a part of it
photos/test                 photos:test, where photos/train is there too
photos:train                its folder train/, or where it has none the training part of a seeded partition
timm:torch/cifar10?root=/data:validation
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from vitdeploy.datasets.base import SPLITS, DataSource, Split
from vitdeploy.datasets.layout import split_of_folder
from vitdeploy.errors import DataError, UsageError
from vitdeploy.text import is_text, name_text

_ALIASES: dict[str, Split | None] = {
    **{split: split for split in SPLITS},
    **dict.fromkeys(("val", "valid", "dev"), "validation"),
    "all": None,
}


@dataclass(frozen=True)
class DatasetUri:
    """A dataset's text, taken apart; ``text`` is the canonical whole.

    ``split`` None is everything; ``is_all`` is true where the text asks for everything with ``:all``.
    """

    where: str
    partition: int = 0
    split: Split | None = None
    is_all: bool = False

    @property
    def text(self) -> str:
        number = f"@{self.partition}" if self.partition else ""
        return f"{self.where}{number}{':all' if self.is_all else f':{self.split}' if self.split else ''}"


def parse_uri(uri: str, split: Split | None = None) -> DatasetUri:
    """Take a dataset's text apart; ``split`` is the one asked for beside it.

    A path that exists as it stands is a path, whatever it ends in. The folder of a split is that split of the folder
    above it.

    Raises:
        DataError: The text is empty, ``split`` is not a split, or it contradicts the split in the text.
    """
    if not uri:
        raise DataError("the name of the dataset is empty, expected 'digits', a folder, or 'timm:NAME'")
    if not is_text(uri):
        raise DataError(f"the name '{name_text(uri)}' of the dataset is no UTF-8: rename the folder")
    if split is not None and split not in SPLITS:
        raise DataError(f"there is no split {split!r}, expected one of {', '.join(SPLITS)}")
    where, number, named, is_all = uri, 0, None, False
    if not exists(uri):
        head, colon, tail = uri.rpartition(":")
        if colon and head and tail in _ALIASES:
            where, named, is_all = head, _ALIASES[tail], tail == "all"
        if (match := re.fullmatch(r"(.+)@(\d{1,9})", where)) and not exists(where):
            where, number = match[1], int(match[2])
    if (found := _split_above(where)) is not None:
        above, its_split = found
        if any(one not in (None, its_split) for one in (split, named)):
            raise DataError(
                f"{where!r} is the {its_split} split of {above!r}, not its {split or named} split: name "
                f"{f'{above}:{named}' if named else above!r} instead"
            )
        return DatasetUri(above, number, its_split)
    if split is not None and (is_all or (named is not None and split != named)):
        raise DataError(f"the split {split!r} was asked for, but {uri!r} names another: leave one of the two out")
    return DatasetUri(where, number, split or named, is_all)


def _split_above(where: str) -> tuple[str, Split] | None:
    """Return the folder of which ``where`` is the folder of a split, and the split; None for anything else."""
    folder = Path(where)
    if where == "digits" or not exists(where) or not folder.is_dir():
        return None
    found = split_of_folder(folder if folder.name not in ("", "..") else folder.absolute())
    if found is None or found[1] is None:
        return None
    above = str(found[1])
    return f"./{above}" if above == "digits" else above, found[0]


def refuse_output_in_data(output: Path, *data: DataSource) -> None:
    """Raise where a folder of results would lie among the images: it would be a class the next time.

    Raises:
        UsageError: ``output`` is a folder of one of the ``data``, or lies in it.
    """
    for one in data:
        text = str(one) if isinstance(one, str | Path) else one.uri
        where = text if exists(text) else parse_uri(text).where
        if where != "digits" and exists(where) and output.resolve().is_relative_to(Path(where).resolve()):
            raise UsageError(f"the output {str(output)!r} lies inside the data {where!r}: choose a folder beside it")


def exists(where: str) -> bool:
    """Return whether there is a file or folder of that name; a name that no file system takes is none."""
    try:
        return Path(where).exists()
    except (OSError, ValueError):
        return False
