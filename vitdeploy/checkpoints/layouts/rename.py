"""Renaming keys by rules and joining tensors, the common part of every layout."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
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


def joined(state: Mapping[str, NDArray[Any]], parts: tuple[str, ...], whole: str) -> dict[str, NDArray[Any]]:
    """Concatenate, along the first axis, tensors whose keys differ in one part only.

    With parts ``("query", "key", "value")`` and whole ``"qkv"``, ``a.query.weight``, ``a.key.weight`` and
    ``a.value.weight`` become ``a.qkv.weight``. Where one of them is missing, the others stay as they are.
    """
    out = dict(state)
    for key in state:
        names = [key.replace(f".{parts[0]}.", f".{part}.") for part in parts]
        if f".{parts[0]}." in key and all(name in out for name in names):
            out[key.replace(f".{parts[0]}.", f".{whole}.")] = np.concatenate([out.pop(name) for name in names])
    return out
