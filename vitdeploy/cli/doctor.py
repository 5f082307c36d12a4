"""``vitdeploy doctor``: what this machine can do."""

from __future__ import annotations

from vitdeploy.cli.flags import in_flags
from vitdeploy.cli.options import Json, On
from vitdeploy.cli.output import print_line

MARKS = {"ok": "ok", "warning": "careful", "missing": "missing", "no": "not here"}


def doctor(on: On = None, as_json: Json = False) -> None:
    """Show what this machine, or another one, can run, what it cannot, and the command that changes that."""
    import vitdeploy as vd
    from vitdeploy.cli.output import make_progress, print_json

    findings = vd.doctor() if on is None else vd.Remote(on).doctor(progress=make_progress())
    if as_json:
        print_json(findings)
        return
    area = ""
    for finding in findings:
        if finding.area != area:
            area = finding.area
            print_line(f"{area}:")
        print_line(f"  {MARKS[finding.status]:9}{finding.name}: {in_flags(finding.detail)}")
        if finding.remedy:
            print_line(f"{'':11}{in_flags(finding.remedy)}")
