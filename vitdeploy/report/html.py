"""The report as one HTML file that asks nothing of any other: style and plots are in it.

Its one script sorts tables. The page's own policy allows that text by its digest and no other, so nothing that a report
holds can run; without it the page lacks nothing but the sorting.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from vitdeploy import wording
from vitdeploy.records import Report, printable_record
from vitdeploy.records.report import BACKEND_TITLES
from vitdeploy.report import view
from vitdeploy.report.error_profiles import error_profiles
from vitdeploy.report.layer_profiles import change_text, layer_profiles
from vitdeploy.report.plots import latency_bars, scatters, size_bars, thread_bars
from vitdeploy.report.scenarios import shown_scenarios
from vitdeploy.report.timeline import timelines
from vitdeploy.text import size_text

if TYPE_CHECKING:
    from jinja2 import Environment

SHAPE_TITLES = {"circle": "PyTorch", "square": "ONNX Runtime", "diamond": "OpenVINO", "triangle": "TensorRT"}


def render_html(report: Report) -> str:
    """Return the page."""
    return templates().get_template("report.html.j2").render(_context(printable_record(report)))


def _context(report: Report) -> dict[str, Any]:
    plots = scatters(report)
    script = templates().get_template("sort.js.j2").render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return {
        "sort_script": script,
        "sort_digest": f"sha256-{digest}",
        "report": report,
        "rows": report.rows,
        "baseline_row": report.baseline.row,
        "baselines": set(report.baseline.latency_rows.values()),
        "scatters": plots,
        "latency_bars": latency_bars(report),
        "size_bars": size_bars(report),
        "error_profiles": error_profiles(report),
        "layer_profiles": layer_profiles(report, {row.name: view.runtime_text(row) for row in report.rows}),
        "by_threads": [(row.name, one) for row in report.rows for one in row.by_threads],
        "thread_bars": thread_bars(report),
        "throughput": [(row.name, one) for row in report.rows for one in row.throughput],
        "scenarios": shown_scenarios(report),
        "timelines": timelines(report),
        "rows_by_class": view.rows_by_class(report),
        "class_lines": view.class_lines(report),
        "shown_classes": view.SHOWN_CLASSES,
        "timings": view.latency_lines(report),
        "remarks": view.remarks(report.rows),
        "conditions": view.condition_facts(report),
        "digests": view.digest_facts(report),
        "machine": view.environment_facts(report.environment),
        "precisions": list(dict.fromkeys(row.precision for row in report.rows)),
        "shapes_used": {SHAPE_TITLES[point.shape] for plot in plots for point in plot.points},
        "statuses": view.STATUSES,
        "scopes": view.SCOPES,
        "titles": BACKEND_TITLES,
    }


@cache
def templates() -> Environment:
    """Return the templates of all pages, with the wording of numbers as filters."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(
        loader=PackageLoader("vitdeploy.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {
        "ms": wording.ms_text,
        "size": size_text,
        "percent": wording.percent_text,
        "points": wording.points_text,
        "points_interval": view.points_interval_text,
        "ms_interval": view.ms_interval_text,
        "ratio": wording.ratio_text,
        "interval": view.interval_text,
        "runtime": view.runtime_name,
        "threads": view.row_threads,
        "unbroken": view.unbroken,
        "breakable": _breakable,
        "is_warning": view.is_warning,
        "layers": view.layers_text,
    }
    templates.globals["decibel"] = wording.decibel_text
    templates.globals["change"] = change_text
    return templates


def _breakable(name: str) -> Markup:
    """Return a name that may go on in the next line after each of its dots."""
    return Markup(".<wbr>").join(name.split("."))
