"""``report.json``, ``report.md`` and ``report.html`` in a folder."""

from __future__ import annotations

import json
from pathlib import Path

from vitdeploy.artifacts.files import FilesTogether
from vitdeploy.artifacts.outputs import refuse_unwritable_folder
from vitdeploy.artifacts.pages import write_with_pages
from vitdeploy.records import Report, sha256_of
from vitdeploy.records.report import DIGEST_KEY, REPORT, REPORT_FILES
from vitdeploy.report.html import render_html
from vitdeploy.report.markdown import render_markdown
from vitdeploy.text import printable_json


def write_report(report: Report, folder: Path | str, *, files: FilesTogether | None = None) -> Path:
    """Write the three files and return the path of ``report.html``.

    The JSON takes its place first, and each page has its digest: what a kill leaves of an earlier report beside it is
    known as that, and ``write_report(read_report(folder), folder)`` makes it anew.

    Args:
        report: What ``bench`` has returned.
        folder: Where they go.
        files: What ``bench`` has written and holds back, to take its place with them.
    Raises:
        ArtifactError: The folder cannot be written, has files of these names that vitdeploy did not write, or the
            disk is full; what was there is untouched.
    """
    folder = Path(folder)
    refuse_unwritable_folder(folder, REPORT_FILES)
    pages = {"report.md": render_markdown(report), "report.html": render_html(report)}
    shown = ((folder / name, page) for name, page in pages.items())
    write_with_pages(folder / REPORT, report_json(report), shown, files)
    return folder / "report.html"


def report_json(report: Report) -> str:
    """Return ``report.json``: indented, keys in the order of the schema, null for what was not measured.

    The last key is the digest of all others, so that a report which was damaged or edited does not pass for a measured
    one.
    """
    content = report.model_dump(mode="json")
    content[DIGEST_KEY] = sha256_of(content)
    return printable_json(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)) + "\n"
