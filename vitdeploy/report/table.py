"""The report as a table in the terminal, at any width."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from vitdeploy.measure.verdict import timing_of
from vitdeploy.records import Report, Row, printable_record
from vitdeploy.report.view import (
    SCOPES,
    STATUSES,
    class_lines,
    interval_text,
    points_interval_text,
    remarks,
    row_threads,
    rows_by_class,
    runtime_name,
    runtime_text,
    timed_batches,
)
from vitdeploy.text import UNKNOWN, size_text
from vitdeploy.wording import (
    MINUS,
    decibel_text,
    ms_text,
    points_text,
    ratio_text,
)

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table
    from rich.text import Text

STATUS_STYLES = {"built": "yellow", "skipped": "yellow", "failed": "red"}


class ReportTable:
    """A report as rich draws it, in the first of three forms that fits: no name, number or word is ever cut.

    One line per number and its interval; intervals below their numbers; a block of lines per row.
    """

    def __init__(self, report: Report) -> None:
        self.report = printable_record(report)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield title, rows and remarks."""
        from rich.text import Text

        conditions = self.report.conditions
        title = f"{self.report.model} on {conditions.data} ({conditions.n_samples} images)"
        yield Text(title, style="bold")
        for stacked in (False, True):
            grid = _grid(self.report, stacked=stacked)
            if console.measure(grid, options=options.update(width=1000)).maximum <= options.max_width:
                yield grid
                break
        else:
            yield from _blocks(self.report)
            yield Text()
        yield _remarks(self.report)


def table(report: Report) -> ReportTable:
    """Return one row per candidate; intervals are 95 %, latency is the median end to end."""
    return ReportTable(report)


def class_table(report: Report) -> Table:
    """Return how many answers of each row are right in each class of the data, worst first."""
    from rich import box
    from rich.table import Table

    report = printable_record(report)
    grid = Table(box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True)
    for index, header in enumerate(("Class", "Images", *(row.name for row in rows_by_class(report)))):
        grid.add_column(header, justify="right" if index else "left", overflow="fold")
    for line in class_lines(report):
        grid.add_row(line.name, str(line.images), *line.cells)
    return grid


def measurement_tables(report: Report) -> list[Table]:
    """Return what was measured beside the rows where it was asked for: threads, streams, runs without a pause."""
    report = printable_record(report)
    return [table for table in (_threads(report), _streams(report), _sustained(report)) if table is not None]


def _threads(report: Report) -> Table | None:
    """Return p50 with each number of threads, a line per row and batch; None where one alone was timed."""
    timed = [(row, one) for row in report.rows for one in row.by_threads]
    counts = sorted({one.threads for _, one in timed})
    cells: dict[tuple[str, int], dict[int, str]] = {}
    for row, one in timed:
        cells.setdefault((row.name, one.batch), {})[one.threads] = ms_text(one.p50_ms)
    heads = [f"{count} thread{'s' if count > 1 else ''}\np50 ms" for count in counts]
    lines = [
        (name, str(batch), *(found.get(count, UNKNOWN) for count in counts)) for (name, batch), found in cells.items()
    ]
    return _plain_table(("Artifact", "Batch", *heads), lines)


def _streams(report: Report) -> Table | None:
    lines = [
        (row.name, str(one.batch), str(one.streams), SCOPES[one.scope], f"{one.images_per_s:.0f}")
        for row in report.rows
        for one in row.throughput
    ]
    return _plain_table(("Artifact", "Batch", "Streams", "Scope", "Images/s"), lines)


def _sustained(report: Report) -> Table | None:
    lines = [
        (row.name, str(one.batch), f"{one.seconds:.0f}", *map(ms_text, (one.p50_ms[0], one.p50_ms[-1])), change)
        for row in report.rows
        if (one := row.sustained) is not None
        for change in (f"{100 * (one.slowdown - 1):+.0f} %".replace("-", MINUS),)
    ]
    return _plain_table(("Artifact", "Batch", "Seconds", "p50 ms\nfirst", "p50 ms\nlast", "Change"), lines)


def _plain_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> Table | None:
    """Return a table of numbers behind a name, None without a line."""
    from rich import box
    from rich.table import Table

    grid = Table(box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True)
    for index, title in enumerate(head):
        grid.add_column(title, justify="right" if index else "left", overflow="fold", no_wrap=bool(index))
    for line in lines:
        grid.add_row(*line)
    return grid if lines else None


def _grid(report: Report, *, stacked: bool) -> Table:
    from rich import box
    from rich.table import Table

    grid = Table(box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True)
    for index, header in enumerate(_headers(report, stacked=stacked)):
        grid.add_column(header, justify="right" if index else "left", no_wrap=True)
    for row in report.rows:
        grid.add_row(*_cells(row, report, stacked=stacked))
    return grid


def _headers(report: Report, *, stacked: bool) -> list[str]:
    batch = ["Batch"] if len(timed_batches(report)) > 1 else []
    times = ["p50 ms\nspeed-up"] if stacked else ["p50 ms", "Speed-up"]
    return ["Artifact", "Top-1 %\nΔ pp", "SQNR\ndB", *batch, *times, "Size\npeak"]


def _cells(row: Row, report: Report, *, stacked: bool) -> list[Text]:
    from rich.text import Text

    batches = timed_batches(report)
    accuracy, (times, ratios) = _accuracy(row, report), _latency(row, report, batches)
    heights = [1] * len(batches)
    if stacked:
        accuracy = _below(accuracy)
        pairs = zip(times.split("\n"), ratios.split("\n"), strict=True) if row.timings else ()
        groups = [Text("\n").join((time, _below(ratio))) for time, ratio in pairs]
        heights = [group.plain.count("\n") + 1 for group in groups]
        times = Text("\n").join(groups)
    numbers = "".join(f"{batch}" + "\n" * height for batch, height in zip(batches, heights, strict=False))
    batch = [Text(numbers.rstrip() if row.timings else "")] if len(batches) > 1 else []
    decibels = Text(decibel_text(row.logits_sqnr_db, row.logits_identical).removesuffix(" dB"))
    return [_name(row), accuracy, decibels, *batch, times, *([] if stacked else [ratios]), _size(row)]


def _below(text: Text) -> Text:
    """Return the text with each interval on a line of its own."""
    from rich.text import Text

    lines = []
    for line in text.split("\n"):
        number, space, _ = line.plain.partition(" [")
        lines += [line[: len(number)], line[len(number) + 1 :]] if space else [line]
    return Text("\n").join(lines)


def _blocks(report: Report) -> Iterator[Text]:
    """Yield a row's name and, below it, a line per number, which wraps at words."""
    from rich.text import Text

    labels = [header.replace("\n", ", ") for header in _headers(report, stacked=False)]
    for row in report.rows:
        name, *cells = _cells(row, report, stacked=False)
        yield Text("\n").append_text(name)
        for label, cell in zip(labels[1:], cells, strict=True):
            if cell.plain:
                yield Text(f"  {label}: ").append_text(Text(", ").join(cell.split("\n")))


def _name(row: Row) -> Text:
    from rich.text import Text

    text = Text(row.name, style="bold")
    settings = row_threads(row)  # rows that differ in them alone are called by them
    below = runtime_name(row) if settings and settings in row.name else runtime_text(row)
    return text.append(f"\n{below.replace(' · ', ' ')}, {row.precision}", style="not bold dim")


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


def _remarks(report: Report) -> Text:
    from rich.text import Text

    machine = report.environment
    text = Text()
    place = f"{machine.cpu}, {machine.cores} cores; {machine.gpu or 'no GPU'}"
    text.append(f"95 % intervals in brackets · against {report.baseline.accuracy_against} · {place}", style="dim")
    for name, remark in remarks(report.rows):
        text.append(f"\n{name}: ", style="bold")
        text.append(remark)
    return text
