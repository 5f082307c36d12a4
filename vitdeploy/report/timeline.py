"""Latency over time of rows that ran without a pause, as coordinates of one line each."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vitdeploy.records import Report, Row
from vitdeploy.records.report import Device, Sustained
from vitdeploy.report.axes import Axis, size_axis
from vitdeploy.report.labels import LABEL_MARGIN, shortened, text_width
from vitdeploy.report.plots import Box, Tick
from vitdeploy.report.view import DEVICES
from vitdeploy.wording import ms_text

WIDTH, HEIGHT = 1040, 300
LABEL_GAP = 16


@dataclass(frozen=True)
class Line:
    """A row: ``path`` is SVG path data, the label stands at its right end, ``marks`` are points on it."""

    path: str
    precision: str
    label: str
    label_y: float
    title: str
    marks: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Timeline:
    """Latency over seconds on one device."""

    caption: str
    y_name: str
    x_name: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    lines: list[Line]
    frame: Box
    width: int = WIDTH
    height: int = HEIGHT


def timelines(report: Report) -> list[Timeline]:
    """Return a chart per device; none where nothing ran without a pause."""
    found = []
    for device in dict.fromkeys(row.device for row in report.rows if row.device is not None):
        ran = [(row, row.sustained) for row in report.rows if row.device == device and row.sustained is not None]
        if ran:
            found.append(_timeline(ran, device))
    return found


def _timeline(ran: list[tuple[Row, Sustained]], device: Device) -> Timeline:
    room = min(max(text_width(_label(row, one)) for row, one in ran) + LABEL_MARGIN, WIDTH * 0.45)
    frame = (64.0, 10.0, WIDTH - room, HEIGHT - 52.0)
    x_axis = Axis(0.0, max(one.seconds for _, one in ran), frame[0], frame[2])
    y_axis = size_axis([value for _, one in ran for value in one.p50_ms], frame[3], frame[1])
    lines = [_line(row, one, x_axis, y_axis, shortened(_label(row, one), room - LABEL_MARGIN)) for row, one in ran]
    return Timeline(
        caption=f"Median latency while each row ran without a pause on the {DEVICES[device]}",
        y_name="p50 latency, ms",
        x_name="seconds",
        x_ticks=[Tick(x_axis.at(value), f"{value:g}") for value in x_axis.ticks(8)],
        y_ticks=[Tick(y_axis.at(value), f"{value:g}") for value in y_axis.ticks(5)],
        lines=apart(lines),
        frame=frame,
    )


def _label(row: Row, one: Sustained) -> str:
    return f"{one.slowdown - 1:+.0%} {row.name}"


def _line(row: Row, one: Sustained, x_axis: Axis, y_axis: Axis, label: str) -> Line:
    points = [f"{x_axis.at(at)} {y_axis.at(ms)}" for at, ms in zip(one.at_s, one.p50_ms, strict=True)]
    heat = [value for value in one.temperature_c if value is not None]
    hottest = f", up to {max(heat):.0f} °C" if heat else ""
    title = (
        f"{row.name}, batch {one.batch}: {ms_text(one.p50_ms[0])} ms at first, {ms_text(one.p50_ms[-1])} ms after "
        f"{one.seconds:.0f} s ({one.slowdown - 1:+.0%}){hottest}"
    )
    return Line("M" + "L".join(points), row.precision, label, y_axis.at(one.p50_ms[-1]), title)


def apart(lines: list[Line]) -> list[Line]:
    """Return the lines with labels that do not cover each other, pushed downwards from the top."""
    placed: list[Line] = []
    lowest = 0.0
    for line in sorted(lines, key=lambda one: one.label_y):
        lowest = max(line.label_y + 4, lowest + LABEL_GAP)
        placed.append(replace(line, label_y=lowest))
    return placed
