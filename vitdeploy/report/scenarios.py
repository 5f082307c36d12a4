"""What rows did under the loads of MLPerf Inference, in words."""

from __future__ import annotations

from dataclasses import dataclass

from vitdeploy.measure.scenarios import RULE_SECONDS
from vitdeploy.records import Report, printable_record
from vitdeploy.records.scenario import ScenarioResult
from vitdeploy.text import UNKNOWN
from vitdeploy.wording import ms_text


@dataclass(frozen=True)
class ShownScenario:
    """One row under one scenario: its number, what that is, and whether counts and duration are those of the rules."""

    row: str
    name: str
    result: str
    what: str
    queries: str
    seconds: str
    rules: str


def shown_scenarios(report: Report) -> list[ShownScenario]:
    """Return every scenario of every row."""
    return [_shown(row.name, one) for row in report.rows for one in row.scenarios]


def scenario_lines(report: Report) -> list[str]:
    """Return a sentence for each scenario of each row."""
    return [
        f"{one.row}, {one.name}: {one.result} ({one.what}), {one.queries} in {one.seconds} s; {one.rules}"
        for one in shown_scenarios(printable_record(report))
    ]


def _shown(row: str, one: ScenarioResult) -> ShownScenario:
    what = {
        "single-stream": "90th percentile",
        "multi-stream": f"99th percentile of a query of {one.samples_per_query}",
        "offline": f"batch {one.batch}",
        "server": f"99 % within {one.bound_ms or 0:g} ms, batches up to {one.batch}",
    }[one.name]
    if one.by_the_rules:
        rules = "as the rules ask"
    elif one.shortfall:
        rules = one.shortfall
    else:
        rules = f"shorter than the {RULE_SECONDS:.0f} s that the rules ask for"
    count = f"{one.samples} images" if one.name == "offline" else f"{one.queries} queries"
    return ShownScenario(row, one.name, _metric(one), what, count, f"{one.seconds:.1f}", rules)


def _metric(one: ScenarioResult) -> str:
    if one.metric is None:
        return UNKNOWN
    if one.name in ("single-stream", "multi-stream"):
        return f"{ms_text(one.metric)} ms"
    return f"{one.metric:.4g} {'images/s' if one.name == 'offline' else 'queries/s'}"
