"""``report.json``, ``report.md`` and ``report.html`` in a folder."""

from __future__ import annotations

import json
from pathlib import Path

from vitdeploy.artifacts import write_atomically
from vitdeploy.artifacts.outputs import refuse_unwritable_folder
from vitdeploy.records import Report, sha256_of
from vitdeploy.records.report import DIGEST_KEY, REPORT, REPORT_FILES
from vitdeploy.report.html import render_html
from vitdeploy.report.markdown import render_markdown
from vitdeploy.text import printable_json


def write_report(report: Report, folder: Path | str) -> Path:
    """Write the three files and return the path of ``report.html``.

    The JSON is written last: where it is there, the others are too.

    Raises:
        ArtifactError: The folder cannot be written, has files of these names that vitdeploy did not write, or the
            disk is full.
    """
    folder = Path(folder)
    refuse_unwritable_folder(folder, REPORT_FILES)
    write_atomically(folder / "report.html", render_html(report))
    write_atomically(folder / "report.md", render_markdown(report))
    write_atomically(folder / REPORT, report_json(report))
    return folder / "report.html"


def report_json(report: Report) -> str:
    """Return ``report.json``: indented, keys in the order of the schema, null for what was not measured.

    The last key is the digest of all others, so that a report which was damaged or edited does not pass for a measured
    one.
    """
    content = report.model_dump(mode="json")
    content[DIGEST_KEY] = sha256_of(content)
    return printable_json(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)) + "\n"
