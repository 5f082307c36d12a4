from __future__ import annotations

import pytest
from sample_reports import build, rows, timing

from vitdeploy.errors import GateError, UsageError
from vitdeploy.report import compare, comparison_table


def _changed(name, **fields):
    return build(tuple(row.model_copy(update=fields) if row.name == name else row for row in rows()))


INT8 = "digits.int8.onnxruntime.onnx"


def test_the_same_report_has_no_change_and_passes_every_gate(report):
    found = compare(report, report)
    assert len(found.changes) == 6
    assert found.warnings == ()
    measured = [change for change in found.changes if change.delta_top1_pp is not None]
    assert len(measured) == 3
    assert all((change.delta_top1_pp, change.speedup, change.size_ratio) == (0, 1, 1) for change in measured)
    found.check(max_drop_pp=0, max_slowdown=0)


def test_a_drop_beyond_the_limit_is_refused_and_one_within_it_is_not(report):
    worse = _changed(INT8, top1=440 / 450)
    found = compare(report, worse)
    (change,) = [change for change in found.changes if change.name == INT8]
    assert change.delta_top1_pp == pytest.approx(-100 * 4 / 450)
    found.check(max_drop_pp=0.9)
    with pytest.raises(GateError, match=r"digits\.int8\.onnxruntime\.onnx lost 0\.89 pp of top-1, allowed 0\.5"):
        found.check(max_drop_pp=0.5)
    compare(worse, report).check(max_drop_pp=0)  # a gain


def test_a_slowdown_beyond_the_limit_is_refused(report):
    slower = _changed(INT8, timings=(timing(0.289 * 1.2),))
    found = compare(report, slower)
    found.check(max_drop_pp=0, max_slowdown=0.25)
    with pytest.raises(GateError, match="20 % slower, allowed 10 %"):
        found.check(max_slowdown=0.1)


@pytest.mark.parametrize(
    ("fields", "said"),
    [({"status": "failed", "reason": "no kernel"}, "is failed"), ({"top1": None}, "has no top-1 any more")],
)
def test_what_is_not_measured_any_more_does_not_pass_as_unchanged(report, fields, said):
    with pytest.raises(GateError, match=said):
        compare(report, _changed(INT8, **fields)).check(max_drop_pp=1)


def test_a_row_that_is_gone_does_not_pass(report):
    less = build(tuple(row for row in rows() if row.name != INT8))
    with pytest.raises(GateError, match="is not there any more"):
        compare(report, less).check(max_drop_pp=1)
    compare(less, report).check(max_drop_pp=0)  # a new row is no loss


def test_numbers_of_other_data_or_another_machine_are_not_compared(report):
    conditions = report.conditions.model_copy(update={"data_sha256": "0" * 64, "data": "other"})
    machine = report.environment.model_copy(update={"cpu": "Cortex-A78AE"})
    other = report.model_copy(update={"conditions": conditions, "environment": machine})
    found = compare(report, other)
    assert all(change.delta_top1_pp is None and change.speedup is None for change in found.changes)
    assert any("different data" in text for text in found.warnings)
    assert any("different machines" in text for text in found.warnings)
    with pytest.raises(GateError, match="was measured on other data, so its loss is unknown"):
        found.check(max_drop_pp=1)


def test_other_conditions_and_versions_are_warned_of(report):
    conditions = report.conditions.model_copy(update={"threads": 1, "tf32": True})
    other = report.model_copy(update={"conditions": conditions, "versions": {**report.versions, "torch": "2.16.0"}})
    said = compare(report, other).warnings
    assert "measured under different conditions: threads 0 and 1" in said
    assert "measured under different conditions: tf32 False and True" in said
    assert "other library versions: torch 2.15.0 → 2.16.0" in said


def test_a_negative_limit_makes_no_sense(report):
    with pytest.raises(UsageError, match="--max-drop is -1"):
        compare(report, report).check(max_drop_pp=-1)


def test_the_table_shows_before_and_after(report):
    from rich.console import Console

    console = Console(width=100, color_system=None)
    with console.capture() as capture:
        console.print(comparison_table(compare(report, _changed(INT8, top1=440 / 450, timings=(timing(0.578),)))))
    text = capture.get()
    assert max(map(len, text.splitlines())) <= 100
    assert "98.67 → 97.78" in text
    assert "−0.89" in text
    assert "0.50× as fast" in text
