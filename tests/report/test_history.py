"""Several reports of the same candidates over time."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from sample_reports import build, rows, timing

from vitdeploy.cli import main
from vitdeploy.errors import UsageError
from vitdeploy.records import Environment, Report
from vitdeploy.report import History, history, history_table, write_history, write_report

INT8 = "digits.int8.onnxruntime.onnx"
DATES = ("2026-09-01T10:00:00+00:00", "2026-10-01T10:00:00+00:00", "2026-11-01T10:00:00+00:00")


def _report(date: str, p50_ms: float, top1: float, **fields: object) -> Report:
    changed = tuple(
        row.model_copy(update={"timings": (timing(p50_ms),), "top1": top1}) if row.name == INT8 else row
        for row in rows()
    )
    return build(changed, created=date, **fields)


@pytest.fixture(name="months")
def _months() -> list[Report]:
    values = zip(DATES, (0.30, 0.25, 0.40), (0.98, 0.985, 0.97), strict=True)
    return [_report(date, p50_ms, top1) for date, p50_ms, top1 in values]


def _int8(found: History) -> list[tuple[float | None, float | None] | None]:
    (row,) = (row for row in found.rows if row.name == INT8)
    return [None if point is None else (point.p50_ms, point.top1) for point in row.points]


def test_reports_stand_in_the_order_of_their_dates(months: list[Report]) -> None:
    found = history([months[2], months[0], months[1]])
    assert [one.created for one in found.reports] == list(DATES)
    assert _int8(found) == [(0.30, 0.98), (0.25, 0.985), (0.40, 0.97)]
    assert found.batch == 1
    assert found.caveats == ()


def test_a_row_that_a_report_does_not_have_is_a_gap(months: list[Report]) -> None:
    less = build(tuple(row for row in rows() if row.name != INT8), created=DATES[1])
    assert _int8(history([months[0], less, months[2]])) == [(0.30, 0.98), None, (0.40, 0.97)]


def test_what_cannot_be_compared_with_the_newest_is_left_out_and_said(months: list[Report]) -> None:
    other = Environment(os="x", python="3", cpu="Another CPU", cores=2)
    conditions = months[0].conditions.model_copy(update={"data_sha256": "0" * 64, "data": "faces"})
    found = history([_report(DATES[0], 9.0, 0.5, environment=other, conditions=conditions), *months[1:]])
    assert _int8(found)[0] == (None, None)
    assert found.caveats == (
        f"times of {DATES[0]} are left out: another machine (Another CPU)",
        f"accuracies of {DATES[0]} are left out: other data (faces)",
    )


def test_one_report_has_no_history(months: list[Report]) -> None:
    with pytest.raises(UsageError, match="two reports at least, got 1"):
        history(months[:1])


def test_the_page_has_a_line_for_each_row_and_hostile_names_are_text(months: list[Report], tmp_path: Path) -> None:
    page = write_history(history(months), tmp_path / "history.html").read_text()
    assert page.count('<path class="course"') == 6  # three measured rows, twice
    assert page.count("<circle") == 18
    assert "<script>alert" not in page
    assert "2026-09-01 10:00: 0.300, 2026-10-01 10:00: 0.250, 2026-11-01 10:00: 0.400" in page
    assert not re.search(r"""(?:src|href)=["'](?!data:,)""", page)


def test_the_table_has_a_column_for_each_report(months: list[Report]) -> None:
    table = history_table(history(months))
    assert len(table.columns) == 4
    assert table.row_count == len(rows())


def test_the_command_takes_several_reports_and_judges_the_newest_against_the_one_before(
    months: list[Report], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [str(write_report(report, tmp_path / str(number)).parent) for number, report in enumerate(months)]
    page = tmp_path / "history.html"
    assert main(["compare", names[2], names[0], names[1], "--html", str(page)]) == 0
    assert "2026-10-01 10:00" in capsys.readouterr().out
    assert page.is_file()
    assert main(["compare", *names, "--max-drop", "1"]) == 3
    assert "lost 1.50 pp" in capsys.readouterr().err
    assert main(["compare", names[0]]) == 2
    assert "two reports at least" in capsys.readouterr().err
    assert main(["compare", *names, "--per-layer"]) == 2
    assert "compare two reports, got 3" in capsys.readouterr().err
