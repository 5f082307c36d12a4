"""Arithmetic on sizes of which some are unknown and some are multiples of the batch, as ONNX's operators compute."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Multiple:
    """``factor`` times the batch, which is at least 1."""

    factor: int

    def text(self, symbol: str) -> str:
        """Return the dimension as ONNX writes it."""
        return symbol if self.factor == 1 else f"{self.factor}*{symbol}"


Number = int | float | bool
Element = Number | Multiple | None
"""One element of a shape tensor; None where it is unknown."""


def broadcast(left: Element, right: Element) -> Element:
    """Return the size that two sizes broadcast to; None where that depends on the batch."""
    if left == 1:
        return right
    return left if right == 1 or left == right else None


def multiply(left: Element, right: Element) -> Element:
    """Return the product; None where it is unknown, or no whole multiple of the batch."""
    if _is_zero(left) or _is_zero(right):
        return 0
    if left is None or right is None or (isinstance(left, Multiple) and isinstance(right, Multiple)):
        return None
    if isinstance(left, Multiple) or isinstance(right, Multiple):
        multiple, other = (left, right) if isinstance(left, Multiple) else (right, left)
        assert isinstance(multiple, Multiple)
        assert not isinstance(other, Multiple)
        return _multiple(Fraction(multiple.factor) * Fraction(other))
    return left * right


def divide(left: Element, right: Element) -> Element:
    """Divide as ONNX does, integers towards zero; a multiple of the batch only without remainder."""
    if left is None or right is None or _is_zero(right):
        return None
    if isinstance(left, Multiple) and isinstance(right, Multiple):
        return left.factor // right.factor if left.factor % right.factor == 0 else None
    if isinstance(left, Multiple):
        return _multiple(Fraction(left.factor) / Fraction(right))  # type: ignore[arg-type]
    if isinstance(right, Multiple):
        return None
    if isinstance(left, float) or isinstance(right, float):
        return left / right
    return math.trunc(Fraction(left, right))


def _multiple(factor: Fraction) -> Multiple | None:
    return Multiple(int(factor)) if factor.denominator == 1 and factor > 0 else None


def add(left: Element, right: Element) -> Element:
    """Return the sum; None where it is neither a number nor a multiple of the batch."""
    if _is_zero(left):
        return right
    if _is_zero(right):
        return left
    if isinstance(left, Multiple) and isinstance(right, Multiple):
        return Multiple(left.factor + right.factor)
    if left is None or right is None or isinstance(left, Multiple) or isinstance(right, Multiple):
        return None
    return left + right


def subtract(left: Element, right: Element) -> Element:
    """Return the difference; None where it is neither a number nor a multiple of the batch."""
    if _is_zero(right):
        return left
    if isinstance(left, Multiple) and isinstance(right, Multiple):
        if left == right:
            return 0
        return _multiple(Fraction(left.factor - right.factor))
    if left is None or right is None or isinstance(left, Multiple) or isinstance(right, Multiple):
        return None
    return left - right


def modulo(left: Element, right: Element) -> Element:
    """Return the remainder; of a multiple of the batch where its factor alone divides."""
    if isinstance(left, Multiple) and isinstance(right, int) and right and left.factor % right == 0:
        return 0
    if isinstance(left, int) and isinstance(right, int) and right:
        return left % right  # of the divisor's sign, as Mod is without fmod
    return None


def equal(left: Element, right: Element) -> Element:
    """Return whether two elements are equal at every batch size; None where that depends on it."""
    if isinstance(left, Multiple) or isinstance(right, Multiple):
        if left == right:
            return True
        multiple, other = (left, right) if isinstance(left, Multiple) else (right, left)
        assert isinstance(multiple, Multiple)
        return False if isinstance(other, (int, float)) and other < multiple.factor else None
    return None if left is None or right is None else left == right


def greater(left: Element, right: Element) -> Element:
    """Return whether one element is greater at every batch size; None where that depends on it."""
    if isinstance(left, Multiple) and isinstance(right, (int, float)):
        return True if right < left.factor else None
    if isinstance(right, Multiple) and isinstance(left, (int, float)):
        return False if left <= right.factor else None
    if left is None or right is None or isinstance(left, Multiple) or isinstance(right, Multiple):
        return None
    return left > right


def negated(element: Element) -> Element:
    """Return the opposite of a flag."""
    return None if element is None else not element


def choice(condition: Element, if_true: Element, if_false: Element) -> Element:
    """Return one of two elements by a flag; None where the flag is unknown and they differ."""
    if condition is None:
        return if_true if if_true == if_false else None
    return if_true if condition else if_false


def largest(*elements: Element) -> Element:
    """Return the element that is the largest at every batch size, else None."""
    numbers = [element for element in elements if isinstance(element, (int, float))]
    if len(numbers) == len(elements):
        return max(numbers)
    multiples = {element for element in elements if isinstance(element, Multiple)}
    certain = len(multiples) == 1 and len(numbers) + 1 == len(elements)
    only = next(iter(multiples), None)
    return only if certain and only is not None and all(number <= only.factor for number in numbers) else None


def smallest(*elements: Element) -> Element:
    """Return the element that is the smallest at every batch size, else None."""
    numbers = [element for element in elements if isinstance(element, (int, float))]
    if len(numbers) == len(elements):
        return min(numbers)
    multiples = [element.factor for element in elements if isinstance(element, Multiple)]
    certain = bool(numbers) and len(numbers) + len(multiples) == len(elements)
    return min(numbers) if certain and min(numbers) <= min(multiples) else None


def on_numbers(compute: Callable[[Number], Number]) -> Callable[[Element], Element]:
    """Return a function of one number that leaves multiples of the batch, which are integers, alone."""

    def apply(element: Element) -> Element:
        return element if element is None or isinstance(element, Multiple) else compute(element)

    return apply


def minus(element: Element) -> Element:
    """Return a number with the other sign; None for what is no number."""
    return None if element is None or isinstance(element, Multiple) else -element


def logical(compute: Callable[[bool, bool], bool]) -> Callable[[Element, Element], Element]:
    """Return a function of two flags that gives None where one is unknown; a multiple of the batch is true."""

    def apply(left: Element, right: Element) -> Element:
        return None if left is None or right is None else compute(bool(left), bool(right))

    return apply


def _is_zero(element: Element) -> bool:
    return isinstance(element, (int, float)) and element == 0
