"""Checks of constructor arguments that several families share: each refuses with one line that names the values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from torch import Tensor

from vitdeploy.errors import ModelError


def check_types(constructor: type, arguments: Mapping[str, Any]) -> None:
    """Refuse the first argument whose value is not of the type that the constructor's annotation names.

    Raises:
        ModelError: The message names the argument, its value and what was expected.
    """
    hints = get_type_hints(constructor.__init__)  # type: ignore[misc]
    for name, value in arguments.items():
        hint = hints.get(name, Any)  # a family of another package may leave annotations out
        if not _is_a(value, hint):
            raise ModelError(f"{name} is {value!r}, expected {_in_words(hint)}")


def _is_a(value: Any, hint: Any) -> bool:
    origin, options = get_origin(hint), get_args(hint)
    if origin in {Union, UnionType}:
        return any(_is_a(value, option) for option in options)
    if origin is Literal:
        return value in options
    if origin in {Sequence, list, tuple}:
        return isinstance(value, (list, tuple)) and all(_is_a(entry, options[0]) for entry in value)
    if hint is Any or not isinstance(hint, type):
        return True
    if hint in {int, float}:
        allowed = int if hint is int else (int, float)
        return isinstance(value, allowed) and not isinstance(value, bool)
    return isinstance(value, hint)


def _in_words(hint: Any) -> str:
    origin, options = get_origin(hint), get_args(hint)
    if origin in {Union, UnionType}:
        return " or ".join(_in_words(option) for option in options)
    if origin is Literal:
        return f"one of {', '.join(map(str, options))}"
    if origin in {Sequence, list, tuple}:
        return f"a list, each entry {_in_words(options[0])}"
    return {int: "a whole number", float: "a number", bool: "true or false", NoneType: "null"}.get(hint, "a text")


def pair(image_size: int | Sequence[int]) -> tuple[int, int]:
    """Return (height, width).

    Raises:
        ModelError: It is neither one number nor two.
    """
    sizes: list[Any] = list(image_size) if isinstance(image_size, (list, tuple)) else [image_size, image_size]
    if len(sizes) != 2 or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ModelError(f"image_size is {image_size!r}, expected a positive number of pixels or [height, width]")
    return sizes[0], sizes[1]


def patch_grid(image_size: tuple[int, int], patch: int) -> tuple[int, int]:
    """Return how many patches there are downwards and across.

    Raises:
        ModelError: The image does not divide into whole patches.
    """
    check_positive(patch=patch)
    height, width = image_size
    if height % patch or width % patch:
        raise ModelError(f"image_size {height}×{width} does not divide by patch {patch}: change one of them")
    return height // patch, width // patch


def check_positive(**values: float) -> None:
    """Refuse the first of the named arguments that is not above 0.

    Raises:
        ModelError: The message names the argument.
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            raise ModelError(f"{name} is {value!r}, expected a number above 0")


def check_classes(num_classes: int) -> None:
    """Refuse a number of classes that is none; 0 is a model without a head.

    Raises:
        ModelError: It is negative or no integer.
    """
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 0:
        raise ModelError(
            f"num_classes is {num_classes!r}, expected a number above 0, or 0 for features in place of logits"
        )


def check_one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    """Refuse a word that is not among those allowed.

    Raises:
        ModelError: The message lists them.
    """
    if value not in allowed:
        raise ModelError(f"{name} is {value!r}, expected one of {', '.join(allowed)}")


def check_heads(width: int, heads: int, head_width: int | None) -> None:
    """Refuse a width that the heads cannot share, unless the head's width is given.

    Raises:
        ModelError: The message names width and heads.
    """
    if head_width is not None:
        check_positive(head_width=head_width)
    elif width % heads:
        raise ModelError(f"width {width} does not divide by {heads} heads: change one of them, or give head_width")


def check_rate(name: str, rate: float) -> None:
    """Refuse a probability outside 0…1 (1 itself would drop everything).

    Raises:
        ModelError: The message names the argument.
    """
    if not 0 <= rate < 1:
        raise ModelError(f"{name} is {rate!r}, expected at least 0 and below 1")


def check_input(x: Tensor, image_size: tuple[int, int]) -> None:
    """Refuse images of another size than the model was built for; positions are fixed at construction.

    Raises:
        ModelError: The message names both sizes.
    """
    if tuple(x.shape[2:]) != image_size:
        raise ModelError(
            f"the model takes images of {image_size[0]}×{image_size[1]}, got {'×'.join(map(str, x.shape[2:]))}: "
            f"build it with image_size={list(x.shape[2:])}"
        )
