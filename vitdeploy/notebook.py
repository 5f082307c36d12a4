"""What a notebook shows of a value: a small table of HTML, everything in it escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from vitdeploy.text import printable


def html_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], lines: Sequence[str] = ()) -> str:
    """Return a table with a caption and sentences below it; line feeds in a cell stay."""
    head = "".join(f"<th>{_cell(name)}</th>" for name in header)
    body = "".join(f"<tr>{''.join(f'<td>{_cell(cell)}</td>' for cell in row)}</tr>" for row in rows)
    below = "".join(f"<p>{_cell(line)}</p>" for line in lines)
    top = f"<thead><tr>{head}</tr></thead>" if header else ""
    return f"<table><caption>{_cell(title)}</caption>{top}<tbody>{body}</tbody></table>{below}"


def html_facts(title: str, facts: Mapping[str, str]) -> str:
    """Return a table of names and values; empty values are left out."""
    return html_table(title, (), [(name, value) for name, value in facts.items() if value])


def _cell(text: str) -> str:
    return "<br>".join(escape(printable(line)) for line in text.split("\n"))
