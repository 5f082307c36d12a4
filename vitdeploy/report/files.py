"""``report.json``, ``report.md`` and ``report.html`` in a folder; and reading the first of them."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from vitdeploy.artifacts import write_atomically
from vitdeploy.errors import ArtifactError
from vitdeploy.reading import first_problem, read_json
from vitdeploy.records import Report, sha256_of
from vitdeploy.report.html import render_html
from vitdeploy.report.markdown import render_markdown
from vitdeploy.text import printable_json

SCHEMA_VERSION = 1
DIGEST_KEY = "report_sha256"


def write_report(report: Report, folder: Path | str) -> Path:
    """Write the three files and return the path of ``report.html``.

    The JSON is written last: where it is there, the others are too.

    Raises:
        ArtifactError: The folder cannot be written, or the disk is full.
    """
    folder = Path(folder)
    write_atomically(folder / "report.html", render_html(report))
    write_atomically(folder / "report.md", render_markdown(report))
    write_atomically(folder / "report.json", report_json(report))
    return folder / "report.html"


def report_json(report: Report) -> str:
    """Return ``report.json``: indented, keys in the order of the schema, null for what was not measured.

    The last key is the digest of all others, so that a report which was damaged or edited does not pass for a measured
    one.
    """
    content = report.model_dump(mode="json")
    content[DIGEST_KEY] = sha256_of(content)
    return printable_json(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)) + "\n"


def read_report(path: Path | str) -> Report:
    """Read a ``report.json``, or the one in a folder.

    Raises:
        ArtifactError: There is none, it is damaged or edited, or its schema is newer than this vitdeploy.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "report.json"
    raw = read_json(path, "a report.json of 'vitdeploy bench'")
    version = raw.get("schema") if isinstance(raw, dict) else None
    if not isinstance(version, int):
        raise ArtifactError(f"{str(path)!r} is no report: it has no schema number; expected one of 'vitdeploy bench'")
    if version > SCHEMA_VERSION:
        raise ArtifactError(
            f"{str(path)!r} has schema {version}, this vitdeploy reads up to {SCHEMA_VERSION}: update it"
        )
    digest = raw.pop(DIGEST_KEY, None)
    if digest is None:
        raise ArtifactError(
            f"{str(path)!r} has no {DIGEST_KEY}: an earlier vitdeploy wrote it, or it was edited; 'vitdeploy bench' "
            "makes a report that can be compared"
        )
    if digest != sha256_of(raw):
        raise ArtifactError(
            f"{str(path)!r} does not match its digest: it was edited or damaged, its numbers are not those measured: "
            "take the original, or bench again"
        )
    try:
        return Report.model_validate(raw)
    except ValidationError as error:
        raise ArtifactError(f"{str(path)!r} is not a valid report: {first_problem(error)}") from error
