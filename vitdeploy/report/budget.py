"""A search for an accuracy budget for people: a table for the terminal, and a page with the front."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from vitdeploy.artifacts.pages import write_page
from vitdeploy.errors import ArtifactError
from vitdeploy.reading import first_problem, read_json
from vitdeploy.records import Front, FrontCandidate, printable_record
from vitdeploy.report.html import templates
from vitdeploy.report.plots import Scatter, Spot, spot_chart
from vitdeploy.report.view import environment_facts, interval_text, points_interval_text
from vitdeploy.text import UNKNOWN
from vitdeploy.wording import decibel_text, ms_text, points_text, ratio_text, speed_text

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult


def read_front(path: Path | str) -> Front:
    """Read the ``front.json`` of a search.

    Raises:
        ArtifactError: It is missing, or is something else.
    """
    try:
        return Front.model_validate(read_json(Path(path), "the front of a search"))
    except ValidationError as error:
        raise ArtifactError(f"{str(path)!r} is not the front of a search: {first_problem(error)}") from error


def write_front_page(path: Path | str) -> Path:
    """Write the page of a ``front.json`` beside it, and return its path.

    Raises:
        ArtifactError: The front cannot be read, or the page cannot be written.
    """
    page = Path(path).with_suffix(".html")
    write_page(page, render_front(read_front(path)), Path(path))
    return page


class FrontTable:
    """A search as rich draws it, the fastest first; 80 columns are enough."""

    def __init__(self, front: Front) -> None:
        self.front = printable_record(front)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield title, rows and verdict."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        front = self.front
        yield Text(f"{front.model} within {front.max_drop_pp:g} pp on {front.images} images", style="bold")
        yield Text(f"timed on {front.runtime}, batch {front.batch}", style="dim")
        grid = Table(box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True)
        grid.add_column("Candidate", overflow="fold")
        for header in ("p50\nms", "Speed-up", "Δ top-1\npp", "worst", "SQNR\ndB", "Certain"):
            grid.add_column(header, justify="right", no_wrap=True)
        for one in front.candidates:
            style = "bold" if one.name == front.chosen else "" if one.on_front else "dim"
            time, speed, _, noise, certain = cells(one, front)
            worst = UNKNOWN if one.delta_ci95_pp is None else points_text(one.delta_ci95_pp[0])
            grid.add_row(one.name, time, speed, points_text(one.delta_top1_pp), worst, noise, certain, style=style)
        yield grid
        for line in front.verdict if front.within_budget else front.verdict[1:]:
            yield Text(line)


def front_table(front: Front) -> FrontTable:
    """Return the candidates of a search as a renderable of rich."""
    return FrontTable(front)


def cells(one: FrontCandidate, front: Front) -> tuple[str, ...]:
    """Return the numbers of a candidate in words."""
    if one.failure:
        return ("failed", UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN)
    certain = "yes" if one.certified or one.precision == "fp32" else "no"
    around = points_interval_text(one.delta_ci95_pp) if one.precision != "fp32" else ""
    return (
        ms_text(one.p50_ms),
        f"{ratio_text(one.speedup)} {interval_text(one.speedup_ci95)}".strip(),
        f"{points_text(one.delta_top1_pp)} {around}".strip(),
        decibel_text(one.logits_sqnr_db, one.logits_identical).removesuffix(" dB"),
        certain if one.images_needed is None else f"at {one.images_needed}",
    )


def render_front(front: Front) -> str:
    """Return the page."""
    front = printable_record(front)
    context = {
        "front": front,
        "scatters": _scatters(front),
        "cells": cells,
        "machine": environment_facts(front.environment),
        "precisions": list(dict.fromkeys(one.precision for one in front.candidates)),
    }
    return templates().get_template("budget.html.j2").render(context)


def _scatters(front: Front) -> list[Scatter]:
    """Return error and top-1 over latency."""
    timed = [one for one in front.candidates if one.p50_ms is not None and one.speedup]
    x_name = f"p50 latency, ms, batch {front.batch}"
    charts = []
    noisy = [_spot(one, one.logits_sqnr_db, None) for one in timed if one.logits_sqnr_db is not None]
    if noisy:
        caption = f"Logits SQNR over latency on {front.runtime}"
        charts.append(spot_chart(caption, x_name, "logits SQNR, dB", noisy))
    judged = [
        _spot(one, one.delta_top1_pp, one.delta_ci95_pp if one.precision != "fp32" else None)
        for one in timed
        if one.delta_top1_pp is not None
    ]
    if judged:
        caption = f"Change of top-1 over latency on {front.runtime}, with 95 % intervals"
        charts.append(spot_chart(caption, x_name, "Δ top-1, pp", judged))
    return charts


def _spot(one: FrontCandidate, height: float, interval: tuple[float, float] | None) -> Spot:
    speed, ms = one.speedup or 1.0, one.p50_ms or 0.0
    slower = one.speedup_ci95[0] if one.speedup_ci95 is not None else speed
    low, high = interval or (height, height)
    title = f"{speed_text(speed, one.speedup_ci95, 'FP32')}, {height:.2f}"
    return Spot(ms, ms * speed / slower, height, low, high, one.name, title, one.precision)
