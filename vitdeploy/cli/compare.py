"""``vitdeploy compare``: two reports, or the history of several."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitdeploy.cli.options import Json, MaxDropBy


def compare(
    reports: Annotated[
        list[Path], typer.Argument(metavar="REPORT...", help="Two or more: a report.json each, or the folder of one.")
    ],
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
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write the history as a page with charts.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what changed from one report to another, or the history of several, and hold the newest to limits."""
    from vitdeploy import compare as compare_reports
    from vitdeploy import history, write_history
    from vitdeploy.artifacts.outputs import refuse_unwritable
    from vitdeploy.cli.output import print_json, print_line, print_rich
    from vitdeploy.errors import ArtifactError, UsageError
    from vitdeploy.report import comparison_table, history_table, layer_change_tables, read_report

    if rows is not None and len(rows) != 2:
        raise UsageError(f"--row names {len(rows)} rows, expected two: one of each report")
    if len(reports) != 2 and (rows is not None or per_layer):
        raise UsageError(f"--row and --per-layer compare two reports, got {len(reports)}")
    if html is not None:
        refuse_unwritable(html, "an HTML page", inputs=reports)
    several = history(reports) if len(reports) != 2 or html is not None else None
    if len(reports) == 2:
        before, after = reports
    else:
        before, after = sorted(reports, key=lambda path: read_report(path).created)[-2:]
    found = compare_reports(before, after, rows=rows)
    if as_json:
        print_json(found if len(reports) == 2 or several is None else several)
    elif several is not None and len(reports) != 2:
        print_rich(history_table(several))
    elif found.rows:
        print_rich(comparison_table(found))
        for table in layer_change_tables(found.layers) if per_layer else ():
            print_rich(table)
        if per_layer and not found.layers:
            print_line("no row has layer times in both reports: vitdeploy bench --per-layer measures them")
    else:
        for line in found.unmatched[1:]:
            print_line(line)
    if several is not None and html is not None:
        path = write_history(several, html)
        if not as_json:
            print_line(f"wrote {path}")
    found.check(max_drop_pp=max_drop_pp, max_drop_by=max_drop_by, max_slowdown_percent=max_slowdown_percent)
    if not found.rows and len(reports) == 2:
        raise ArtifactError(
            f"nothing can be compared: {found.unmatched[0]}; --row BEFORE --row AFTER compares two of other names"
        )
