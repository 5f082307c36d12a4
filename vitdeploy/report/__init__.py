"""A ``Report`` for people: a table, Markdown, an HTML page; two reports compared; and sensitivity analyses."""

from __future__ import annotations

from vitdeploy.artifacts.report_json import read_report
from vitdeploy.report.compare import Comparison, compare, comparison_table
from vitdeploy.report.files import write_report
from vitdeploy.report.sensitivity import sensitivity_table, write_sensitivity
from vitdeploy.report.table import class_table, table

__all__ = [
    "Comparison",
    "class_table",
    "compare",
    "comparison_table",
    "read_report",
    "sensitivity_table",
    "table",
    "write_report",
    "write_sensitivity",
]
