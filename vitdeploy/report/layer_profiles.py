"""Where the time of a call goes: charts, tables and differences of the rows whose layers were profiled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vitdeploy.measure.layer_changes import compare_profiles, rival_of
from vitdeploy.records import LayerProfile, Report, Row, printable_record
from vitdeploy.records.layer_profile import PARTS, Part, ProfileChange
from vitdeploy.report.plots import BarItem, Bars, bar_chart
from vitdeploy.text import UNKNOWN, printable
from vitdeploy.wording import MINUS, ms_text, percent_text

if TYPE_CHECKING:
    from rich.table import Table

SLOWEST = 12
COLOURED = ("fp32", "fp16", "int8", "fp8")


@dataclass(frozen=True)
class PartLine:
    """A part of the model as a table shows it; ``change`` is "" where there is nothing to hold it against."""

    title: str
    ms: str
    share: str
    precisions: str
    change: str = ""


@dataclass(frozen=True)
class ShownLayers:
    """One profiled row: its parts as bars, its slowest layers, and where it differs from its rival (None: it has none).

    ``layers`` are name, operator, precision, part, milliseconds and share.
    """

    name: str
    runtime: str
    profile: LayerProfile
    chart: Bars
    parts: tuple[PartLine, ...]
    layers: tuple[tuple[str, ...], ...]
    change: ProfileChange | None


def layer_profiles(report: Report, runtime: dict[str, str]) -> list[ShownLayers]:
    """Return every profiled row; the bars of all have the same scale. ``runtime`` is what a row's runtime is called."""
    rows = _profiled(report)
    most = max((ms for _, profile in rows for ms in profile.by_part().values()), default=0.0)
    shown = []
    for row, profile in rows:
        rival = rival_of(row, report.rows)
        change = None if rival is None else compare_profiles(rival, row)
        chart = _chart(row, profile, most)
        lines = part_lines(profile) if change is None else _changed_lines(profile, change)
        shown.append(
            ShownLayers(row.name, runtime[row.name], profile, chart, tuple(lines), tuple(_slowest(profile)), change)
        )
    return shown


def part_lines(profile: LayerProfile) -> list[PartLine]:
    """Return each part that has a layer."""
    return [_line(profile, part) for part in profile.by_part()]


def _changed_lines(profile: LayerProfile, change: ProfileChange) -> list[PartLine]:
    return [replace(_line(profile, one.part), change=change_text(one.before_ms, one.after_ms)) for one in change.parts]


def _line(profile: LayerProfile, part: Part) -> PartLine:
    ms, total = profile.by_part().get(part), profile.layers_ms
    if ms is None:
        return PartLine(PARTS[part], UNKNOWN, UNKNOWN, UNKNOWN)
    return PartLine(PARTS[part], ms_text(ms), percent_text(ms / total if total else 0.0, 0), _precisions(profile, part))


def change_text(before_ms: float, after_ms: float) -> str:
    """Return a difference of milliseconds with its sign: ``+0.037``."""
    change = after_ms - before_ms
    text = ms_text(abs(change))
    return text if text == "0.000" else f"{'+' if change > 0 else MINUS}{text}"


def layer_table(report: Report) -> Table:
    """Return time and share of each part of the model, a column per profiled row."""
    rows = _profiled(printable_record(report))
    head = ["Layers by part", *(row.name for row, _ in rows)]
    present = [part for part in PARTS if any(part in profile.by_part() for _, profile in rows)]
    lines = [[PARTS[part], *(_cell(profile, part) for _, profile in rows)] for part in present]
    return _grid(head, [*lines, ["All layers", *(f"{ms_text(profile.layers_ms)} ms" for _, profile in rows)]])


def layer_change_tables(changes: Sequence[ProfileChange]) -> list[Table]:
    """Return for each pair of rows where the time differs, by part and for the layers that differ most."""
    tables = []
    for change in map(printable_record, changes):
        parts = [
            (PARTS[one.part], ms_text(one.before_ms), ms_text(one.after_ms), change_text(one.before_ms, one.after_ms))
            for one in change.parts
        ]
        total = (ms_text(change.before_ms), ms_text(change.after_ms), change_text(change.before_ms, change.after_ms))
        head = ("Layers by part, ms", change.before, change.after if change.after != change.before else "after")
        tables.append(_grid([*head, "Change"], [*parts, ("All layers", *total)]))
        layers = [
            (
                "\n".join(one.before) or UNKNOWN,
                "\n".join(one.after) or UNKNOWN,
                change_text(one.before_ms, one.after_ms),
            )
            for one in change.layers
        ]
        tables.append(_grid(["Before", "After", "Change, ms"], layers, texts=2))
    return tables


def _profiled(report: Report) -> list[tuple[Row, LayerProfile]]:
    return [(row, row.layer_profile) for row in report.rows if row.layer_profile is not None]


def _grid(head: Sequence[str], lines: Sequence[Sequence[str]], texts: int = 1) -> Table:
    """Return a table whose first ``texts`` columns are words, the others numbers."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True)
    for index, name in enumerate(head):
        grid.add_column(Text(printable(name)), overflow="fold", justify="left" if index < texts else "right")
    for line in lines:
        grid.add_row(*(Text(cell) for cell in line))
    return grid


def _cell(profile: LayerProfile, part: Part) -> str:
    ms = profile.by_part().get(part)
    return UNKNOWN if ms is None else f"{ms_text(ms)} ms {percent_text(ms / profile.layers_ms, 0):>5}"


def _precisions(profile: LayerProfile, part: Part) -> str:
    shares = {name: share for name, share in profile.precisions_of(part).items() if share >= 0.005}
    if len(shares) == 1:
        return next(iter(shares))
    return ", ".join(f"{name} {percent_text(share, 0)}" for name, share in shares.items())


def _chart(row: Row, profile: LayerProfile, most: float) -> Bars:
    items = []
    for part, ms in profile.by_part().items():
        line = _line(profile, part)
        title = f"{line.title}: {line.ms} ms, {line.share} of {row.name}, {line.precisions}"
        items.append(BarItem(line.title, ms, f"{line.ms} ms", title, _colour(profile, part)))
    return bar_chart(f"{row.name}, batch {profile.batch}", items, lambda value: f"{value:g} ms", most=most)


def _colour(profile: LayerProfile, part: Part) -> str:
    """Return the precision that takes most of a part's time, of those that have a colour."""
    first = next(iter(profile.precisions_of(part)), "")
    return first if first in COLOURED else "int8" if first == "uint8" else "fp32"


def _slowest(profile: LayerProfile) -> list[tuple[str, ...]]:
    total = profile.layers_ms
    layers = sorted(profile.layers, key=lambda layer: -layer.ms)[:SLOWEST]
    return [
        (
            layer.name,
            layer.operator,
            layer.precision,
            PARTS[layer.part],
            ms_text(layer.ms),
            percent_text(layer.ms / total if total else 0.0, 1),
        )
        for layer in layers
    ]
