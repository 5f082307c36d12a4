"""Values that a test knows to be there, where a type allows None."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")


def present(value: T | None) -> T:
    """Return the value; a test in which it is None fails here."""
    assert value is not None, "expected a value, got None"
    return value
