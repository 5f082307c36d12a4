"""``run.json``: what ``vitdeploy run`` made each artifact of its folder from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vitdeploy.errors import ArtifactError
from vitdeploy.reading import first_problem, read_json
from vitdeploy.records import Record

RUN = "run.json"


class Provenance(Record):
    """What an artifact was made from: options as in the recipe, parents' payload digests."""

    options: dict[str, Any] = {}
    parents: dict[str, str] = {}


def read_run_record(path: Path) -> dict[str, Provenance]:
    """Return stage → provenance, in the order in which the stages ran.

    Raises:
        ArtifactError: There is no such file, or it is damaged.
    """
    raw = read_json(path, "the run.json of vd.run()")
    if not isinstance(raw, dict):
        raise ArtifactError(f"{str(path)!r} is not a record of a run: expected stages by name")
    try:
        return {name: Provenance.model_validate(entry) for name, entry in raw.items()}
    except ValidationError as error:
        raise ArtifactError(f"{str(path)!r} is not a record of a run: {first_problem(error)}") from error
