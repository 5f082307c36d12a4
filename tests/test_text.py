"""Text that a terminal does not act on."""

from __future__ import annotations

import re

import pytest

from vitdeploy.text import name_text, one_line, printable, size_text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain – naïve 猫 🐱 ß", "plain – naïve 猫 🐱 ß"),
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x9b2J", r"\x9b2J"),
        ("\x7f\x08\x00", r"\x7f\x08\x00"),
        ("gpj.\u202etxt", r"gpj.\u202etxt"),
        ("a\u2028b", r"a\u2028b"),
        ("caf\udce9.png", r"caf\xe9.png"),
        (r"C:\new\table", r"C:\new\table"),
    ],
)
def test_what_acts_is_escaped_and_what_is_read_stays(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown
    shown.encode()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"caf\xc3\xa9 \xf0\x9f\x90\xb1.png", "café 🐱.png"),
        (rb"C:\new\table.png", r"C:\new\table.png"),
        (b"caf\xe9.png", r"caf\xe9.png"),
        (b"a\\caf\xe9.png", r"a\\caf\xe9.png"),
        (rb"caf\xe9.png", r"caf\\xe9.png"),
        (b"a\nb\x1b[0m\xc2\x85.png", r"a\x0ab\x1b[0m\xc2\x85.png"),
        (b"gpj.\xe2\x80\xaetxt", r"gpj.\xe2\x80\xaetxt"),
    ],
)
def test_the_text_of_a_name_can_be_stored_and_leads_back_to_it(name: bytes, shown: str) -> None:
    text = name_text(name.decode("utf-8", "surrogateescape"))
    assert text == shown
    assert printable(text) == text
    back = text.encode()
    if re.search(rb"\\x[0-9a-f]{2}", back):
        back = re.sub(rb"\\(\\|x([0-9a-f]{2}))", lambda found: bytes([int(found[2], 16)]) if found[2] else b"\\", back)
    assert back == name


@pytest.mark.parametrize(
    ("size", "shown"),
    [(0, "0 B"), (999, "999 B"), (23_600, "23.6 kB"), (999_949, "1.0 MB"), (2e12, "2.0 TB"), (2**62, "4.6 EB")],
)
def test_sizes(size: float, shown: str) -> None:
    assert size_text(size) == shown


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (RuntimeError("device lost\nin turn 3"), "device lost"),
        (RuntimeError("Exception from src/core.cpp:92:\nCheck failed:\n\n  no such operation.\n at main"), None),
        (KeyError(), "KeyError"),
        (RuntimeError("\n\n"), "RuntimeError"),
        ("a warning\x1b[31m  with   blanks:", r"a warning\x1b[31m with blanks"),
        (ValueError("x" * 500), "x" * 399 + "…"),
    ],
)
def test_an_error_is_its_first_line_and_what_a_colon_announces(error: BaseException | str, shown: str | None) -> None:
    assert one_line(error) == (shown or "Exception from src/core.cpp:92: Check failed: no such operation")
