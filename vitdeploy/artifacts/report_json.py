"""Reading ``report.json``: its schema and its digest are checked before a number counts as measured."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from vitdeploy.artifacts.other_files import not_an_artifact
from vitdeploy.artifacts.pages import other_files, warn_of_other_pages
from vitdeploy.errors import ArtifactError, FidelityWarning, warn
from vitdeploy.reading import first_problem, read_json
from vitdeploy.records import Report, sha256_of
from vitdeploy.records.report import DIGEST_KEY, REPORT, REPORT_FILES

SCHEMA_VERSION = 1


def read_report(path: Path | str) -> Report:
    """Read a ``report.json``, or the one in a folder; warn where pages or files beside it belong to an earlier one.

    Raises:
        ArtifactError: There is none, it is damaged or edited, or its schema is newer than this vitdeploy.
    """
    report = read_report_alone(path)
    place = Path(path) / REPORT if Path(path).is_dir() else Path(path)
    warn_of_other_pages(
        place, pages_beside(place), "bench again, or write_report(read_report(FOLDER), FOLDER) in Python"
    )
    if names := " and ".join(path.name for path in other_files(place, report.files)):
        warn(f"beside {str(place)!r}, {names} of another bench, or changed since: bench again", FidelityWarning)
    return report


def pages_beside(path: Path) -> tuple[Path, ...]:
    """Return the names of the pages that belong to a ``report.json``."""
    return tuple(path.with_name(name) for name in REPORT_FILES if name != REPORT) if path.name == REPORT else ()


def read_report_alone(path: Path | str) -> Report:
    """Read a report as ``read_report``, whatever lies beside it."""
    path = Path(path)
    if path.is_dir():
        if not (path / REPORT).is_file() and (refusal := not_an_artifact(path, "a report")) is not None:
            raise refusal
        path = path / REPORT
    if path.is_file() and path.suffix != ".json" and (refusal := not_an_artifact(path, "a report")) is not None:
        raise refusal
    raw = read_json(path, "a report.json of vd.bench()")
    version = raw.get("schema") if isinstance(raw, dict) else None
    if not isinstance(version, int):
        raise not_an_artifact(path, "a report") or ArtifactError(
            f"{str(path)!r} is no report: it has no schema number; expected one of vd.bench()"
        )
    if version > SCHEMA_VERSION:
        raise ArtifactError(
            f"{str(path)!r} has schema {version}, this vitdeploy reads up to {SCHEMA_VERSION}: update it"
        )
    digest = raw.pop(DIGEST_KEY, None)
    if digest is None:
        raise ArtifactError(
            f"{str(path)!r} has no {DIGEST_KEY}: an earlier vitdeploy wrote it, or it was edited; vd.bench() "
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
