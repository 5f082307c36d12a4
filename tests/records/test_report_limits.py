"""``Report.check`` judges the measured difference, or the worse end of its interval."""

from __future__ import annotations

from typing import Literal

import pytest
import sample_reports

from vitdeploy.errors import GateError, UsageError
from vitdeploy.records import Report, Row


def _report(delta: float | None, interval: tuple[float, float] | None) -> Report:
    row = Row(
        name="int8.onnx",
        backend="onnxruntime",
        precision="int8",
        status="ok",
        delta_top1_pp=delta,
        delta_ci95_pp=interval,
    )
    return sample_reports.build((row,))


@pytest.mark.parametrize(
    ("delta", "interval", "by_point", "by_interval"),
    [
        (-0.2, (-0.4, 0.1), None, None),
        (-0.2, (-1.4, 0.8), None, "int8.onnx may have lost up to 1.40 pp of top-1 (95 % interval), allowed 0.5"),
        (0.3, (-0.9, 1.5), None, "int8.onnx may have lost up to 0.90 pp of top-1 (95 % interval), allowed 0.5"),
        (
            -0.8,
            (-1.0, -0.6),
            "int8.onnx lost 0.80 pp of top-1, allowed 0.5",
            "int8.onnx may have lost up to 1.00 pp of top-1 (95 % interval), allowed 0.5",
        ),
        (-0.1, None, None, "the change of int8.onnx has no interval in this report"),
    ],
)
def test_the_point_and_the_interval_are_judged_apart(
    delta: float, interval: tuple[float, float] | None, by_point: str | None, by_interval: str | None
) -> None:
    report = _report(delta, interval)
    report.check()
    judged: tuple[tuple[Literal["point", "interval"], str | None], ...] = (
        ("point", by_point),
        ("interval", by_interval),
    )
    for by, refusal in judged:
        if refusal is None:
            report.check(max_drop_pp=0.5, max_drop_by=by)
            continue
        with pytest.raises(GateError) as caught:
            report.check(max_drop_pp=0.5, max_drop_by=by)
        assert str(caught.value) == refusal


def test_the_point_is_judged_by_default() -> None:
    _report(-0.2, (-9.0, 8.0)).check(max_drop_pp=0.5)


def test_a_report_in_which_nothing_is_compared_passes_no_limit() -> None:
    with pytest.raises(GateError, match="no candidate's top-1 could be compared with a baseline"):
        _report(None, None).check(max_drop_pp=5)


@pytest.mark.parametrize(
    ("top1", "delta", "refused"),
    [(0.7920, -0.80, False), (0.7919, -0.81, True), (0.81, 1.0, False), (0.5, -30.0, True)],
)
def test_the_share_of_the_baselines_top1_is_judged(top1: float, delta: float, refused: bool) -> None:
    row = _report(delta, None).rows[0].model_copy(update={"top1": top1})
    report = sample_reports.build((row,))
    if not refused:
        report.check(min_accuracy_ratio=0.99)
        return
    with pytest.raises(GateError, match=r"int8.onnx keeps 0\.\d{4} of the baseline's top-1, at least 0.99"):
        report.check(min_accuracy_ratio=0.99)


def test_both_limits_are_named_together_and_a_share_above_one_is_refused() -> None:
    row = _report(-2.0, None).rows[0].model_copy(update={"top1": 0.78})
    with pytest.raises(GateError, match=r"keeps 0.9750 .*; int8.onnx lost 2.00 pp"):
        sample_reports.build((row,)).check(max_drop_pp=0.5, min_accuracy_ratio=0.99)
    for wrong in (0.0, 1.5, float("nan")):
        with pytest.raises(UsageError, match="min_accuracy_ratio is"):
            sample_reports.build((row,)).check(min_accuracy_ratio=wrong)
