"""A ``Report`` for people: a table, Markdown, an HTML page; two reports compared; sensitivities; fronts."""

from __future__ import annotations

from vitdeploy.artifacts.report_json import read_report
from vitdeploy.report.budget import front_table, read_front, write_front_page
from vitdeploy.report.compare import Comparison, compare, comparison_table
from vitdeploy.report.files import write_report
from vitdeploy.report.history import History, history, history_table, write_history
from vitdeploy.report.layer_profiles import layer_change_tables, layer_table
from vitdeploy.report.mlflow_run import log_to_mlflow
from vitdeploy.report.scenarios import scenario_lines
from vitdeploy.report.sensitivity import sensitivity_table, write_sensitivity
from vitdeploy.report.table import class_table, measurement_tables, table

__all__ = [
    "Comparison",
    "History",
    "class_table",
    "compare",
    "comparison_table",
    "front_table",
    "history",
    "history_table",
    "layer_change_tables",
    "layer_table",
    "log_to_mlflow",
    "measurement_tables",
    "read_front",
    "read_report",
    "scenario_lines",
    "sensitivity_table",
    "table",
    "write_front_page",
    "write_history",
    "write_report",
    "write_sensitivity",
]
