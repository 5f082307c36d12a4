"""Where inside quantized graphs the error arises: a chart by depth and the worst tensors of each."""

from __future__ import annotations

from dataclasses import dataclass

from vitdeploy.records import Report, RoundedTensor, Row
from vitdeploy.report.plots import BarItem, Bars, bar_chart
from vitdeploy.wording import MINUS, decibel_text, percent_text

WORST = 6


@dataclass(frozen=True)
class ShownProfile:
    """The profile of one row: SQNR by depth as bars (None: no sum of a residual stream), and the worst tensors."""

    name: str
    images: int
    chart: Bars | None
    tensors: tuple[tuple[str, ...], ...]


def error_profiles(report: Report) -> list[ShownProfile]:
    """Return what is shown of each graph once, though several runtimes ran it."""
    rows: dict[str, Row] = {}
    for row in report.rows:
        if row.error_profile is not None:
            rows.setdefault(row.payload_sha256 or row.name, row)
    return [_shown(row) for row in rows.values()]


def _shown(row: Row) -> ShownProfile:
    assert row.error_profile is not None
    profile = row.error_profile
    items = [
        BarItem(point.tensor, point.sqnr_db, text, f"{point.tensor}: {text}", row.precision)
        for point in profile.depth
        if point.sqnr_db is not None and (text := decibel_text(point.sqnr_db, None))
    ]
    chart = bar_chart("SQNR of the residual stream by depth", items, lambda value: f"{value:g} dB") if items else None
    return ShownProfile(row.name, profile.images, chart, tuple(_cells(tensor) for tensor in profile.tensors[:WORST]))


def _cells(tensor: RoundedTensor) -> tuple[str, ...]:
    return (
        tensor.group or tensor.tensor,
        tensor.tensor,
        f"{_number(tensor.low)} to {_number(tensor.high)}",
        f"{_number(tensor.least)} to {_number(tensor.most)}",
        percent_text(tensor.clipped, 3),
        decibel_text(tensor.sqnr_db, tensor.sqnr_db is None),
    )


def _number(value: float) -> str:
    return f"{value:.3g}".replace("-", MINUS)
