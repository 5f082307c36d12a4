"""The manifest as text: written canonically, and verified when read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vitdeploy.errors import ArtifactError
from vitdeploy.reading import first_problem, parse_json
from vitdeploy.records import Manifest, canonical_json, sha256_of
from vitdeploy.records.manifest import SCHEMA_VERSION


def manifest_text(manifest: Manifest) -> str:
    """Return the canonical JSON that is stored."""
    return canonical_json(manifest.model_dump(mode="json"))


def parse_manifest(text: str | bytes, path: Path) -> Manifest:
    """Read a manifest from its JSON, see ``manifest_of``.

    Raises:
        ArtifactError: It is not JSON, or ``manifest_of`` refuses it.
    """
    try:
        return manifest_of(parse_json(text), path)
    except ValueError as error:
        raise ArtifactError(f"the manifest of {str(path)!r} is not JSON: the file is damaged ({error})") from error


def manifest_of(raw: Any, path: Path) -> Manifest:
    """Return a manifest that was read as JSON, its own digest verified over what is stored, unknown keys included.

    Raises:
        ArtifactError: It is no table, is of a newer schema, lacks a key, or was changed after it was written.
    """
    where = f"the manifest of {str(path)!r}"
    if not isinstance(raw, dict) or "manifest_sha256" not in raw:
        raise ArtifactError(f"{where} has no digest: the file is damaged or not one of vitdeploy's")
    version = raw.get("schema_version")
    if not isinstance(version, int):
        raise ArtifactError(f"{where} has schema {version!r}, expected a number: it was edited or damaged")
    if version > SCHEMA_VERSION:
        raise ArtifactError(f"{where} has schema {version}, this vitdeploy reads up to {SCHEMA_VERSION}: update it")
    if sha256_of({key: value for key, value in raw.items() if key != "manifest_sha256"}) != raw["manifest_sha256"]:
        raise ArtifactError(f"{where} does not match its digest: it was edited or damaged")
    try:
        return Manifest.model_validate(raw)
    except ValidationError as error:
        raise ArtifactError(f"{where} is not valid: {first_problem(error)}") from error


def check_payload(manifest: Manifest, digest: str, path: Path, remedy: str) -> None:
    """Compare the digest of what was read with the one in the manifest.

    Raises:
        ArtifactError: They differ; ``remedy`` names the way out.
    """
    if digest != manifest.payload_sha256:
        raise ArtifactError(
            f"{str(path)!r} does not match the digest in its manifest: it was edited or damaged; {remedy}"
        )
