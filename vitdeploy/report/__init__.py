"""A ``Report`` for people: a table in the terminal, Markdown, a self-contained HTML page; and two reports compared."""

from __future__ import annotations

from vitdeploy.artifacts.report_json import read_report
from vitdeploy.report.compare import Comparison, compare, comparison_table
from vitdeploy.report.files import write_report
from vitdeploy.report.table import table

__all__ = ["Comparison", "compare", "comparison_table", "read_report", "table", "write_report"]
