"""What commands print on stdout: a record as JSON, or a few plain lines and tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from vitdeploy.artifacts import Artifact
    from vitdeploy.records import Check

LOG_WIDTH = 140


def print_json(value: Any) -> None:
    """Print a record, a dataclass, or a list or mapping of them as indented JSON; NaN and infinity become null."""
    typer.echo(json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False))


def plain(value: Any) -> Any:
    """Return ``value`` as what JSON knows."""
    if hasattr(value, "model_dump"):
        return plain(value.model_dump(mode="json"))
    if is_dataclass(value) and not isinstance(value, type):
        return plain({key: getattr(value, key) for key in value.__dataclass_fields__})
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, str) or value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, Iterable):
        return [plain(entry) for entry in value]
    return str(value)


def print_artifact(artifact: Artifact, as_json: bool, summary: Sequence[str] = ()) -> None:
    """Print where an artifact is and what its checks found, or path and manifest as JSON."""
    if as_json:
        print_json({"path": str(artifact.path), "manifest": artifact.manifest})
        return
    from vitdeploy.text import size_text

    for check in artifact.manifest.checks:
        typer.echo(f"{check.name}: {check_words(check)}")
    for line in summary:
        typer.echo(line)
    typer.echo(f"wrote {artifact.path} ({size_text(artifact.path.stat().st_size)})")


def check_words(check: Check) -> str:
    """Return a check as words: ``passed: 44.2 dB (limit 20 dB), against the FP32 graph``."""
    unit = f" {check.unit}" if check.unit else ""
    limit = f" (limit {check.limit:.4g}{unit})" if check.limit is not None else ""
    value = f"{check.value:.4g}{unit}{limit}" if check.value is not None else ""
    said = ", ".join(filter(None, [value, check.detail]))
    return f"{check.status}: {said}" if said else check.status


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print left-aligned columns, numbers right-aligned, as plain text."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    right = [all(_numeric(row[column]) for row in rows) for column in range(len(header))]
    for row in [header, *rows]:
        cells = [
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, right, strict=True)
        ]
        typer.echo("  ".join(cells).rstrip())


def _numeric(cell: str) -> bool:
    try:
        float(cell.replace("–", "0").rstrip("%"))
    except ValueError:
        return False
    return True


def print_rich(renderable: Any) -> None:
    """Print a table of rich's; into a log as wide as it needs to be, since a log has no width to fit."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=LOG_WIDTH)
    console.print(renderable)
