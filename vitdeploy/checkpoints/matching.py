"""Every tensor of a checkpoint has its place in the model and every place its tensor, or the load is refused."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from vitdeploy.errors import CheckpointError

Shape = tuple[int, ...]
SHOWN = 4


def check_match(found: Mapping[str, Shape], expected: Mapping[str, Shape], where: str, hint: str = "") -> None:
    """Compare names and shapes.

    Args:
        found: Tensor name → shape in the checkpoint.
        expected: Tensor name → shape in the model.
        where: What the error calls the checkpoint.
        hint: What else may take such tensors.
    Raises:
        CheckpointError: One line with the first of the wrong shapes, gaps (with the nearest leftover) and leftovers,
            and how many there are of each.
    """
    wrong = [
        f"{name} is {_text(found[name])}, the model's is {_text(expected[name])}"
        for name in expected
        if name in found and tuple(found[name]) != tuple(expected[name])
    ]
    leftovers = [name for name in found if name not in expected]
    gaps = [name for name in expected if name not in found]
    if not (wrong or leftovers or gaps):
        return
    parts = []
    if wrong:
        parts.append(f"{len(wrong)} of another shape ({_first(wrong)})")
    if gaps:
        parts.append(f"{len(gaps)} missing ({_first([_with_nearest(name, leftovers) for name in gaps])})")
    if leftovers:
        parts.append(f"{len(leftovers)} left over ({_first(leftovers)})")
    raise CheckpointError(f"{where} does not fit the model: {'; '.join(parts)}" + (f"; {hint}" if hint else ""))


def check_numbers(found: Mapping[str, Any], floating: Collection[str], where: str) -> None:
    """Refuse integers and complex numbers in place of weights.

    Args:
        found: Tensor name → array in the checkpoint.
        floating: Names of the model's tensors that are floating-point.
        where: What the error calls the checkpoint.
    Raises:
        CheckpointError: There are such; the line names the first of them and their type.
    """
    others = [name for name in found if name in floating and found[name].dtype.kind != "f"]
    if others:
        raise CheckpointError(
            f"{where} has {found[others[0]].dtype} numbers in {len(others)} of its weights ({_first(others)}): "
            "quantized ones are not read; in the code that made it, save them as plain numbers, with "
            "value.dequantize() or value.float() for each"
        )


def is_of_classes(before: Shape, after: Shape, classes: tuple[int, int]) -> bool:
    """Return whether two shapes differ only where one has the first number of classes and the other the second."""
    differing = [pair for pair in zip(before, after, strict=False) if pair[0] != pair[1]]
    return len(before) == len(after) and bool(differing) and all(pair == classes for pair in differing)


def _first(items: Sequence[str]) -> str:
    return ", ".join(items[:SHOWN]) + (", …" if len(items) > SHOWN else "")


def _with_nearest(name: str, leftovers: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, leftovers, n=1, cutoff=0.75)
    return f"{name}, nearest {near[0]}" if near else name


def _text(shape: Shape) -> str:
    return "×".join(map(str, shape)) or "a scalar"
