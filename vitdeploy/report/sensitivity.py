"""A sensitivity analysis for people: a table for the terminal, and a page that asks nothing of any other file."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vitdeploy.artifacts.pages import write_with_pages
from vitdeploy.errors import UsageError
from vitdeploy.records import Effect, PartSensitivity, Sensitivity, printable_record
from vitdeploy.report.html import templates
from vitdeploy.report.plots import BarItem, Bars, bar_chart
from vitdeploy.report.view import environment_facts
from vitdeploy.text import UNKNOWN, printable_json
from vitdeploy.wording import MINUS, decibel_text, percent_text, points_text

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table

LISTED, LISTED_OTHERS = 20, 5
"""Rows of the terminal: groups that are quantized, and groups that are not."""
DRAWN = 32
"""Bars of a chart."""
LEAST_WIDTH = 100
NOT_QUANTIZED = "left in high precision"


def write_sensitivity(found: Sensitivity, path: Path | str) -> Path:
    """Write ``NAME.json`` and beside it ``NAME.html``; return the path of the page.

    The JSON has a ``plan``, so that it can be edited and handed to ``quantize`` as one.

    Raises:
        UsageError: ``path`` does not end in ``.json``.
        ArtifactError: The files cannot be written.
    """
    path = json_path(path)
    page = path.with_suffix(".html")
    text = json.dumps(found.model_dump(mode="json"), indent=2, ensure_ascii=False, allow_nan=False)
    write_with_pages(path, printable_json(text) + "\n", [(page, render_sensitivity(found))])
    return page


def json_path(path: Path | str) -> Path:
    """Return the path as it is.

    Raises:
        UsageError: It does not end in ``.json``.
    """
    path = Path(path)
    if path.suffix != ".json":
        raise UsageError(f"output is {str(path)!r}, expected NAME.json: the page NAME.html is written beside it")
    return path


class SensitivityTable:
    """An analysis as rich draws it: one line per group, the worst first, then the kinds; 80 columns are enough."""

    def __init__(self, found: Sensitivity) -> None:
        self.found = printable_record(found)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield title, both tables, and what they say in words."""
        from rich.text import Text

        found = self.found
        yield Text(f"{found.model}: {found.precision} for {found.target} on {found.images} images", style="bold")
        for title, parts in (("Group", found.groups), ("Kind", found.kinds)):
            if parts:
                yield self._grid(title, parts, options.max_width)
        for line in summary(found):
            yield Text(line)

    def _grid(self, title: str, parts: Sequence[PartSensitivity], width: int) -> Table:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        grid = Table(box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True)
        grid.add_column(title, overflow="fold")
        for header in ("Alone\ndB", "Share\n%", "KL\nnats", "Agree\n%", "Top-1\nΔ pp", "Left out\ndB"):
            grid.add_column(header, justify="right", no_wrap=True)
        for quantized, most in ((True, LISTED), (False, LISTED_OTHERS)):
            chosen = [part for part in parts if part.quantized == quantized]
            for part in chosen[:most]:
                name = Text(part.name, style="" if quantized else "dim")
                if title == "Group" and width >= LEAST_WIDTH:
                    name.append(f"  {part.kind}", style="dim")
                grid.add_row(name, *_numbers(part))
            if len(chosen) > most:
                grid.add_row(Text(f"and {len(chosen) - most} more", style="dim"))
            if quantized and 0 < len(chosen) < len(parts):
                grid.add_section()
                grid.add_row(Text(NOT_QUANTIZED, style="dim italic"))
        return grid


def sensitivity_table(found: Sensitivity) -> SensitivityTable:
    """Return the analysis as a renderable of rich."""
    return SensitivityTable(found)


def summary(found: Sensitivity) -> list[str]:
    """Return what an analysis says, in words."""
    lines = [f"all of the plan: {_words(found.all)}"]
    worst = [part for part in found.groups or found.kinds if part.quantized]
    if worst and worst[0].share is not None:
        first = worst[0]
        db = first.gain_db
        gain = "" if db is None else f"; left out, the logits {'gain' if db >= 0 else 'lose'} {abs(db):.1f} dB"
        lines.append(f"most of the error: {first.name}, {percent_text(first.share, 0)} of the sum of all{gain}")
    broken = [part for part in (*found.groups, *found.kinds) if part.alone.failure]
    lines.extend(f"{part.name} alone: {part.alone.failure}" for part in broken)
    return lines


def render_sensitivity(found: Sensitivity) -> str:
    """Return the page."""
    found = printable_record(found)
    parts = found.groups or found.kinds
    context = {
        "found": found,
        "charts": list(_charts(found)),
        "summary": summary(found),
        "numbers": _numbers,
        "tables": [("Groups", found.groups), ("Kinds", found.kinds)],
        "parts": parts,
        "machine": environment_facts(found.environment),
        "not_quantized": NOT_QUANTIZED,
    }
    return templates().get_template("sensitivity.html.j2").render(context)


def _charts(found: Sensitivity) -> list[Bars]:
    charts = []
    for name, parts in (("group", found.groups), ("kind", found.kinds)):
        shares = [part for part in parts if part.share is not None][:DRAWN]
        if shares:
            items = [_item(part, 100 * (part.share or 0.0), percent_text(part.share, 1), found) for part in shares]
            charts.append(bar_chart(f"Share of the error, each {name} alone", items, lambda value: f"{value:g} %"))
        gains = [part for part in parts if part.gain_db is not None][:DRAWN]
        if gains:
            items = [_item(part, part.gain_db or 0.0, f"{_gain(part)} dB", found) for part in gains]
            charts.append(bar_chart(f"What the logits gain without each {name}", items, lambda value: f"{value:g} dB"))
    return charts


def _item(part: PartSensitivity, value: float, text: str, found: Sensitivity) -> BarItem:
    return BarItem(part.name, value, text, f"{part.name}, {part.kind}: {text}", found.precision)


def _numbers(part: PartSensitivity) -> tuple[str, ...]:
    alone = part.alone
    if alone.failure:
        return ("failed", UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, _gain(part))
    return (
        decibel_text(alone.logits_sqnr_db, alone.logits_identical).removesuffix(" dB"),
        UNKNOWN if part.share is None else f"{100 * part.share:.1f}",
        UNKNOWN if alone.kl is None else f"{alone.kl:.1e}",
        UNKNOWN if alone.agreement is None else f"{100 * alone.agreement:.1f}",
        points_text(alone.delta_top1_pp),
        _gain(part),
    )


def _gain(part: PartSensitivity) -> str:
    if part.gain_db is None or not math.isfinite(part.gain_db):
        return UNKNOWN
    text = f"{part.gain_db:+.1f}".replace("-", MINUS)
    return "0.0" if text[1:] == "0.0" else text


def _words(effect: Effect) -> str:
    if effect.failure:
        return effect.failure
    words = [f"logits SQNR {decibel_text(effect.logits_sqnr_db, effect.logits_identical)}"]
    if effect.agreement is not None:
        words.append(f"first class the same for {percent_text(effect.agreement, 1)}")
    if effect.delta_top1_pp is not None:
        words.append(f"top-1 {points_text(effect.delta_top1_pp)} pp")
    return ", ".join(words)
