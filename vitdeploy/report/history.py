"""Several reports of the same candidates over time: a table, and a page with a line for each row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vitdeploy.artifacts import write_atomically
from vitdeploy.artifacts.report_json import read_report
from vitdeploy.errors import UsageError
from vitdeploy.measure.verdict import timing_of
from vitdeploy.records import Record, Report, Row, printable_record
from vitdeploy.records.report import Device, Interval
from vitdeploy.report.axes import Axis, percent_axis, size_axis
from vitdeploy.report.labels import LABEL_MARGIN, shortened, text_width
from vitdeploy.report.plots import Tick
from vitdeploy.report.timeline import HEIGHT, WIDTH, Line, Timeline, apart
from vitdeploy.text import UNKNOWN, printable
from vitdeploy.wording import ms_text, percent_text

if TYPE_CHECKING:
    from rich.table import Table

RowKey = tuple[str, str, str | None]


class HistoryPoint(Record):
    """A row in one report: its median at the first batch size, end to end, and its top-1; None where not comparable."""

    p50_ms: float | None = None
    p50_ci95: Interval | None = None
    top1: float | None = None


class HistoryRow(Record):
    """A candidate with a point for each report, in their order; None where a report has no such row."""

    name: str
    backend: str
    device: Device | None
    precision: str
    points: tuple[HistoryPoint | None, ...]


class HistoryReport(Record):
    """One of the reports: when it was made, what by, and the file it was read from."""

    created: str
    producer: str
    source: str


class History(Record):
    """Reports, oldest first, and the rows that any of them has.

    Times of another machine than the newest report's, and accuracies on other data, are left out; ``caveats`` say so.
    """

    batch: int
    reports: tuple[HistoryReport, ...]
    rows: tuple[HistoryRow, ...]
    caveats: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<History of {len(self.reports)} reports, {len(self.rows)} rows>"

    __str__ = __repr__


def history(reports: Sequence[Report | Path | str]) -> History:
    """Return what several reports say of the same rows, oldest first whatever order they come in.

    Args:
        reports: Reports, or files or folders of reports; at least two.

    Raises:
        ArtifactError: A file is missing or is no report.
        UsageError: There are fewer than two.
    """
    if len(reports) < 2:
        raise UsageError(f"a history is made of two reports at least, got {len(reports)}")
    opened = [
        (one if isinstance(one, Report) else read_report(one), "" if isinstance(one, Report) else str(one))
        for one in reports
    ]
    opened.sort(key=lambda pair: pair[0].created)
    newest = opened[-1][0]
    batch = newest.conditions.batches[0]
    caveats, columns = [], []
    for report, _ in opened:
        same_machine = _machine(report) == _machine(newest)
        same_data = report.conditions.data_sha256 == newest.conditions.data_sha256
        if not same_machine:
            caveats.append(f"times of {report.created} are left out: another machine ({report.environment.cpu})")
        if not same_data:
            caveats.append(f"accuracies of {report.created} are left out: other data ({report.conditions.data})")
        columns.append({_key(row): _point(row, batch, same_machine, same_data) for row in report.rows})
    rows = {_key(row): row for report, _ in reversed(opened) for row in report.rows}
    return History(
        batch=batch,
        reports=tuple(
            HistoryReport(created=report.created, producer=report.producer, source=source) for report, source in opened
        ),
        rows=tuple(
            HistoryRow(
                name=row.name,
                backend=row.backend,
                device=row.device,
                precision=row.precision,
                points=tuple(column.get(key) for column in columns),
            )
            for key, row in rows.items()
        ),
        caveats=tuple(caveats),
    )


def history_table(found: History) -> Table:
    """Return a row for each candidate and a column for each report: median and top-1."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    found = printable_record(found)
    grid = Table(box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, caption_justify="left")
    grid.add_column(Text(f"p50 ms at batch {found.batch}\ntop-1"), overflow="fold")
    for report in found.reports:
        grid.add_column(Text(when(report.created)), justify="right", no_wrap=True)
    for row in found.rows:
        cells = [Text("\n".join(cell)) for cell in map(cells_of, row.points)]
        grid.add_row(Text(f"{printable(row.name)}\n{row.backend} {row.device or ''}".rstrip()), *cells)
    grid.caption = Text("\n".join(found.caveats), style="not italic not dim yellow")
    return grid


def cells_of(point: HistoryPoint | None) -> tuple[str, str]:
    """Return median and top-1 of a row in one report, a dash where there is none."""
    if point is None:
        return UNKNOWN, UNKNOWN
    return ms_text(point.p50_ms), percent_text(point.top1)


def when(created: str) -> str:
    """Return the time of a report as it is shown: ``2026-11-26 19:22``."""
    return created[:16].replace("T", " ")


def write_history(found: History, path: Path | str) -> Path:
    """Write the page and return its path.

    Raises:
        ArtifactError: The file cannot be written, or the disk is full.
    """
    from vitdeploy.report.html import templates

    found = printable_record(found)
    context = {"found": found, "charts": _charts(found), "cells": cells_of, "when": when}
    write_atomically(Path(path), templates().get_template("history.html.j2").render(context))
    return Path(path)


def _charts(found: History) -> list[Timeline]:
    charts = []
    for device in dict.fromkeys(row.device for row in found.rows if row.device is not None):
        rows = [row for row in found.rows if row.device == device]
        title = {"cpu": "CPU", "cuda": "GPU"}[device]
        charts.append(
            _chart(
                found, rows, f"Median latency on the {title}, batch {found.batch}", "p50, ms", _p50, size_axis, ms_text
            )
        )
    charts.append(_chart(found, found.rows, "Top-1", "top-1, %", _top1, percent_axis, lambda value: f"{value:.2f}"))
    return [chart for chart in charts if chart is not None]


def _p50(point: HistoryPoint) -> float | None:
    return point.p50_ms


def _top1(point: HistoryPoint) -> float | None:
    return None if point.top1 is None else 100 * point.top1


def _chart(
    found: History,
    rows: Sequence[HistoryRow],
    caption: str,
    y_name: str,
    value: Callable[[HistoryPoint], float | None],
    make_axis: Callable[[Sequence[float], float, float], Axis],
    text: Callable[[float], str],
) -> Timeline | None:
    """Return a line for each row that has two values at least; None where none has."""
    courses = {
        row.name: [
            (index, number)
            for index, point in enumerate(row.points)
            if point is not None and (number := value(point)) is not None
        ]
        for row in rows
    }
    drawn = [row for row in rows if len(courses[row.name]) > 1]
    if not drawn:
        return None
    room = min(max(text_width(row.name) for row in drawn) + LABEL_MARGIN, WIDTH * 0.45)
    frame = (64.0, 10.0, WIDTH - room, HEIGHT - 52.0)
    x_axis = Axis(0.0, len(found.reports) - 1, frame[0] + 20, frame[2] - 20)
    y_axis = make_axis([number for row in drawn for _, number in courses[row.name]], frame[3], frame[1])
    lines = []
    for row in drawn:
        course = courses[row.name]
        steps = ", ".join(f"{when(found.reports[index].created)}: {text(number)}" for index, number in course)
        path = "M" + "L".join(f"{x_axis.at(index)} {y_axis.at(number)}" for index, number in course)
        marks = tuple((x_axis.at(index), y_axis.at(number)) for index, number in course)
        label = shortened(row.name, room - LABEL_MARGIN)
        lines.append(Line(path, row.precision, label, y_axis.at(course[-1][1]), f"{row.name}: {steps}", marks))
    every = max(1, -(-len(found.reports) // 8))
    return Timeline(
        caption=caption,
        y_name=y_name,
        x_name="reports, oldest first",
        x_ticks=[
            Tick(x_axis.at(index), report.created[:10])
            for index, report in enumerate(found.reports)
            if index % every == 0
        ],
        y_ticks=[Tick(y_axis.at(number), f"{number:g}") for number in y_axis.ticks(5)],
        lines=apart(lines),
        frame=frame,
    )


def _point(row: Row, batch: int, same_machine: bool, same_data: bool) -> HistoryPoint:
    timing = timing_of(row, batch) if same_machine else None
    return HistoryPoint(
        p50_ms=None if timing is None else timing.p50_ms,
        p50_ci95=None if timing is None else timing.p50_ci95,
        top1=row.top1 if same_data else None,
    )


def _machine(report: Report) -> tuple[str, str | None]:
    return report.environment.cpu, report.environment.gpu


def _key(row: Row) -> RowKey:
    return row.name, row.backend, row.device
