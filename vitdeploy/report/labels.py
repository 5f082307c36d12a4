"""Labels in drawings, where text cannot be measured: how wide a name gets, and what of it fits."""

from __future__ import annotations

import unicodedata

EM = 12.5
"""Size of the text of a chart, pixels."""
LABEL_MARGIN = 20
"""Beside a label at the end of a line, pixels."""
NARROW, WIDE = frozenset("ijlIft.,:;'|!()[]/- "), frozenset("mwMW@%…")


def text_width(text: str) -> float:
    """Return about how many pixels a text takes, in the widest of the fonts that a page may get (DejaVu Sans)."""
    return sum(_em(letter) for letter in text) * EM


def shortened(name: str, width: float) -> str:
    """Return a name cut in its middle to what fits ``width`` pixels: both ends tell files apart."""
    if text_width(name) <= width:
        return name
    for letters in range(len(name) - 1, 2, -1):
        head = (letters - 1) // 2
        cut = f"{name[:head]}…{name[len(name) - (letters - 1 - head) :]}"
        if text_width(cut) <= width:
            return cut
    return "…"


def _em(letter: str) -> float:
    if letter in NARROW:
        return 0.4
    if letter in WIDE or unicodedata.east_asian_width(letter) in "WF":
        return 1.0
    return 0.75 if letter.isupper() else 0.64
