from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from present import present
from sample_reports import build, rows, timing

from vitdeploy.records.report import Sustained
from vitdeploy.report.axes import Axis, latency_axis, linear_ticks, percent_axis
from vitdeploy.report.html import render_html, templates
from vitdeploy.report.labels import shortened, text_width
from vitdeploy.report.plots import BarItem, Scatter, Spot, bar_chart, latency_bars, scatters, size_bars, spot_chart
from vitdeploy.report.timeline import timelines


def test_axes_map_ends_to_ends_and_ticks_are_round() -> None:
    axis = Axis(0, 10, 100, 300)
    assert (axis.at(0), axis.at(5), axis.at(10), axis.at(99)) == (100, 200, 300, 300)
    assert axis.ticks(5) == [0, 2, 4, 6, 8, 10]
    logarithmic = Axis(0.1, 100, 0, 300, logarithmic=True)
    assert [logarithmic.at(value) for value in (0.1, 1, 10, 100)] == [0, 100, 200, 300]
    assert logarithmic.ticks() == [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100]


def test_latencies_far_apart_get_a_logarithmic_axis_and_close_ones_start_at_zero() -> None:
    assert latency_axis([1.0, 7.9], 0, 100).low == 0
    assert latency_axis([1.0, 8.0], 0, 100).logarithmic


@given(st.lists(st.floats(1e-3, 1e5), min_size=1, max_size=6))
def test_every_latency_lies_within_its_axis(values: list[float]) -> None:
    axis = latency_axis(values, 60, 700)
    assert all(60 <= axis.at(value) <= 700 for value in values)
    assert all(axis.low < value < axis.high for value in values)
    assert axis.ticks()


@given(st.lists(st.floats(0, 100), min_size=1, max_size=6))
def test_every_percentage_lies_within_its_axis_which_stays_within_0_and_100(values: list[float]) -> None:
    axis = percent_axis(values, 400, 10)
    assert 0 <= axis.low < axis.high <= 100
    assert all(axis.low <= value <= axis.high for value in values)
    assert len(linear_ticks(axis.low, axis.high, 6)) >= 2


def test_points_carry_their_intervals_and_fast_is_left_and_right_is_up() -> None:
    (plot,) = scatters(build(rows()))
    torch, onnx, int8 = plot.points
    assert int8.x < onnx.x < torch.x
    assert int8.y > onnx.y  # pixels grow downwards
    for point in plot.points:
        assert point.y_whisker is not None
        assert point.y_whisker[1] < point.y < point.y_whisker[0]
        assert point.x_whisker[0] < point.x_whisker[1]
        assert plot.frame[0] <= point.x <= plot.frame[2]
    assert [point.shape for point in plot.points] == ["circle", "square", "square"]


def test_without_labels_agreement_is_plotted() -> None:
    blind = tuple(row.model_copy(update={"top1": None, "top1_ci95": None}) for row in rows())
    (plot,) = scatters(build(blind))
    assert plot.y_name == "agreement, %"
    assert len(plot.points) == 3


def test_bars_are_as_long_as_their_values() -> None:
    charts = latency_bars(build(rows()))
    assert [chart.caption for chart in charts] == [
        "Latency on the CPU, batch 1: bar p50, line to p99",
        "Latency on the CPU, batch 8: bar p50, line to p99",
    ]
    torch, onnx, _ = charts[0].bars
    assert torch.width / onnx.width == pytest.approx(1.93 / 0.342, rel=0.01)
    assert torch.whisker is not None
    assert (torch.whisker - charts[0].left) / torch.width == pytest.approx(1.31, rel=0.01)
    sizes = size_bars(build(rows()))
    assert sizes is not None
    assert [bar.faded for bar in sizes.bars] == [False, False, False, True, True]
    assert sizes.bars[0].width / sizes.bars[2].width == pytest.approx(627_144 / 211_904, rel=0.01)


def test_many_points_in_one_place_get_labels_that_do_not_cover_each_other() -> None:
    base = rows()[1]
    crowd = tuple(
        base.model_copy(update={"name": f"candidate-{index}.onnx", "timings": (timing(0.30 + 0.002 * index),)})
        for index in range(8)
    )
    (plot,) = scatters(build(crowd))
    assert_apart(plot)


@pytest.mark.parametrize("step", [0.0, 0.01, 0.2])
def test_as_many_candidates_as_a_search_has_get_labels_of_their_own(step: float) -> None:
    spots = [
        Spot(10 + move, 10.1 + move, 40 + move, 39 + move, 41 + move, f"int8, {index} in fp32", "", "int8")
        for index in range(16)
        for move in (step * index,)
    ]
    assert_apart(spot_chart("a search", "ms", "dB", spots))


def assert_apart(plot: Scatter) -> None:
    boxes = []
    for point in plot.points:
        width = text_width(point.label)
        left = point.label_x if point.anchor == "start" else point.label_x - width
        boxes.append((left, point.label_y - 12, left + width, point.label_y + 2))
        assert plot.frame[0] <= left
        assert left + width <= plot.frame[2]
    for index, a in enumerate(boxes):
        for b in boxes[index + 1 :]:
            assert not (a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3])


def test_long_names_are_cut_in_their_middle() -> None:
    long = rows()[0].model_copy(update={"name": "a-very-long-name-of-a-checkpoint-in-a-folder.int8.engine"})
    (bar,) = latency_bars(build((long,)))[0].bars
    assert bar.label.startswith("a-very")
    assert bar.label.endswith("int8.engine")
    assert "…" in bar.label
    assert long.name in bar.title


def test_a_file_that_two_runtimes_opened_has_one_bar() -> None:
    base = rows()[1].model_copy(update={"payload_sha256": "ab"})
    twice = tuple(
        base.model_copy(update={"name": f"digits.onnx ({place})"}) for place in ("ONNX Runtime, CPU", "OpenVINO, CPU")
    )
    chart = size_bars(build((rows()[0], *twice)))
    assert chart is not None
    assert [bar.label for bar in chart.bars] == ["digits.safetensors", "digits.onnx"]


def test_a_long_tail_does_not_squeeze_the_bars() -> None:
    calm, busy = rows()[0], rows()[1]
    tail = timing(0.5).model_copy(update={"p90_ms": 40.0, "p99_ms": 150.0})
    report = build((calm, busy.model_copy(update={"timings": (tail,)})))
    chart = latency_bars(report)[0]
    first, second = chart.bars
    assert (first.cut, second.cut) == (False, True)
    assert first.width > 0.35 * (500 - chart.left - 72)
    assert second.whisker is not None
    assert second.whisker <= 500 - 72
    assert "arrow" in chart.caption
    assert "p99 150 ms" in second.title
    (plot,) = scatters(report)
    assert plot.points[0].x > 0.3 * plot.frame[2]
    assert [point.cut for point in plot.points] == [False, True]
    assert "arrow" in plot.caption


def _sustained(p50_ms: tuple[float, ...], celsius: float | None = None) -> Sustained:
    at_s = tuple(10.0 * (index + 1) for index in range(len(p50_ms)))
    none = (None,) * len(p50_ms)
    heat = none if celsius is None else (celsius,) * len(p50_ms)
    return Sustained(
        batch=1,
        seconds=at_s[-1],
        at_s=at_s,
        p50_ms=p50_ms,
        clock_mhz=none,
        temperature_c=heat,
        throttled=(),
        slowdown=p50_ms[-1] / p50_ms[0],
    )


def test_a_sustained_run_is_a_line_over_time_whose_labels_do_not_cover_each_other() -> None:
    first, second, *rest = rows()
    ran = (
        first.model_copy(update={"sustained": _sustained((2.0, 2.5, 3.0), celsius=71.0)}),
        second.model_copy(update={"sustained": _sustained((2.0, 2.5, 3.01))}),
        *rest,
    )
    (plot,) = timelines(build(ran))
    assert [line.label for line in plot.lines] == [f"+50% {second.name}", f"+50% {first.name}"]
    assert plot.lines[1].label_y - plot.lines[0].label_y >= 16
    assert "2.00 ms at first, 3.00 ms after 30 s (+50%), up to 71 °C" in plot.lines[1].title
    heights = [float(part.split(" ")[1]) for part in plot.lines[1].path[1:].split("L")]
    assert heights == sorted(heights, reverse=True)  # slower is higher up
    assert "while each row ran without a pause on the CPU" in render_html(build(ran))


@pytest.mark.parametrize("name", ["m.onnx", "model.int8.onnxruntime.onnx", "a" * 200 + ".onnx"])
def test_a_label_of_a_sustained_run_stays_within_the_picture(name: str) -> None:
    row = rows()[0].model_copy(update={"name": name, "sustained": _sustained((2.0, 3.0))})
    (plot,) = timelines(build((row,)))
    assert plot.frame[2] + 8 + text_width(plot.lines[0].label) <= plot.width
    assert plot.lines[0].label.startswith("+50% ")
    assert plot.frame[2] - plot.frame[0] >= 0.45 * plot.width


def test_a_report_without_a_sustained_run_has_no_such_chart() -> None:
    assert timelines(build(rows())) == []
    assert "without a pause" not in render_html(build(rows()))


@pytest.mark.parametrize("name", ["m.onnx", "W" * 60, "i" * 60, "漢" * 60, "a" * 200 + ".onnx", "é" * 3])
@pytest.mark.parametrize("width", [60.0, 140.0, 400.0])
def test_a_shortened_name_fits_and_keeps_both_ends(name: str, width: float) -> None:
    short = shortened(name, width)
    assert text_width(short) <= width
    if text_width(name) <= width:
        assert short == name
    else:
        head, tail = short.split("…")
        assert name.startswith(head)
        assert name.endswith(tail)
        assert len(tail) - len(head) in (0, 1)


@pytest.mark.parametrize("values", [(4.0, -2.0, 0.0), (-1.0, -4.0, -0.5), (1.0, 2.0, 0.5)])
def test_bars_of_negative_values_reach_to_the_left_of_zero(values: tuple[float, ...]) -> None:
    chart = bar_chart("gain", [BarItem("a", value, "", "", "int8") for value in values], str)
    zero = chart.left if chart.zero is None else chart.zero
    assert (chart.zero is None) == (min(values) >= 0)
    longest = max(bar.width for bar in chart.bars)
    for bar, value in zip(chart.bars, values, strict=True):
        assert bar.width / longest == pytest.approx(abs(value) / max(map(abs, values)), rel=0.01, abs=0.01)
        assert bar.start == pytest.approx(zero - bar.width if value < 0 else zero, abs=0.02)
        assert chart.left <= present(bar.start) <= chart.width
    page = templates().from_string('{% from "plots.html.j2" import bars %}{{ bars(chart, "x") }}').render(chart=chart)
    assert page.count('class="frame"') == (min(values) < 0)
    assert page.count('<rect class="bar"') == 3
