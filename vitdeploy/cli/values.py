"""Values of options: ``NAME=VALUE`` pairs as YAML has them, and lists with commas beside repetition."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitdeploy.records.preprocess import Frame


def choose_gpu(number: int | None, on: str | None = None) -> None:
    """Make a GPU the only one of this process, where ``--gpu`` names one; before anything asks what is here.

    Raises:
        UsageError: There is no such GPU, or the work is done on another machine.
    """
    from vitdeploy import environment
    from vitdeploy.errors import UsageError

    if number is None:
        return
    if on is not None:
        raise UsageError("--gpu chooses among the GPUs of this machine: leave it out with --on")
    environment.select_gpu(number)


def parse_pairs(option: str, pairs: Iterable[str] | None) -> dict[str, Any]:
    """Return name → value of each ``NAME=VALUE``; a value is a number, true, null, a list …, else a text.

    Raises:
        UsageError: There is no ``=``, a name comes twice, or the value is not YAML.
    """
    from vitdeploy.errors import UsageError

    values: dict[str, Any] = {}
    for pair in pairs or ():
        name, found, text = pair.partition("=")
        if not found or not name:
            raise UsageError(f"{option} is {pair!r}, expected NAME=VALUE")
        if name in values:
            raise UsageError(f"{option} names {name!r} twice: give it once")
        values[name] = parse_value(option, text)
    return values


def parse_value(option: str, text: str) -> Any:
    """Return one value.

    Raises:
        UsageError: It is not YAML.
    """
    from vitdeploy.errors import UsageError
    from vitdeploy.reading import parse_yaml

    try:
        return parse_yaml(text)
    except ValueError as error:
        raise UsageError(f"{option} has the value {text!r}, which is not YAML: {error}") from error


def split_lists(texts: Iterable[str] | None) -> tuple[str, ...]:
    """Return the entries of an option that is repeated, takes lists with commas, or both; blanks are dropped."""
    return tuple(entry for text in texts or () for part in text.split(",") if (entry := part.strip()))


def parse_counts(option: str, texts: Iterable[str] | None) -> tuple[int, ...]:
    """Return whole numbers of at least 1, as in ``--batch 1,8 --batch 32``.

    Raises:
        UsageError: An entry is something else, or a list is empty.
    """
    from vitdeploy.errors import UsageError

    texts = list(texts or ())
    entries = split_lists(texts)
    for text in texts:
        if not split_lists([text]):
            raise UsageError(f"{option} is {text!r}, expected numbers such as 1 or 1,8,32")
    for entry in entries:
        if not (entry.isascii() and entry.isdigit() and int(entry) >= 1):
            raise UsageError(f"{option} names {entry!r}, expected a whole number of at least 1, as in 1,8,32")
    return tuple(map(int, entries))


def parse_switches(option: str, texts: Iterable[str] | None) -> tuple[bool, ...]:
    """Return the settings that ``on``, ``off`` or ``on,off`` name.

    Raises:
        UsageError: An entry is something else, or a list is empty.
    """
    from vitdeploy.errors import UsageError

    known = {"on": True, "off": False}
    for text in texts or ():
        entries = split_lists([text])
        if not entries or any(entry not in known for entry in entries):
            raise UsageError(f"{option} is {text!r}, expected on, off or on,off")
    return tuple(known[entry] for entry in split_lists(texts))


def parse_frame(option: str, text: str | None) -> Frame | None:
    """Return the size that ``480x640`` names, as (height, width); ``any`` as it is.

    Raises:
        UsageError: It is neither.
    """
    from vitdeploy.errors import UsageError

    if text is None or text == "any":
        return text  # type: ignore[return-value]
    sides = text.split("x")
    if len(sides) != 2 or not all(side.isascii() and side.isdigit() and int(side) for side in sides):
        raise UsageError(f"{option} is {text!r}, expected height and width, such as 480x640, or 'any'")
    return int(sides[0]), int(sides[1])


def put(values: dict[str, Any], name: str, value: Any) -> None:
    """Set a value by its dotted name in nested dictionaries."""
    *groups, last = name.split(".")
    for group in groups:
        nested = values.get(group)
        values[group] = nested = dict(nested) if isinstance(nested, dict) else {}
        values = nested
    values[last] = value
