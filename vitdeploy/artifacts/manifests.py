"""The manifest as text: written canonically, and verified when read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vitdeploy.errors import ArtifactError
from vitdeploy.records import Manifest, canonical_json, sha256_of
from vitdeploy.records.manifest import SCHEMA_VERSION


def manifest_text(manifest: Manifest) -> str:
    """Return the canonical JSON that is stored."""
    return canonical_json(manifest.model_dump(mode="json"))


def parse_manifest(text: str | bytes, path: Path) -> Manifest:
    """Read a manifest and verify its own digest over the text as stored, unknown keys included.

    Raises:
        ArtifactError: It is not JSON, is of a newer schema, lacks a key, or was changed after it was written.
    """
    where = f"the manifest of {str(path)!r}"
    try:
        raw: dict[str, Any] = json.loads(text)
    except (ValueError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{where} is not JSON: the file is damaged") from error
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
        first = error.errors()[0]
        raise ArtifactError(f"{where} is not valid: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def check_payload(manifest: Manifest, digest: str, path: Path, remedy: str) -> None:
    """Compare the digest of what was read with the one in the manifest.

    Raises:
        ArtifactError: They differ; ``remedy`` names the way out.
    """
    if digest != manifest.payload_sha256:
        raise ArtifactError(
            f"{str(path)!r} does not match the digest in its manifest: it was edited or damaged; {remedy}"
        )
