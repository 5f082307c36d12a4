"""What commands print on stdout: a record as JSON, or a few plain lines and tables."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from vitdeploy.cli.flags import in_flags
from vitdeploy.text import printable, printable_json, size_text
from vitdeploy.wording import percent_text

if TYPE_CHECKING:
    from vitdeploy.artifacts import Artifact
    from vitdeploy.progress import Progress, Task
    from vitdeploy.records import Check

LOG_WIDTH = 140
_END = re.compile(r"(?: |\x1b\[[0-9;]*m)+$", re.MULTILINE)
"""Blanks at the end of a line, and the codes among them that begin or end a colour."""


def line_width() -> int:
    """Return how many columns a line may take: the terminal's; in a log what ``COLUMNS`` says, else ``LOG_WIDTH``."""
    named = os.environ.get("COLUMNS", "")
    if sys.stdout.isatty() or (named.isdigit() and int(named)):
        return shutil.get_terminal_size().columns
    return LOG_WIDTH


def print_line(text: str = "") -> None:
    """Print one line; what a terminal would act on, in names and labels from outside, is shown as an escape."""
    typer.echo(printable(text))


def print_wrapped(text: str) -> None:
    """Print a sentence, on a terminal in lines of its width that end between words."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else len(text) + 1
    for line in textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False):
        print_line(line)


def print_json(value: Any) -> None:
    """Print a record, a dataclass, or a list or mapping of them as indented JSON; NaN and infinity become null."""
    from pydantic_core import to_jsonable_python

    # the floats of a record keep infinity in the first pass
    plain = to_jsonable_python(to_jsonable_python(value, fallback=_listed), inf_nan_mode="null")
    typer.echo(printable_json(json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False)))


def _listed(value: Any) -> Any:
    """Return an array or a number of NumPy as JSON has it, anything else as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def print_artifact(artifact: Artifact, as_json: bool, summary: Sequence[str] = ()) -> None:
    """Print where an artifact is and what its checks found, or path and manifest as JSON."""
    if as_json:
        print_json({"path": str(artifact.path), "manifest": artifact.manifest})
        return
    for check in one_of_each(artifact.manifest.checks):
        print_wrapped(f"{check.name}: {check_words(check)}")
    for line in summary:
        print_line(line)
    print_line(f"wrote {artifact.path} ({size_text(artifact.path.stat().st_size)})")


def one_of_each(checks: Sequence[Check]) -> list[Check]:
    """Return checks, those of one thing at several batches as one: the worst of them, named after all the batches."""
    groups: dict[tuple[str, str], list[tuple[str, Check]]] = {}
    for check in checks:
        subject, _, batch = check.name.rpartition(", batch ")
        groups.setdefault((subject or check.name, check.status), []).append((batch, check))
    found = []
    for (subject, _), members in groups.items():
        _, worst = max(members, key=lambda one: -1.0 if one[1].value is None else one[1].value)
        batches = [batch for batch, _ in members]
        several = f"{', '.join(batches[:-1])} and {batches[-1]}"
        found.append(worst if len(members) == 1 else worst.model_copy(update={"name": f"{subject}, batch {several}"}))
    return found


def check_words(check: Check) -> str:
    """Return a check as words: ``passed: 44.2 dB (limit 20 dB), against the FP32 graph``."""
    unit = f" {check.unit}" if check.unit else ""
    of_limit = "" if unit.startswith(" of ") else unit  # a share: its words stand right before
    limit = f" (limit {check.limit:.4g}{of_limit})" if check.limit is not None else ""
    number = "" if check.value is None else f"{check.value:.4g}"
    if check.value is not None and check.unit == "of the images":
        number = percent_text(check.value)
    value = f"{number}{unit}{limit}" if number else ""
    detail = ", ".join(filter(None, [value, in_flags(check.detail)]))
    return f"{check.status}: {detail}" if detail else check.status


def make_progress() -> Progress:
    """Return bars on a terminal, else lines; notes are in the words of the command line."""
    from vitdeploy.terminal_progress import make_progress as make

    return _InFlags(make())


class _InFlags:
    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._shown: set[str] = set()

    @contextmanager
    def task(self, description: str, total: float | None = None) -> Iterator[Task]:
        """See ``Progress.task``."""
        with self._progress.task(description, total) as task:
            yield task

    def note(self, text: str) -> None:
        """See ``Progress.note``; several stages of a run have the same to say of their data, which is said once."""
        if text not in self._shown:
            self._shown.add(text)
            self._progress.note(in_flags(text))


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Print left-aligned columns, numbers right-aligned, as plain text.

    On a terminal the last columns are left out where they would wrap; returns their heads.
    """
    header, *rows = ([printable(cell) for cell in row] for row in (header, *rows))
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    right = [all(_numeric(row[column]) for row in rows) for column in range(len(header))]
    shown = len(header)
    if sys.stdout.isatty():
        columns = shutil.get_terminal_size().columns
        while shown > 1 and sum(widths[:shown]) + 2 * (shown - 1) > columns:
            shown -= 1
    for row in [header, *rows]:
        cells = [
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in list(zip(row, widths, right, strict=True))[:shown]
        ]
        typer.echo("  ".join(cells).rstrip())
    return header[shown:]


def _numeric(cell: str) -> bool:
    try:
        float(cell.replace("–", "0").rstrip("%"))
    except ValueError:
        return False
    return True


def print_rich(renderable: Any) -> None:
    """Print a table of rich's without the blanks that end its lines; in a log as wide as it needs to be."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=line_width())
    with console.capture() as capture:
        console.print(renderable)
    typer.echo(without_blanks(capture.get()), nl=False)


def without_blanks(text: str) -> str:
    """Return text without the blanks at the ends of its lines."""
    return _END.sub(lambda found: found[0].replace(" ", ""), text)
