"""Two reports compared row by row, with a gate on what may be lost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vitdeploy.artifacts.report_json import read_report
from vitdeploy.errors import GateError, UsageError
from vitdeploy.measure.layer_changes import compare_profiles
from vitdeploy.notebook import html_table
from vitdeploy.records import Record, Report, Row, printable_record
from vitdeploy.records.layer_profile import ProfileChange
from vitdeploy.records.report import DropBy, Interval, TimedScope, drop_text, refuse_wrong_limit
from vitdeploy.report.view import STATUSES
from vitdeploy.text import UNKNOWN, printable, size_text
from vitdeploy.wording import ms_text, points_text

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = ("Top-1 %", "Δ pp", "Batch", "p50 ms", "Change", "Size")
RowKey = tuple[str, str, str | None]


class TimingChange(Record):
    """The median of one row at one batch size, before and after; ``ratio`` is after by before, so above 1 is slower."""

    batch: int
    scope: TimedScope
    before_ms: float
    after_ms: float
    ratio: float


class RowChange(Record):
    """What became of a row that both reports have; a difference is None where it cannot be taken.

    ``delta_ci95_pp`` is Newcombe's interval for independent proportions (Statistics in Medicine 17, 1998, method 10),
    from the intervals of the two: reports do not keep which images were right, so it is wider than that of a bench. The
    same artifact under the same runtime gives the same classes, and then it is nothing.
    """

    name: str
    backend: str
    before_status: str
    after_status: str
    before_top1: float | None = None
    after_top1: float | None = None
    delta_top1_pp: float | None = None
    delta_ci95_pp: Interval | None = None
    before_size_bytes: int | None = None
    after_size_bytes: int | None = None
    timings: tuple[TimingChange, ...] = ()

    def cells(self) -> tuple[str, ...]:
        """Return the row as tables show it: name, and a cell for each of ``COLUMNS``."""
        times = [timing for timing in self.timings if timing.scope == "end_to_end"]
        return (
            self.name,
            _top1(self),
            points_text(self.delta_top1_pp),
            "\n".join(str(timing.batch) for timing in times),
            "\n".join(f"{ms_text(timing.before_ms)} → {ms_text(timing.after_ms)}" for timing in times),
            "\n".join(f"{100 * (timing.ratio - 1):+.1f} %" for timing in times),
            f"{size_text(self.before_size_bytes)} → {size_text(self.after_size_bytes)}",
        )


class Comparison(Record):
    """Two reports, row by row.

    ``rows`` are those that both have, by name, backend and device; ``layers`` says where those whose
    layers both profiled lost or gained time. ``caveats`` say why numbers are not compared, or
    should be compared with care.
    """

    before: str
    after: str
    rows: tuple[RowChange, ...]
    layers: tuple[ProfileChange, ...] = ()
    only_before: tuple[str, ...] = ()
    only_after: tuple[str, ...] = ()
    caveats: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return printable(f"<Comparison of {self.before} and {self.after}: {len(self.rows)} rows>")

    __str__ = __repr__

    @property
    def unmatched(self) -> list[str]:
        """Sentences on the rows that one report alone has."""
        lines = [] if self.rows else ["no row has the same name, backend and device in both reports"]
        for where, names in (("before", self.only_before), ("after", self.only_after)):
            lines += [f"only {where}: {', '.join(names)}"] if names else []
        return lines

    def _repr_html_(self) -> str:
        header = ("Artifact", *COLUMNS)
        return html_table(
            f"{self.before} → {self.after}",
            header,
            [row.cells() for row in self.rows],
            [*self.unmatched, *self.caveats],
        )

    def check(
        self,
        *,
        max_drop_pp: float | None = None,
        max_drop_by: DropBy = "point",
        max_slowdown_percent: float | None = None,
    ) -> None:
        """Refuse what lost too much; without a limit nothing is refused.

        A row that was measured before and is not any more does not pass, whatever the limit.

        Args:
            max_drop_pp: How many points of top-1 a row may lose.
            max_drop_by: ``point`` judges the measured difference, ``interval`` the worse end of ``delta_ci95_pp``.
            max_slowdown_percent: By how much of its median a row may become slower, at any batch size.
        Raises:
            GateError: A row is beyond a limit, or nothing can be held against it; the line names each.
            UsageError: A limit is negative.
        """
        if max_drop_pp is not None:
            refuse_wrong_limit(max_drop_pp, max_drop_by)
        if max_slowdown_percent is not None and not max_slowdown_percent >= 0:
            raise UsageError(f"max_slowdown_percent is {max_slowdown_percent!r}, expected a limit that is not negative")
        if max_drop_pp is None and max_slowdown_percent is None:
            return
        broken = [f"{name} is not there any more" for name in self.only_before]
        for row in self.rows:
            if row.before_status == "ok" and row.after_status != "ok":
                broken.append(f"{row.name} was measured and is {STATUSES[row.after_status]} now")
            elif max_drop_pp is not None:
                broken += _drop(row, max_drop_pp, max_drop_by)
            broken += _slowdowns(row, max_slowdown_percent)
        if max_drop_pp is not None and not any(row.delta_top1_pp is not None for row in self.rows):
            broken.append("the reports have no top-1 of the same candidate on the same data")
        if max_slowdown_percent is not None and not any(row.timings for row in self.rows):
            broken.append("the reports have no times of the same candidate on the same machine")
        if broken:
            raise GateError("; ".join(dict.fromkeys(broken)))


def compare(
    before: Report | Path | str, after: Report | Path | str, *, rows: Sequence[str] | None = None
) -> Comparison:
    """Compare two reports, or files or folders of reports.

    Accuracies on other data and times of another machine are left out, with a caveat that says so.

    Args:
        before: The older one.
        after: The newer one, or the same again where two of its rows are compared.
        rows: Two names: that row of ``before`` against that row of ``after``, and no others. None: rows of one name.

    Raises:
        ArtifactError: A file is missing or is no report.
        UsageError: There is no row of that name.
    """
    names = [_name(before, "before"), _name(after, "after")]
    old, new = (one if isinstance(one, Report) else read_report(one) for one in (before, after))
    same_machine = (old.environment.cpu, old.environment.gpu) == (new.environment.cpu, new.environment.gpu)
    same_data = old.conditions.data_sha256 == new.conditions.data_sha256
    rows_before, rows_after = ({_key(row): row for row in report.rows} for report in (old, new))
    pairs = [(row, rows_after[key]) for key, row in rows_before.items() if key in rows_after]
    if rows is not None:
        if len(rows) != 2:
            raise UsageError(f"rows is {tuple(rows)!r}, expected two names: one of each report")
        pairs = [(_named(old, names[0], rows[0]), _named(new, names[1], rows[1]))]
    layers = [compare_profiles(*pair) for pair in pairs] if same_machine else []
    return Comparison(
        before=names[0],
        after=names[1],
        rows=tuple(_change(*pair, same_data=same_data, same_machine=same_machine) for pair in pairs),
        layers=tuple(change for change in layers if change is not None),
        only_before=tuple(row.name for key, row in rows_before.items() if key not in rows_after and rows is None),
        only_after=tuple(row.name for key, row in rows_after.items() if key not in rows_before and rows is None),
        caveats=tuple(_caveats(old, new, same_machine=same_machine, same_data=same_data)),
    )


def comparison_table(comparison: Comparison) -> Table:
    """Return one row per artifact: before, after, and the change."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    comparison = printable_record(comparison)
    grid = Table(box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, caption_justify="left")
    grid.caption = Text("\n".join([*comparison.unmatched, *comparison.caveats]), style="not italic not dim yellow")
    grid.add_column("Artifact", overflow="fold")
    for name in COLUMNS:
        grid.add_column(name, justify="right", no_wrap=True)
    for row in comparison.rows:
        name, *cells = row.cells()
        grid.add_row(Text(printable(name), style="bold"), *cells)
    return grid


def _change(old: Row, new: Row, *, same_data: bool, same_machine: bool) -> RowChange:
    comparable = same_data and old.top1 is not None and new.top1 is not None
    return RowChange(
        name=old.name if old.name == new.name else f"{old.name} → {new.name}",
        backend=old.backend,
        before_status=old.status,
        after_status=new.status,
        before_top1=old.top1,
        after_top1=new.top1,
        delta_top1_pp=100 * ((new.top1 or 0.0) - (old.top1 or 0.0)) if comparable else None,
        delta_ci95_pp=_interval(old, new) if comparable else None,
        before_size_bytes=old.size_bytes,
        after_size_bytes=new.size_bytes,
        timings=_timings(old, new) if same_machine else (),
    )


def _timings(old: Row, new: Row) -> tuple[TimingChange, ...]:
    after = {(timing.batch, timing.scope): timing for timing in new.timings}
    return tuple(
        TimingChange(
            batch=timing.batch,
            scope=timing.scope,
            before_ms=timing.p50_ms,
            after_ms=later.p50_ms,
            ratio=later.p50_ms / timing.p50_ms,
        )
        for timing in old.timings
        if (later := after.get((timing.batch, timing.scope))) is not None
    )


def _interval(old: Row, new: Row) -> Interval | None:
    """Return the 95 % interval of the change of top-1, in percentage points."""
    if old.top1 is None or new.top1 is None or old.top1_ci95 is None or new.top1_ci95 is None:
        return None
    if old.payload_sha256 is not None and old.payload_sha256 == new.payload_sha256 and old.top1 == new.top1:
        return 0.0, 0.0
    (old_low, old_high), (new_low, new_high) = old.top1_ci95, new.top1_ci95
    delta = new.top1 - old.top1
    down, up = math.hypot(new.top1 - new_low, old_high - old.top1), math.hypot(new_high - new.top1, old.top1 - old_low)
    return 100 * (delta - down), 100 * (delta + up)


def _drop(row: RowChange, limit: float, by: DropBy) -> list[str]:
    if row.delta_top1_pp is not None:
        text = drop_text(row.name, row.delta_top1_pp, row.delta_ci95_pp, limit, by)
        return [text] if text else []
    if row.before_top1 is None:
        return []
    if row.after_top1 is None:
        return [f"{row.name} has no top-1 any more"]
    return [f"{row.name} was measured on other data, so its loss is unknown"]


def _slowdowns(row: RowChange, limit_percent: float | None) -> list[str]:
    if limit_percent is None:
        return []
    return [
        f"{row.name} is {100 * (timing.ratio - 1):.1f} % slower at batch {timing.batch}, allowed {limit_percent:g}"
        for timing in row.timings
        if 100 * (timing.ratio - 1) > limit_percent
    ]


def _caveats(old: Report, new: Report, *, same_machine: bool, same_data: bool) -> list[str]:
    lines = []
    if not same_data:
        lines.append(f"the data differ ({old.conditions.data}, {new.conditions.data}): accuracies are not compared")
    if not same_machine:
        machines = " and ".join(f"{one.environment.cpu}, {one.environment.gpu or 'no GPU'}" for one in (old, new))
        lines.append(f"the machines differ ({machines}): times are not compared")
    for name in ("threads", "tf32"):
        before, after = getattr(old.conditions, name), getattr(new.conditions, name)
        if before != after:
            lines.append(f"the conditions differ: {name} {before}, then {after}")
    changed = _changed_versions(old.versions, new.versions)
    if changed:
        lines.append(f"library versions differ: {', '.join(changed)}")
    return lines


def _changed_versions(old: dict[str, str], new: dict[str, str]) -> Sequence[str]:
    return [f"{name} {old[name]} → {new[name]}" for name in sorted(set(old) & set(new)) if old[name] != new[name]]


def _named(report: Report, title: str, name: str) -> Row:
    found = next((row for row in report.rows if row.name == name), None)
    if found is None:
        known = ", ".join(repr(row.name) for row in report.rows)
        raise UsageError(f"{title} has no row {name!r}, expected one of {known}")
    return found


def _key(row: Row) -> RowKey:
    return row.name, row.backend, row.device


def _name(report: Report | Path | str, title: str) -> str:
    return title if isinstance(report, Report) else str(report)


def _top1(row: RowChange) -> str:
    before, after = (UNKNOWN if value is None else f"{100 * value:.2f}" for value in (row.before_top1, row.after_top1))
    return f"{before} → {after}"
