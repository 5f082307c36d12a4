"""Two reports compared row by row, with a gate on what may be lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vitdeploy.errors import GateError, UsageError
from vitdeploy.measure.verdict import timing_of
from vitdeploy.measure.wording import UNKNOWN, ms_text, points_text, ratio_text, size_text
from vitdeploy.records import Report, Row
from vitdeploy.report.view import STATUSES

if TYPE_CHECKING:
    from rich.table import Table

RowKey = tuple[str, str, str | None]


@dataclass(frozen=True)
class Change:
    """What became of one row; a number is None where one of the two reports lacks it.

    ``delta_top1_pp`` is new minus old, ``speedup`` old p50 by new p50 at ``batch`` (above 1 is faster), ``size_ratio``
    new by old.
    """

    name: str
    old: Row | None
    new: Row | None
    batch: int | None = None
    delta_top1_pp: float | None = None
    speedup: float | None = None
    size_ratio: float | None = None


@dataclass(frozen=True)
class Comparison:
    """All rows of both reports, and why their numbers may not be comparable."""

    changes: tuple[Change, ...]
    warnings: tuple[str, ...]

    def check(self, *, max_drop_pp: float | None = None, max_slowdown: float | None = None) -> None:
        """Refuse what lost too much.

        Args:
            max_drop_pp: How many points of top-1 a row may lose.
            max_slowdown: By how much of its time a row may become slower: 0.05 is 5 %.
        Raises:
            GateError: A row passed a limit, or was measured before and is not any more; the line names each.
            UsageError: A limit is negative.
        """
        for name, limit in (("--max-drop", max_drop_pp), ("--max-slowdown", max_slowdown)):
            if limit is not None and limit < 0:
                raise UsageError(f"{name} is {limit!r}, expected a limit that is not negative")
        broken = []
        for change in self.changes:
            if change.old is None or change.old.status != "ok":
                continue
            if change.new is None or change.new.status != "ok":
                broken.append(f"{change.name} is {STATUSES[change.new.status] if change.new else 'not there any more'}")
                continue
            if max_drop_pp is not None and change.delta_top1_pp is not None and -change.delta_top1_pp > max_drop_pp:
                broken.append(f"{change.name} lost {-change.delta_top1_pp:.2f} pp of top-1, allowed {max_drop_pp:g}")
            if max_drop_pp is not None and change.delta_top1_pp is None and change.old.top1 is not None:
                lost = change.new.top1 is None
                why = "has no top-1 any more" if lost else "was measured on other data, so its loss is unknown"
                broken.append(f"{change.name} {why}")
            if max_slowdown is not None and change.speedup is not None and 1 / change.speedup - 1 > max_slowdown:
                broken.append(
                    f"{change.name} is {100 * (1 / change.speedup - 1):.0f} % slower, allowed {100 * max_slowdown:g} %"
                )
        if broken:
            raise GateError("; ".join(broken))


def compare(old: Report, new: Report) -> Comparison:
    """Compare rows of the same name, backend and device.

    Reports of other data or another machine are compared all the same, with a warning for each difference that makes
    numbers incomparable; times of another machine are left out.
    """
    same_machine = (old.environment.cpu, old.environment.gpu) == (new.environment.cpu, new.environment.gpu)
    same_data = old.conditions.data_sha256 == new.conditions.data_sha256
    before, after = ({_key(row): row for row in report.rows} for report in (old, new))
    changes = []
    for key in dict.fromkeys((*before, *after)):
        one, two = before.get(key), after.get(key)
        batch = _common_batch(one, two, new.conditions.batches) if same_machine else None
        changes.append(
            Change(
                name=key[0],
                old=one,
                new=two,
                batch=batch,
                delta_top1_pp=_delta(one, two) if same_data else None,
                speedup=_speedup(one, two, batch),
                size_ratio=_size_ratio(one, two),
            )
        )
    return Comparison(tuple(changes), tuple(_warnings(old, new, same_machine, same_data)))


def comparison_table(comparison: Comparison) -> Table:
    """Return one row per artifact: before, after, and the change."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, caption_justify="left")
    grid.caption = Text("\n".join(comparison.warnings), style="not italic not dim yellow")
    grid.add_column("Artifact", overflow="fold")
    for name in ("Top-1 %", "Δ pp", "p50 ms", "New by old", "Size"):
        grid.add_column(name, justify="right", no_wrap=True)
    for change in comparison.changes:
        grid.add_row(
            Text(change.name, style="bold"),
            f"{_top1(change.old)} → {_top1(change.new)}",
            points_text(change.delta_top1_pp),
            f"{_p50(change.old, change.batch)} → {_p50(change.new, change.batch)}",
            f"{ratio_text(change.speedup)} as fast" if change.speedup is not None else UNKNOWN,
            f"{_size(change.old)} → {_size(change.new)}",
        )
    return grid


def _key(row: Row) -> RowKey:
    return row.name, row.backend, row.device


def _delta(old: Row | None, new: Row | None) -> float | None:
    if old is None or new is None or old.top1 is None or new.top1 is None:
        return None
    return 100 * (new.top1 - old.top1)


def _common_batch(old: Row | None, new: Row | None, batches: Sequence[int]) -> int | None:
    if old is None or new is None:
        return None
    return next((batch for batch in batches if timing_of(old, batch) and timing_of(new, batch)), None)


def _speedup(old: Row | None, new: Row | None, batch: int | None) -> float | None:
    if old is None or new is None or batch is None:
        return None
    before, after = timing_of(old, batch), timing_of(new, batch)
    return before.p50_ms / after.p50_ms if before is not None and after is not None else None


def _size_ratio(old: Row | None, new: Row | None) -> float | None:
    if old is None or new is None or not old.size_bytes or new.size_bytes is None:
        return None
    return new.size_bytes / old.size_bytes


def _warnings(old: Report, new: Report, same_machine: bool, same_data: bool) -> list[str]:
    said = []
    if not same_data:
        said.append(
            f"measured on different data ({old.conditions.data}, {new.conditions.data}): accuracies are not compared"
        )
    if not same_machine:
        machines = " and ".join(f"{one.environment.cpu}, {one.environment.gpu or 'no GPU'}" for one in (old, new))
        said.append(f"measured on different machines ({machines}): times are not compared")
    for name in ("threads", "tf32"):
        before, after = getattr(old.conditions, name), getattr(new.conditions, name)
        if before != after:
            said.append(f"measured under different conditions: {name} {before} and {after}")
    changed = [
        f"{name} {old.versions[name]} → {new.versions[name]}"
        for name in sorted(set(old.versions) & set(new.versions))
        if old.versions[name] != new.versions[name]
    ]
    if changed:
        said.append(f"other library versions: {', '.join(changed)}")
    return said


def _top1(row: Row | None) -> str:
    return UNKNOWN if row is None or row.top1 is None else f"{100 * row.top1:.2f}"


def _p50(row: Row | None, batch: int | None) -> str:
    timing = timing_of(row, batch) if row is not None and batch is not None else None
    return ms_text(timing.p50_ms if timing is not None else None)


def _size(row: Row | None) -> str:
    return size_text(row.size_bytes if row is not None else None)
