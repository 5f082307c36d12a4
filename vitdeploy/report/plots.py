"""The plots of the page as coordinates; the template draws them as SVG, so they follow the reader's light or dark."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from vitdeploy.measure.verdict import timing_of
from vitdeploy.records import Report, Row, Timing
from vitdeploy.records.report import Device
from vitdeploy.report.axes import Axis, latency_axis, percent_axis, plain_axis, size_axis
from vitdeploy.report.labels import shortened, text_width
from vitdeploy.report.view import DEVICES, runtime_text
from vitdeploy.text import size_text
from vitdeploy.wording import ms_text

SCATTER_WIDTH, BAR_WIDTH = 1040, 500
SCATTER_HEIGHT = 410
BAR_HEIGHT, BAR_GAP = 22, 12
ARROW = " (arrow: further than drawn)"
LONGEST_WHISKER = 2.5  # times the longest bar: a busy machine's tail must not squeeze what is compared
LINE_HEIGHT = 16
LABEL_STEP = 18
BAR_MARGIN = 12  # between a label and its bar, and before the label
SHAPES = {"pytorch": "circle", "onnxruntime": "square", "openvino": "diamond"}


Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""

Height = tuple[float, float, float]
"""Value, low and high of its interval, in percent."""


@dataclass(frozen=True)
class Tick:
    """A mark on an axis."""

    at: float
    text: str


@dataclass(frozen=True)
class Point:
    """One candidate: its place, its whiskers in pixels, and where its label goes.

    ``cut`` says that the line to p90 would go on beyond the frame.
    """

    x: float
    y: float
    x_whisker: tuple[float, float]
    y_whisker: tuple[float, float] | None
    precision: str
    shape: str
    label: str
    label_x: float
    label_y: float
    anchor: str
    title: str
    leader: Box | None = None
    cut: bool = False


@dataclass(frozen=True)
class Scatter:
    """Accuracy over latency on one device."""

    caption: str
    y_name: str
    x_name: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    points: list[Point]
    frame: Box
    width: int = SCATTER_WIDTH
    height: int = SCATTER_HEIGHT


@dataclass(frozen=True)
class Bar:
    """One bar; ``whisker`` is the pixel up to which a thin line goes on, ``cut`` where it would go on further.

    It begins where the chart's bars do, or at the pixel ``start`` where the axis goes below zero.
    """

    y: float
    width: float
    precision: str
    label: str
    value: str
    title: str
    faded: bool = False
    whisker: float | None = None
    cut: bool = False
    start: float | None = None


@dataclass(frozen=True)
class Bars:
    """A chart of horizontal bars; ``left`` is where they start, ``zero`` where a value of 0 is if that is elsewhere."""

    caption: str
    bars: list[Bar]
    left: float
    height: float
    ticks: list[Tick]
    width: int = BAR_WIDTH
    bar_height: int = BAR_HEIGHT
    zero: float | None = None


@dataclass
class _Placer:
    """Keeps labels from covering each other and the points, and where it can the whiskers."""

    frame: Box
    taken: list[Box]
    thin: list[Box]

    def place(self, point: Point) -> tuple[float, float, str]:
        """Return x, baseline and anchor of a point's label: the place that covers least, the nearest of those."""
        width = text_width(point.label)
        offers: list[tuple[float, float, str]] = []
        for step in range(2 * round((self.frame[3] - self.frame[1]) / LABEL_STEP) + 1):
            lift = LABEL_STEP * ((step + 1) // 2) * (-1 if step % 2 else 1)
            right = point.x_whisker[1] if lift == 0 else point.x
            offers.append((right + 12, point.y + 4 + lift, "start"))
            offers.append((point.x - 12, point.y + 4 + lift, "end"))

        def box(offer: tuple[float, float, str]) -> Box:
            left = offer[0] if offer[2] == "start" else offer[0] - width
            return left, offer[1] - LINE_HEIGHT + 3, left + width, offer[1] + 3

        def cost(offer: tuple[float, float, str]) -> float:
            place = box(offer)
            outside = place[0] < self.frame[0] or place[2] > self.frame[2]
            outside = outside or place[1] < self.frame[1] or place[3] > self.frame[3]
            covered = sum(_overlap(place, other) for other in self.taken)
            crossed = sum(_overlap(place, other) for other in self.thin)
            away = abs(offer[0] - point.x) / 40 + abs(offer[1] - 4 - point.y) / 40
            return 1000 * outside + 100 * covered + crossed + away

        best = min(offers, key=cost)
        self.taken.append(box(best))
        return best


def scatters(report: Report) -> list[Scatter]:
    """Return accuracy (without labels: agreement) over latency at the first batch size, one plot per device."""
    found = []
    for device in dict.fromkeys(row.device for row in report.rows if row.device is not None):
        plot = _scatter(report, device)
        if plot is not None:
            found.append(plot)
    return found


def _scatter(report: Report, device: Device) -> Scatter | None:
    batch = report.conditions.batches[0]
    timed = [
        (row, timing) for row in report.rows if row.device == device and (timing := timing_of(row, batch)) is not None
    ]
    labelled = any(row.top1 is not None for row, _ in timed)
    if not labelled and all(row.agreement is None for row, _ in timed):
        return None  # models without a single predicted class
    spots = [(row, timing, height) for row, timing in timed if (height := _height(row, report, labelled)) is not None]
    if not spots:
        return None
    frame = (64.0, 10.0, SCATTER_WIDTH - 10.0, SCATTER_HEIGHT - 52.0)
    reach = LONGEST_WHISKER * max(timing.p50_ms for _, timing, _ in spots)
    x_axis = latency_axis([v for _, t, _ in spots for v in (t.p50_ms, min(t.p90_ms, reach))], frame[0], frame[2])
    y_axis = percent_axis([value for _, _, height in spots for value in height], frame[3], frame[1])
    what = "top-1" if labelled else "agreement"
    points = [_point(row, timing, height, (x_axis, y_axis), what) for row, timing, height in spots]
    scale = ", logarithmic" if x_axis.logarithmic else ""
    return Scatter(
        caption=f"{'Top-1 accuracy' if labelled else 'Agreement with the baseline'} over latency on the "
        f"{DEVICES[device]}, batch {batch}{ARROW if any(point.cut for point in points) else ''}",
        y_name=f"{what}, %",
        x_name=f"p50 latency end to end, ms{scale}",
        x_ticks=[Tick(x_axis.at(value), _number(value)) for value in x_axis.ticks(10)],
        y_ticks=[Tick(y_axis.at(value), _number(value)) for value in y_axis.ticks(6)],
        points=_with_labels(points, frame),
        frame=frame,
    )


def _point(row: Row, timing: Timing, height: Height, axes: tuple[Axis, Axis], what: str) -> Point:
    """Return a point whose label is not yet placed."""
    x_axis, y_axis = axes
    value, low, high = height
    x, y = x_axis.at(timing.p50_ms), y_axis.at(value)
    return Point(
        x,
        y,
        x_whisker=(x, x_axis.at(timing.p90_ms)),
        cut=timing.p90_ms > x_axis.high,
        y_whisker=(y_axis.at(low), y_axis.at(high)) if low != high else None,
        precision=row.precision,
        shape=SHAPES.get(row.backend, "triangle"),
        label=shortened(row.name, (SCATTER_WIDTH - 64.0) / 2 - 24),  # fits beside a point in the middle
        label_x=x,
        label_y=y,
        anchor="start",
        title=f"{row.name}, {runtime_text(row)}: {what} {value:.2f} %, p50 {ms_text(timing.p50_ms)} ms",
    )


def _with_labels(points: Sequence[Point], frame: Box) -> list[Point]:
    """Return the points with labels that cover neither each other nor a point; one that is far off gets a line."""
    marks = [(point.x - 8, point.y - 8, point.x + 8, point.y + 8) for point in points]
    lines = [
        (point.x - 2, min(point.y_whisker), point.x + 2, max(point.y_whisker))
        for point in points
        if point.y_whisker is not None
    ]
    lines += [(point.x, point.y - 2, point.x_whisker[1] + 4, point.y + 2) for point in points]
    placer = _Placer(frame, marks, lines)
    placed = []
    for point in points:
        x, y, anchor = placer.place(point)
        leader = (point.x, point.y, x, y - 4) if abs(y - 4 - point.y) > LINE_HEIGHT else None
        placed.append(replace(point, label_x=x, label_y=y, anchor=anchor, leader=leader))
    return placed


def latency_bars(report: Report) -> list[Bars]:
    """Return p50 per candidate with a whisker to p99, one chart per device and batch size."""
    charts = []
    for device in dict.fromkeys(row.device for row in report.rows if row.device is not None):
        for batch in report.conditions.batches:
            rows = [row for row in report.rows if row.device == device and timing_of(row, batch) is not None]
            if rows:
                charts.append(_latency_chart(rows, device, batch))
    return charts


def _latency_chart(rows: Sequence[Row], device: Device, batch: int) -> Bars:
    times = [timing for row in rows if (timing := timing_of(row, batch)) is not None]
    left = _left([row.name for row in rows])
    limit = LONGEST_WHISKER * max(timing.p50_ms for timing in times)
    axis = size_axis([min(timing.p99_ms, limit) for timing in times], left, BAR_WIDTH - 72)
    bars = [
        Bar(
            y=_bar_y(index),
            width=axis.at(timing.p50_ms) - left,
            precision=row.precision,
            label=shortened(row.name, left - BAR_MARGIN),
            value=f"{ms_text(timing.p50_ms)} ms",
            title=f"{row.name}, {runtime_text(row)}: p50 {ms_text(timing.p50_ms)}, p90 {ms_text(timing.p90_ms)}, "
            f"p99 {ms_text(timing.p99_ms)} ms over {timing.calls or 0} calls",
            whisker=axis.at(min(timing.p99_ms, limit)),
            cut=timing.p99_ms > limit,
        )
        for index, (row, timing) in enumerate(zip(rows, times, strict=True))
    ]
    arrow = ARROW if any(bar.cut for bar in bars) else ""
    caption = f"Latency on the {DEVICES[device]}, batch {batch}: bar p50, line to p99{arrow}"
    return _chart(caption, bars, left, axis, lambda value: f"{_number(value)} ms")


def thread_bars(report: Report) -> list[Bars]:
    """Return p50 by the number of threads with a whisker to the slower end of its interval, one chart per batch."""
    timed = [(row, one) for row in report.rows for one in row.by_threads]
    charts = []
    for batch in dict.fromkeys(one.batch for _, one in timed):
        here = [(row, one) for row, one in timed if one.batch == batch]
        slowest = [one.p50_ms if one.p50_ci95 is None else one.p50_ci95[1] for _, one in here]
        limit = LONGEST_WHISKER * max(one.p50_ms for _, one in here)
        labels = [f"{_threads(one.threads)}, {row.name}" for row, one in here]
        left = _left(labels)
        axis = size_axis([min(ms, limit) for ms in slowest], left, BAR_WIDTH - 72)
        bars = [
            Bar(
                y=_bar_y(index),
                width=axis.at(one.p50_ms) - left,
                precision=row.precision,
                label=shortened(label, left - BAR_MARGIN),
                value=f"{ms_text(one.p50_ms)} ms",
                title=f"{row.name}, {runtime_text(row)}, {_threads(one.threads)}: p50 {ms_text(one.p50_ms)} ms",
                whisker=axis.at(min(ms, limit)),
                cut=ms > limit,
            )
            for index, ((row, one), label, ms) in enumerate(zip(here, labels, slowest, strict=True))
        ]
        arrow = ARROW if any(bar.cut for bar in bars) else ""
        caption = f"Latency by threads of the CPU, batch {batch}: bar p50, line to the end of its 95 % interval{arrow}"
        charts.append(_chart(caption, bars, left, axis, lambda value: f"{_number(value)} ms"))
    return charts


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def size_bars(report: Report) -> Bars | None:
    """Return the size of every file, those that were not run too; one that several runtimes opened is there once."""
    names: dict[str, list[Row]] = {}
    for row in report.rows:
        if row.size_bytes is not None:
            names.setdefault(row.payload_sha256 or row.name, []).append(row)
    rows = [
        same[0]
        if len(same) == 1
        else same[0].model_copy(update={"name": same[0].name.rpartition(" (")[0] or same[0].name})
        for same in names.values()
    ]
    if not rows:
        return None
    left = _left([row.name for row in rows])
    axis = size_axis([row.size_bytes or 0 for row in rows], left, BAR_WIDTH - 72)
    bars = [
        Bar(
            y=_bar_y(index),
            width=axis.at(row.size_bytes or 0) - left,
            precision=row.precision,
            label=shortened(row.name, left - BAR_MARGIN),
            value=size_text(row.size_bytes),
            title=f"{row.name}: {row.size_bytes} bytes",
            faded=row.status != "ok",
        )
        for index, row in enumerate(rows)
    ]
    return _chart("Size of the file", bars, left, axis, size_text)


@dataclass(frozen=True)
class Spot:
    """What a point of any plot shows: a duration up to the slower end of its interval, a height with its own."""

    ms: float
    slower_ms: float
    height: float
    low: float
    high: float
    label: str
    title: str
    precision: str


def spot_chart(caption: str, x_name: str, y_name: str, spots: Sequence[Spot]) -> Scatter:
    """Return a plot of heights over durations."""
    frame = (64.0, 10.0, SCATTER_WIDTH - 10.0, SCATTER_HEIGHT - 52.0)
    x_axis = latency_axis([value for spot in spots for value in (spot.ms, spot.slower_ms)], frame[0], frame[2])
    y_axis = plain_axis([value for spot in spots for value in (spot.low, spot.high)], frame[3], frame[1])
    points = []
    for spot in spots:
        x, y = x_axis.at(spot.ms), y_axis.at(spot.height)
        whisker = (y_axis.at(spot.low), y_axis.at(spot.high)) if spot.low != spot.high else None
        ends = (x, x_axis.at(spot.slower_ms))
        points.append(
            Point(
                x, y, ends, whisker, spot.precision, "square", spot.label, x, y, "start", f"{spot.label}: {spot.title}"
            )
        )
    return Scatter(
        caption=caption,
        y_name=y_name,
        x_name=x_name + (", logarithmic" if x_axis.logarithmic else ""),
        x_ticks=[Tick(x_axis.at(value), _number(value)) for value in x_axis.ticks(10)],
        y_ticks=[Tick(y_axis.at(value), _number(value)) for value in y_axis.ticks(6)],
        points=_with_labels(points, frame),
        frame=frame,
    )


@dataclass(frozen=True)
class BarItem:
    """What a bar of any chart shows: its label, its value, and both in words."""

    label: str
    value: float
    text: str
    title: str
    precision: str
    faded: bool = False


def bar_chart(caption: str, items: Sequence[BarItem], text: Callable[[float], str], most: float = 0.0) -> Bars:
    """Return a chart of bars from zero, to the left where a value is below; ``text`` writes the numbers of the axis.

    The axis reaches ``most`` at least.
    """
    left = _left([item.label for item in items])
    axis = size_axis([most, *(item.value for item in items)], left, BAR_WIDTH - 72)
    zero = axis.at(0.0)
    bars = [
        Bar(
            y=_bar_y(index),
            start=min(zero, axis.at(item.value)),
            width=round(abs(axis.at(item.value) - zero), 2),
            precision=item.precision,
            label=shortened(item.label, left - BAR_MARGIN),
            value=item.text,
            title=item.title,
            faded=item.faded,
        )
        for index, item in enumerate(items)
    ]
    return replace(_chart(caption, bars, left, axis, text), zero=zero if zero > left else None)


def _chart(caption: str, bars: list[Bar], left: float, axis: Axis, text: Callable[[float], str]) -> Bars:
    height = len(bars) * (BAR_HEIGHT + BAR_GAP) + 36
    return Bars(caption, bars, left, height, [Tick(axis.at(value), text(value)) for value in axis.ticks(4)])


def _height(row: Row, report: Report, labelled: bool) -> Height | None:
    """Return value, low and high in percent; None where it is not known."""
    value = row.top1 if labelled else _agreement(row, report)
    if value is None:
        return None
    low, high = row.top1_ci95 if labelled and row.top1_ci95 is not None else (value, value)
    return 100 * value, 100 * low, 100 * high


def _agreement(row: Row, report: Report) -> float | None:
    return 1.0 if row.name == report.baseline.row else row.agreement


def _left(labels: Sequence[str]) -> float:
    """Return where bars begin: after the longest label, which gets less than half of the drawing."""
    return min(max(map(text_width, labels)) + BAR_MARGIN, BAR_WIDTH * 0.42)


def _bar_y(index: int) -> float:
    return index * (BAR_HEIGHT + BAR_GAP) + 6


def _number(value: float) -> str:
    return f"{value:.6g}"


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
