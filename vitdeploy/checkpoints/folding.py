"""Weights that torch stores in factors: pruned ones, and the parametrizations of weight and spectral norm."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Leaf(Protocol):
    """A tensor that is read when it is asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes."""

    def array(self) -> Array:
        """Return its values."""


@dataclass(frozen=True, eq=False)
class Product:
    """A weight that is computed from its factors when it is asked for."""

    factors: tuple[Leaf, ...]
    compute: Callable[..., Array]
    shape: tuple[int, ...]

    def array(self) -> Array:
        """Return its values."""
        return np.asarray(self.compute(*(np.asarray(leaf.array(), np.float32) for leaf in self.factors)))


def folded(leaves: Mapping[str, Leaf]) -> dict[str, tuple[Leaf, tuple[str, ...]]]:
    """Return name → weight and the names of its factors, for each weight that stands in factors.

    ``torch.nn.utils.prune``: the original times a mask. Weight norm (Salimans and Kingma 2016, arXiv:1602.07868,
    equation 2), of each row: g v / ‖v‖. Spectral norm (Miyato et al. 2018, arXiv:1802.05957, algorithm 1): W / uᵀWv.
    """
    found: dict[str, tuple[Leaf, tuple[str, ...]]] = {}
    for weight, names, compute in _factors(leaves):
        if weight not in leaves and all(name in leaves for name in names):
            factors = tuple(leaves[name] for name in names)
            found[weight] = (Product(factors, compute, tuple(factors[0].shape)), names)
    return found


def _factors(leaves: Mapping[str, Leaf]) -> Iterator[tuple[str, tuple[str, ...], Callable[..., Array]]]:
    for name in leaves:
        if pruned := re.fullmatch(r"(.*\w)_orig", name):
            yield pruned[1], (name, f"{pruned[1]}_mask"), _masked
        elif norm := re.fullmatch(r"(.*\w)_v", name):
            yield norm[1], (name, f"{norm[1]}_g"), _weight_norm
        elif norm := re.fullmatch(r"(.*\.)?parametrizations\.(\w+)\.original1", name):
            yield f"{norm[1] or ''}{norm[2]}", (name, f"{name[:-1]}0"), _weight_norm
        elif norm := re.fullmatch(r"((.*\.)?parametrizations\.(\w+))\.original", name):
            names = (name, f"{norm[1]}.0._u", f"{norm[1]}.0._v")
            yield f"{norm[2] or ''}{norm[3]}", names, _spectral_norm


def _masked(weight: Array, mask: Array) -> Array:
    return np.asarray(weight * mask)


def _weight_norm(direction: Array, size: Array) -> Array:
    rest = tuple(axis for axis in range(direction.ndim) if size.shape[axis] == 1)
    return np.asarray(size * direction / np.sqrt((direction.astype(np.float64) ** 2).sum(rest, keepdims=True)))


def _spectral_norm(weight: Array, left: Array, right: Array) -> Array:
    return np.asarray(weight / (left @ weight.reshape(len(left), -1) @ right))
