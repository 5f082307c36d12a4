"""``vitdeploy compare``: two reports."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitdeploy.cli.options import Json, MaxDropBy

Report = Annotated[Path, typer.Argument(metavar="REPORT", help="A report.json, or the folder of one.")]


def compare(
    before: Report,
    after: Report,
    max_drop_pp: Annotated[
        float | None,
        typer.Option("--max-drop", min=0, metavar="PP", help="Exit with 3 where top-1 fell by more points than this."),
    ] = None,
    max_drop_by: MaxDropBy = "point",
    max_slowdown_percent: Annotated[
        float | None,
        typer.Option("--max-slowdown", min=0, metavar="PERCENT", help="Exit with 3 where a median rose by more."),
    ] = None,
    rows: Annotated[
        list[str] | None,
        typer.Option(
            "--row", metavar="NAME", help="Twice: that row of the first report against that row of the second."
        ),
    ] = None,
    per_layer: Annotated[
        bool, typer.Option("--per-layer", help="Show where the time went too, of rows that bench --per-layer profiled.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what changed from one report to another, and hold it to limits."""
    from vitdeploy import compare as compare_reports
    from vitdeploy.cli.output import print_json, print_line, print_rich
    from vitdeploy.errors import UsageError

    if rows is not None and len(rows) != 2:
        raise UsageError(f"--row names {len(rows)} rows, expected two: one of each report")
    found = compare_reports(before, after, rows=rows)
    if as_json:
        print_json(found)
    else:
        from vitdeploy.report import comparison_table, layer_change_tables

        print_rich(comparison_table(found))
        for table in layer_change_tables(found.layers) if per_layer else ():
            print_rich(table)
        if per_layer and not found.layers:
            print_line("no row has layer times in both reports: vitdeploy bench --per-layer measures them")
    found.check(max_drop_pp=max_drop_pp, max_drop_by=max_drop_by, max_slowdown_percent=max_slowdown_percent)
