"""Text for people: errors in one line, sizes in words, and nothing that a terminal would carry out."""

from __future__ import annotations

import os
import re

UNKNOWN = "–"
_UNITS = (("EB", 1e18), ("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
_ACTIVE = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # control characters, C0 and C1: a terminal moves, colours, or answers
    "\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks that turn the direction of writing
    "\u2028\u2029"  # ends of lines
    "\ud800-\udfff]"  # halves of characters: bytes of a file's name that are no UTF-8
)

_LIKE_AN_ESCAPE = re.compile(r"\\x[0-9a-f]{2}")


def printable(text: str) -> str:
    r"""Return text in one line, each character that a terminal or a log would act on as an escape (``\x1b``, ``\n``).

    Letters of every script stay as they are; a backslash does too, so that names on Windows are readable.
    """
    return _ACTIVE.sub(lambda found: _escape(found.group()), text)


def name_text(path: str | os.PathLike[str]) -> str:
    r"""Return a file's name or path as text that can be printed and stored, another for every other name.

    A byte that is no UTF-8, or belongs to what a terminal would act on, is ``\xHH``. Names in which that stands, or
    which look like it by themselves, have each of their backslashes twice; all others stay as they are.
    """
    text = os.fspath(path)
    if not (_ACTIVE.search(text) or _LIKE_AN_ESCAPE.search(text)):
        return text
    return _ACTIVE.sub(lambda found: _escaped_bytes(found.group()), text.replace("\\", r"\\"))


def is_text(name: str) -> bool:
    """Return whether a file's name can be stored as text; one with bytes that are no UTF-8 cannot."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def one_line(error: BaseException | str, limit: int = 400) -> str:
    """Return a library's error or warning on one line: its first, and after each that ends in a colon the next.

    What follows are source lines or a call stack. An error without text is named by its class.
    """
    kept: list[str] = []
    for line in filter(None, (line.strip() for line in str(error).splitlines())):
        kept.append(line)
        if not line.endswith(":"):
            break
    text = " ".join(" ".join(map(printable, kept)).split()).rstrip(".: ")
    text = text or (type(error).__name__ if isinstance(error, BaseException) else error)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def printable_json(text: str) -> str:
    r"""Return JSON with escapes (``\u001b``) for what a terminal would act on; its value is the same."""
    return _ACTIVE.sub(lambda found: found.group() if found.group() in "\n\t" else f"\\u{ord(found.group()):04x}", text)


def size_text(size: float | None) -> str:
    """Return a size in decimal units: ``512 B``, ``1.4 MB``, ``120 GB``; a dash where it is not known."""
    if size is None:
        return UNKNOWN
    for unit, factor in _UNITS:
        if size >= 0.9995 * factor:
            scaled = size / factor
            return f"{scaled:.{1 if scaled < 99.95 else 0}f} {unit}"
    return f"{size:.0f} B"


def _escaped_bytes(character: str) -> str:
    code = ord(character)
    data = bytes([code - 0xDC00]) if 0xDC80 <= code <= 0xDCFF else character.encode("utf-8", "surrogatepass")
    return "".join(f"\\x{byte:02x}" for byte in data)


def _escape(character: str) -> str:
    known = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}.get(character)
    if known is not None:
        return known
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # surrogateescape: the byte of a name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
