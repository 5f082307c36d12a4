"""The report as Markdown, for an issue, a wiki or a review."""

from __future__ import annotations

from collections.abc import Sequence

from vitdeploy.records import Report, Row, printable_record
from vitdeploy.report.layer_profiles import part_lines
from vitdeploy.report.scenarios import shown_scenarios
from vitdeploy.report.view import (
    SCOPES,
    SHOWN_CLASSES,
    STATUSES,
    Fact,
    class_lines,
    condition_facts,
    digest_facts,
    environment_facts,
    interval_text,
    latency_lines,
    layers_text,
    points_interval_text,
    remarks,
    rows_by_class,
    runtime_text,
)
from vitdeploy.text import UNKNOWN, size_text
from vitdeploy.wording import (
    decibel_text,
    ms_text,
    percent_text,
    points_text,
    ratio_text,
)


def render_markdown(report: Report) -> str:
    """Return the whole document."""
    report = printable_record(report)
    parts = [
        f"# {_escape(report.model)} on {_escape(report.conditions.data)}: bench report",
        f"{report.created} · {report.producer}",
        "## Verdict",
        "\n".join(f"- {_escape(text)}" for text in report.verdict),
        "## Results",
        "95 % intervals in brackets: Wilson for top-1, Tango's paired score interval for Δ.",
        _results(report),
        *_by_class(report),
        "## Latency",
        "Median over all calls of all rounds; speed-ups are ratios of medians on the same device, with a bootstrap "
        "interval over rounds.",
        _latency(report),
        "## Cost",
        "Load time, first inference and peak memory of a process that does nothing else.",
        _cost(report),
        *_throughput(report),
        *_by_threads(report),
        *_scenarios(report),
        *_layers(report),
    ]
    sentences = remarks(report.rows)
    if sentences:
        parts += ["## Remarks", "\n".join(f"- **{_escape(name)}**: {_escape(text)}" for name, text in sentences)]
    parts += ["## Conditions", _facts(condition_facts(report))]
    if report.command or digest_facts(report):
        parts += ["## Provenance", *_provenance(report)]
    parts += ["## Machine", _facts([*environment_facts(report.environment), *_versions(report)])]
    return "\n\n".join(parts) + "\n"


def _provenance(report: Report) -> list[str]:
    command = f"    {report.command}"  # by its indent a line of code, whatever is in it
    again = ["To measure it again, where the artifacts lie:", command] if report.command else []
    return [*again, _facts(digest_facts(report))]


def _results(report: Report) -> str:
    head = ("Artifact", "Runtime", "Precision", "Status", "Top-1", "Δ top-1 (pp)", "Agreement", "SQNR", "Size")
    return _table(head, [_result(row, report) for row in report.rows], right=5)


def _result(row: Row, report: Report) -> tuple[str, ...]:
    base = row.name == report.baseline.row
    return (
        row.name,
        runtime_text(row),
        row.precision,
        STATUSES[row.status],
        _with(percent_text(row.top1), interval_text(row.top1_ci95, 100)),
        "baseline" if base else _with(points_text(row.delta_top1_pp), points_interval_text(row.delta_ci95_pp)),
        percent_text(row.agreement, 1),
        decibel_text(row.logits_sqnr_db, row.logits_identical),
        size_text(row.size_bytes),
    )


def _by_class(report: Report) -> list[str]:
    """Return the section, which is left out where nothing was counted by class."""
    lines, rows = class_lines(report), rows_by_class(report)
    if not lines:
        return []
    head = ("Class", "Images", *(row.name for row in rows))
    shown = [(line.name, str(line.images), *line.cells) for line in lines[:SHOWN_CLASSES]]
    parts = ["## By class", "Right answers, worst class first.", _table(head, shown, right=len(head) - 1)]
    more = len(lines) - len(shown)
    return [*parts, f"{more} more classes are in report.json and report.html."] if more else parts


def _latency(report: Report) -> str:
    head = ("Artifact", "Batch", "Scope", "p50 ms", "p90 ms", "p99 ms", "Images/s", "Speed-up")
    lines = [
        (
            row.name,
            str(timing.batch),
            SCOPES[timing.scope],
            ms_text(timing.p50_ms),
            ms_text(timing.p90_ms),
            ms_text(timing.p99_ms),
            f"{timing.images_per_s:.0f}",
            _with(ratio_text(timing.speedup), interval_text(timing.speedup_ci95)),
        )
        for row, timing in latency_lines(report)
    ]
    return _table(head, lines, right=5) if lines else "Nothing was timed on this machine."


def _cost(report: Report) -> str:
    head = ("Artifact", "Load ms", "First inference ms", "Peak memory", "Layers by precision")
    lines = [
        (
            row.name,
            ms_text(row.load_ms),
            ms_text(row.first_inference_ms),
            size_text(row.peak_memory_bytes),
            layers_text(row),
        )
        for row in report.rows
    ]
    return _table(head, lines, right=4)


def _throughput(report: Report) -> list[str]:
    """Return the section, which is left out where no row was run with several streams."""
    lines = [
        (row.name, SCOPES[one.scope], str(one.batch), str(one.streams), f"{one.images_per_s:.0f}")
        for row in report.rows
        for one in row.throughput
    ]
    head = ("Artifact", "Scope", "Batch", "Streams", "Images/s")
    return ["## Throughput", "Several execution contexts at once.", _table(head, lines, right=3)] if lines else []


def _by_threads(report: Report) -> list[str]:
    """Return the section, which is left out where only one number of threads was timed."""
    lines = [
        (row.name, str(one.batch), str(one.threads), ms_text(one.p50_ms), f"{one.images_per_s:.0f}")
        for row in report.rows
        for one in row.by_threads
    ]
    head = ("Artifact", "Batch", "Threads", "p50, ms", "Images/s")
    return ["## Threads", "On the CPU, all in turns.", _table(head, lines, right=4)] if lines else []


def _scenarios(report: Report) -> list[str]:
    """Return the section, which is left out where no scenario was run."""
    lines = [
        (one.row, one.name, f"{one.result} ({one.what})", one.queries, one.seconds, one.rules)
        for one in shown_scenarios(report)
    ]
    head = ("Artifact", "Scenario", "Result", "Count", "Seconds", "Counts and duration")
    return ["## Scenarios", "As MLPerf Inference defines them.", _table(head, lines, right=0)] if lines else []


def _layers(report: Report) -> list[str]:
    """Return the section, which is left out where no layer was profiled."""
    lines = [
        (row.name, line.title, line.precisions, line.ms, line.share)
        for row in report.rows
        if row.layer_profile is not None
        for line in part_lines(row.layer_profile)
    ]
    if not lines:
        return []
    head = ("Artifact", "Part", "Precision", "ms", "Share")
    return ["## Where the time goes", "By each runtime's own profiler.", _table(head, lines, right=2)]


def _versions(report: Report) -> list[Fact]:
    return [Fact("Libraries", ", ".join(f"{name} {version}" for name, version in report.versions.items()) or UNKNOWN)]


def _facts(facts: Sequence[Fact]) -> str:
    return "\n".join(f"- {fact.name}: {_escape(fact.value)}" for fact in facts)


def _table(head: Sequence[str], lines: Sequence[Sequence[str]], *, right: int) -> str:
    """Return a table whose last ``right`` columns are numbers."""
    rule = ["---"] * (len(head) - right) + ["---:"] * right
    return "\n".join("| " + " | ".join(map(_escape, line)) + " |" for line in (head, rule, *lines))


def _with(value: str, interval: str) -> str:
    return f"{value} {interval}" if interval else value


def _escape(text: str) -> str:
    for special in "\\`*_[]<>|":
        text = text.replace(special, f"\\{special}")
    return " ".join(text.split())
