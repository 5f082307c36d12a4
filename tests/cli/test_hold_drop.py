"""``bench --max-drop`` judges the measured difference, or the worse end of its interval."""

from __future__ import annotations

import pytest
import sample_reports

from vitdeploy.cli.bench import hold_drop
from vitdeploy.errors import GateError
from vitdeploy.records import Report, Row


def _report(delta: float, interval: tuple[float, float] | None) -> Report:
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
        (-0.2, (-0.4, 0.1), True, True),
        (-0.2, (-1.4, 0.8), True, False),
        (0.3, (-0.9, 1.5), True, False),
        (-0.8, (-1.0, -0.6), False, False),
        (-0.1, None, True, False),
    ],
)
def test_the_point_and_the_interval_are_judged_apart(delta, interval, by_point, by_interval):
    report = _report(delta, interval)
    for by, passes in (("point", by_point), ("interval", by_interval)):
        if passes:
            hold_drop(report, 0.5, by)
        else:
            with pytest.raises(
                GateError,
                match=r"^--max-drop 0\.5: (top-1 of int8\.onnx (dropped by|may have dropped, )|the drop of int8)",
            ):
                hold_drop(report, 0.5, by)


def test_the_point_is_judged_by_default():
    hold_drop(_report(-0.2, (-9.0, 8.0)), 0.5)
