from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sample_reports import build, rows, timing

from vitdeploy.cli import main
from vitdeploy.errors import ArtifactError, GateError, UsageError
from vitdeploy.measure.statistics import wilson_interval
from vitdeploy.records import Report
from vitdeploy.report import compare, comparison_table, write_report


def _changed(name: str, **fields: Any) -> Report:
    return build(tuple(row.model_copy(update=fields) if row.name == name else row for row in rows()))


INT8 = "digits.int8.onnxruntime.onnx"


def test_the_same_report_has_no_change_and_passes_every_gate(report: Report) -> None:
    found = compare(report, report)
    assert len(found.rows) == 6
    assert (found.caveats, found.only_before, found.only_after) == ((), (), ())
    measured = [row for row in found.rows if row.delta_top1_pp is not None]
    assert len(measured) == 3
    assert all(row.delta_top1_pp == 0 for row in measured)
    assert [[timing.ratio for timing in row.timings] for row in measured] == [[1, 1]] * 3
    found.check(max_drop_pp=0, max_slowdown_percent=0)


def test_reports_are_read_from_files_and_folders(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path / "a")
    write_report(_changed(INT8, top1=440 / 450), tmp_path / "b")
    found = compare(tmp_path / "a", str(tmp_path / "b" / "report.json"))
    assert (found.before, found.after) == (str(tmp_path / "a"), str(tmp_path / "b" / "report.json"))
    assert min(row.delta_top1_pp for row in found.rows if row.delta_top1_pp is not None) < -0.8
    with pytest.raises(ArtifactError, match="there is no file"):
        compare(tmp_path / "a", tmp_path / "absent")


def test_a_drop_beyond_the_limit_is_refused_and_one_within_it_is_not(report: Report) -> None:
    worse = _changed(INT8, top1=440 / 450)
    found = compare(report, worse)
    (change,) = [row for row in found.rows if row.name == INT8]
    assert change.delta_top1_pp == pytest.approx(-100 * 4 / 450)
    found.check()
    found.check(max_drop_pp=0.9)
    with pytest.raises(GateError, match=r"digits\.int8\.onnxruntime\.onnx lost 0\.89 pp of top-1, allowed 0\.5"):
        found.check(max_drop_pp=0.5)
    compare(worse, report).check(max_drop_pp=0)  # a gain


def test_a_slowdown_beyond_the_limit_is_refused_at_any_batch(report: Report) -> None:
    slower = _changed(INT8, timings=(timing(0.289), timing(1.42 * 1.2, 8)))
    found = compare(report, slower)
    found.check(max_drop_pp=0, max_slowdown_percent=25)
    with pytest.raises(GateError, match=r"20\.0 % slower at batch 8, allowed 10"):
        found.check(max_slowdown_percent=10)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"status": "failed", "reason": "no kernel"}, "was measured and is failed now"),
        ({"top1": None}, "has no top-1 any more"),
    ],
)
def test_what_is_not_measured_any_more_does_not_pass_as_unchanged(
    report: Report, fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(GateError, match=said):
        compare(report, _changed(INT8, **fields)).check(max_drop_pp=1)


def test_of_reports_without_a_common_row_nothing_is_compared_which_is_an_error(
    report: Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = build(tuple(row.model_copy(update={"name": f"other.{row.name}"}) for row in rows()))
    found = compare(report, other)
    assert [line.split(":")[0] for line in found.unmatched] == [
        "no row has the same name, backend and device in both reports",
        "only before",
        "only after",
    ]
    assert found.unmatched[1].removeprefix("only before: ").split(", ") == [row.name for row in rows()]
    for name, one in (("before", report), ("after", other)):
        write_report(one, tmp_path / name)
    line = ["compare", str(tmp_path / "before"), str(tmp_path / "after")]
    assert main(line) == 1
    printed = capsys.readouterr()
    assert printed.out.splitlines() == found.unmatched[1:]
    assert printed.err.startswith("error: nothing can be compared: no row has the same name, backend and device in ")
    assert main([*line, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["rows"] == []
    assert main([*line, "--max-drop", "1"]) == 3, "what a gate is to hold is not there any more"
    named = rows()[0].name
    assert main([*line, "--row", named, "--row", f"other.{named}"]) == 0


def test_a_row_that_is_gone_does_not_pass_and_a_new_one_does(report: Report) -> None:
    less = build(tuple(row for row in rows() if row.name != INT8))
    gone = compare(report, less)
    assert gone.only_before == (INT8,)
    with pytest.raises(GateError, match="is not there any more"):
        gone.check(max_drop_pp=1)
    gone.check()
    added = compare(less, report)
    assert added.only_after == (INT8,)
    added.check(max_drop_pp=0)


def test_numbers_of_other_data_or_another_machine_are_not_compared(report: Report) -> None:
    conditions = report.conditions.model_copy(update={"data_sha256": "0" * 64, "data": "other"})
    machine = report.environment.model_copy(update={"cpu": "Cortex-A78AE"})
    other = report.model_copy(update={"conditions": conditions, "environment": machine})
    found = compare(report, other)
    assert all(row.delta_top1_pp is None and row.timings == () for row in found.rows)
    assert any("the data differ" in text for text in found.caveats)
    assert any("the machines differ" in text for text in found.caveats)
    with pytest.raises(GateError, match="measured on other data, so its loss is unknown"):
        found.check(max_drop_pp=1)
    with pytest.raises(GateError, match="no times of the same candidate on the same machine"):
        found.check(max_slowdown_percent=1)


def test_other_conditions_and_versions_are_said(report: Report) -> None:
    conditions = report.conditions.model_copy(update={"threads": 1, "tf32": True})
    other = report.model_copy(update={"conditions": conditions, "versions": {**report.versions, "torch": "2.16.0"}})
    assert compare(report, other).caveats == (
        "the conditions differ: threads 0, then 1",
        "the conditions differ: tf32 False, then True",
        "library versions differ: torch 2.15.0 → 2.16.0",
    )


def test_a_negative_limit_makes_no_sense(report: Report) -> None:
    with pytest.raises(UsageError, match="max_drop_pp is -1"):
        compare(report, report).check(max_drop_pp=-1)


def test_the_table_shows_before_and_after(report: Report) -> None:
    from rich.console import Console

    console = Console(width=100, color_system=None)
    with console.capture() as capture:
        console.print(comparison_table(compare(report, _changed(INT8, top1=440 / 450, timings=(timing(0.578),)))))
    text = capture.get()
    assert max(map(len, text.splitlines())) <= 100
    for part in ("98.67 → 97.78", "−0.89", "0.289 → 0.578", "+100.0 %", "212 kB → 212 kB"):
        assert part in text


@pytest.mark.parametrize(
    ("before", "after", "n", "interval"),
    [
        (56 / 70, 48 / 80, (70, 80), (-33.39, -5.24)),  # Newcombe 1998, table II, contrast (a): 0.2000 (0.0524, 0.3339)
        (9 / 10, 3 / 10, (10, 10), (-80.90, -17.05)),  # contrast (b): 0.6000 (0.1705, 0.8090)
        (6 / 7, 2 / 7, (7, 7), (-80.62, -5.82)),  # contrast (c): 0.5714 (0.0582, 0.8062)
    ],
)
def test_the_interval_of_a_change_is_that_of_newcombe(
    before: int, after: int, n: tuple[int, int], interval: tuple[float, float]
) -> None:
    first, second = (wilson_interval(round(top1 * size), size) for top1, size in zip((before, after), n, strict=True))
    old = _changed(INT8, top1=before, top1_ci95=first)
    (row,) = [row for row in compare(old, _changed(INT8, top1=after, top1_ci95=second)).rows if row.name == INT8]
    assert row.delta_ci95_pp == pytest.approx(interval, abs=0.005)


def test_the_point_and_the_interval_of_a_change_are_judged_apart(report: Report) -> None:
    worse = compare(report, _changed(INT8, top1=443 / 450, top1_ci95=(0.9682, 0.9924)))
    worse.check(max_drop_pp=0.5)
    with pytest.raises(GateError, match=r"may have lost up to \d\.\d\d pp of top-1 \(95 % interval\), allowed 0\.5"):
        worse.check(max_drop_pp=0.5, max_drop_by="interval")
    worse.check(max_drop_pp=4, max_drop_by="interval")


def test_the_same_artifact_with_the_same_top1_has_lost_nothing_whatever_the_number_of_images() -> None:
    fields = {row.name: {"payload_sha256": row.name} for row in rows()}
    same = build(tuple(row.model_copy(update=fields[row.name]) for row in rows()))
    compare(same, same).check(max_drop_pp=0, max_drop_by="interval")


@pytest.mark.parametrize(("limit", "by"), [(-0.1, "point"), (float("nan"), "point"), (1, "mean")])
def test_a_limit_that_makes_no_sense_is_refused(report: Report, limit: float, by: Any) -> None:
    for judged in (report, compare(report, report)):
        with pytest.raises(UsageError, match=r"max_drop_(pp|by) is "):
            judged.check(max_drop_pp=limit, max_drop_by=by)
