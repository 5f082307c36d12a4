"""The report as a table in the terminal, readable at 100 columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitdeploy.measure.verdict import timing_of
from vitdeploy.records import Report, Row, printable_record
from vitdeploy.report.view import STATUSES, interval_text, points_interval_text, remarks, runtime_text, timed_batches
from vitdeploy.text import UNKNOWN, size_text
from vitdeploy.wording import (
    decibel_text,
    ms_text,
    points_text,
    ratio_text,
)

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

STATUS_STYLES = {"built": "yellow", "skipped": "yellow", "failed": "red"}


def table(report: Report) -> Table:
    """Return one row per candidate; intervals are 95 %, latency is the median end to end."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    report = printable_record(report)
    batches = timed_batches(report)
    grid = Table(
        title=Text(f"{report.model} on {report.conditions.data} ({report.conditions.n_samples} images)"),
        caption=_caption(report),
        caption_justify="left",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
        collapse_padding=True,
    )
    grid.add_column("Artifact", overflow="fold", min_width=14)
    grid.add_column("Top-1 %\nΔ pp", justify="right", no_wrap=True)
    grid.add_column("SQNR\ndB", justify="right", no_wrap=True)
    if len(batches) > 1:
        grid.add_column("Batch", justify="right", no_wrap=True)
    grid.add_column("p50 ms", justify="right", no_wrap=True)
    grid.add_column("Speed-up", justify="right", no_wrap=True)
    grid.add_column("Size\npeak", justify="right", no_wrap=True)
    for row in report.rows:
        cells = [
            _name(row),
            _accuracy(row, report),
            Text(decibel_text(row.logits_sqnr_db, row.logits_identical).removesuffix(" dB")),
        ]
        if len(batches) > 1:
            cells.append(Text("\n".join(map(str, batches)) if row.timings else ""))
        cells.extend((*_latency(row, report, batches), _size(row)))
        grid.add_row(*cells)
    return grid


def _name(row: Row) -> Text:
    from rich.text import Text

    text = Text(row.name, style="bold")
    return text.append(f"\n{runtime_text(row).replace(' · ', ' ')}, {row.precision}", style="not bold dim")


def _accuracy(row: Row, report: Report) -> Text:
    from rich.text import Text

    if row.status != "ok":
        return Text(STATUSES[row.status], style=STATUS_STYLES[row.status])
    text = Text(UNKNOWN if row.top1 is None else f"{100 * row.top1:.2f}")
    if row.top1_ci95 is not None:
        text.append(f" {interval_text(row.top1_ci95, 100, 1)}", style="dim")
    if row.name == report.baseline.row:
        return text.append("\nbaseline", style="dim")
    if row.delta_top1_pp is not None:
        text.append(f"\n{points_text(row.delta_top1_pp)}")
        text.append(f" {points_interval_text(row.delta_ci95_pp)}", style="dim")
    elif row.agreement is not None:
        text.append(f"\n{100 * row.agreement:.1f} % agree", style="dim")
    return text


def _latency(row: Row, report: Report, batches: tuple[int, ...]) -> tuple[Text, Text]:
    from rich.text import Text

    times, ratios = Text(), Text()
    for index, batch in enumerate(batches if row.timings else ()):
        timing = timing_of(row, batch)
        end = "\n" if index else ""
        times.append(end + (ms_text(timing.p50_ms) if timing is not None else UNKNOWN))
        ratios.append(end)
        if timing is None or timing.speedup is None:
            ratios.append("baseline" if row.name in report.baseline.latency_rows.values() else UNKNOWN, style="dim")
            continue
        ratios.append(ratio_text(timing.speedup))
        if timing.speedup_ci95 is not None:
            ratios.append(f" {interval_text(timing.speedup_ci95)}", style="dim")
    return times, ratios


def _size(row: Row) -> Text:
    from rich.text import Text

    text = Text(size_text(row.size_bytes))
    if row.peak_memory_bytes is not None:
        text.append(f"\n{size_text(row.peak_memory_bytes)}", style="dim")
    return text


def _caption(report: Report) -> Text:
    from rich.text import Text

    machine = report.environment
    text = Text(style="not italic not dim")
    place = f"{machine.cpu}, {machine.cores} cores; {machine.gpu or 'no GPU'}"
    text.append(f"95 % intervals in brackets · against {report.baseline.accuracy_against} · {place}", style="dim")
    for name, remark in remarks(report.rows):
        text.append(f"\n{name}: ", style="bold")
        text.append(remark)
    return text
