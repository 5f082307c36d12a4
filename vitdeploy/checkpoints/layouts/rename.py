"""Renaming keys by rules, the common part of every layout."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

Rules = tuple[tuple[str, str], ...]


def renamed(state: Mapping[str, NDArray[Any]], rules: Rules) -> dict[str, NDArray[Any]]:
    """Return ``state`` with each key rewritten by the first rule that matches it; others keep their name."""
    return {rename(key, rules): value for key, value in state.items()}


def rename(key: str, rules: Rules) -> str:
    """Return ``key`` rewritten by the first rule whose pattern matches, else as it is."""
    for pattern, replacement in rules:
        new, count = re.subn(pattern, replacement, key, count=1)
        if count:
            return new
    return key
