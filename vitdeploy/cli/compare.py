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
    as_json: Json = False,
) -> None:
    """Show what changed from one report to another, and hold it to limits."""
    from vitdeploy import compare as compare_reports
    from vitdeploy.cli.output import print_json, print_rich

    found = compare_reports(before, after)
    if as_json:
        print_json(found)
    else:
        from vitdeploy.report import comparison_table

        print_rich(comparison_table(found))
    found.check(max_drop_pp=max_drop_pp, max_drop_by=max_drop_by, max_slowdown_percent=max_slowdown_percent)
