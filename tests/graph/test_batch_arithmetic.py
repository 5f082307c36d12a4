"""Sizes with a multiple of the batch are held against the same sizes with the batch filled in."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable

import pytest

from vitdeploy.graph import batch_arithmetic as arithmetic
from vitdeploy.graph.batch_arithmetic import Element, Multiple

SIZES: list[Element] = [0, 1, 2, 3, 7, -4, Multiple(1), Multiple(2), Multiple(6)]
BATCHES = (1, 2, 3, 5, 64)


def at(element: Element, batch: int) -> Element:
    return element.factor * batch if isinstance(element, Multiple) else element


def broadcast(left: int, right: int) -> int | None:
    return right if left == 1 else left if right in (1, left) else None


@pytest.mark.parametrize(
    ("compute", "right"),
    [
        (arithmetic.add, operator.add),
        (arithmetic.subtract, operator.sub),
        (arithmetic.multiply, operator.mul),
        (arithmetic.divide, lambda left, right: math.trunc(left / right) if right else None),
        (arithmetic.modulo, lambda left, right: left % right if right else None),
        (arithmetic.equal, operator.eq),
        (arithmetic.greater, operator.gt),
        (arithmetic.largest, max),
        (arithmetic.smallest, min),
        (arithmetic.broadcast, broadcast),
    ],
)
def test_what_is_known_is_right_at_every_batch(
    compute: Callable[[Element, Element], Element], right: Callable[..., Element]
) -> None:
    for left, other in itertools.product(SIZES, SIZES):
        found = compute(left, other)
        if not isinstance(left, Multiple) and not isinstance(other, Multiple):
            assert found == right(left, other), (left, other)
        for batch in BATCHES if found is not None else ():
            assert at(found, batch) == right(at(left, batch), at(other, batch)), (left, other, batch)


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [(Multiple(6), 3, Multiple(2)), (Multiple(6), 4, None), (Multiple(6), Multiple(2), 3), (7, 0, None), (-7, 2, -3)],
)
def test_a_multiple_is_divided_without_remainder_only(left: Element, right: Element, expected: Element) -> None:
    assert arithmetic.divide(left, right) == expected


def test_flags_that_the_batch_decides_are_unknown() -> None:
    assert arithmetic.greater(Multiple(2), 1) is True
    assert arithmetic.greater(Multiple(2), 2) is None
    assert arithmetic.greater(2, Multiple(2)) is False
    assert arithmetic.negated(None) is None
    assert arithmetic.choice(None, 3, 3) == 3
    assert arithmetic.choice(None, 3, 4) is None
    assert arithmetic.logical(lambda left, right: left and right)(Multiple(1), True) is True
