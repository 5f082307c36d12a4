"""A calibration set: a folder of image files and ``manifest.json``, which holds a digest for each of them."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from pydantic import ConfigDict, ValidationError

from vitdeploy.datasets.base import content_digest, pixels_id
from vitdeploy.datasets.folder import ImageFiles
from vitdeploy.datasets.layout import images_below
from vitdeploy.errors import ArtifactError, DataError
from vitdeploy.preprocess import open_image
from vitdeploy.reading import first_problem, parse_json, read_bytes, read_json, sha256_of_file
from vitdeploy.records import Check, Preprocess, Record, canonical_json, sha256_of

MANIFEST_NAME = "manifest.json"
KIND: Literal["calibration-set"] = "calibration-set"
_REMEDY = "make the set again with vd.make_calibration_set()"
_LISTED = 5


class CalibrationEntry(Record):
    """One image: its file within the folder, digest of the file, id of the sample, and what it was taken from.

    ``sample_id`` equals ``sha256`` where the file is a copy of the original; where it was written from pixels it is the
    digest of the pixels, so that it does not depend on the version of the PNG encoder.
    """

    path: str
    sha256: str
    sample_id: str
    label: str | None
    original: str


class CalibrationSet(Record):
    """``manifest.json``: where the samples come from and what they are.

    ``set_sha256`` is over classes, sample ids and labels, ``manifest_sha256`` over everything but itself.
    """

    model_config = ConfigDict(extra="forbid")

    schema_version: int = 1
    kind: Literal["calibration-set"] = KIND
    data: str
    samples: int
    seed: int
    classes: tuple[str, ...]
    source: str
    licence: str
    preprocess: Preprocess | None = None
    producer: str
    entries: tuple[CalibrationEntry, ...]
    set_sha256: str
    manifest_sha256: str = ""

    def sealed(self) -> CalibrationSet:
        """Return a copy with ``manifest_sha256`` filled in."""
        content = self.model_dump(mode="json", exclude={"manifest_sha256"})
        return self.model_copy(update={"manifest_sha256": sha256_of(content)})

    def text(self) -> str:
        """Return the JSON that is stored, one entry a line."""
        content = self.model_dump(mode="json")
        entries = ",\n  ".join(canonical_json(entry) for entry in content.pop("entries"))
        head = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False)
        return f'{head[: head.rindex("}")].rstrip()},\n "entries": [\n  {entries}\n ]\n}}\n'

    def labels(self) -> list[int] | None:
        """Return the class of every entry as an index, None where the set is unlabelled."""
        if not self.classes:
            return None
        return [self.classes.index(entry.label or "") for entry in self.entries]


class CalibrationFiles(ImageFiles):
    """The images of a calibration set as a dataset; ids and labels are those of its ``manifest``."""

    def __init__(self, root: Path, manifest: CalibrationSet) -> None:
        names = [entry.path for entry in manifest.entries]
        super().__init__(str(root), root, names, manifest.labels(), list(manifest.classes))
        self.preprocess, self.source, self.licence = manifest.preprocess, manifest.source, manifest.licence
        self.manifest = manifest

    def sample_id(self, index: int) -> str:
        return self.manifest.entries[index].sample_id


def is_calibration_set(root: Path) -> bool:
    """Return whether a folder has a manifest of this kind, or one so damaged that it may have been of this kind."""
    try:
        data = read_bytes(Path(root) / MANIFEST_NAME)
    except ArtifactError:
        return False
    try:
        raw = parse_json(data)
    except ValueError:
        return True
    return not raw or (isinstance(raw, dict) and raw.get("kind") == KIND)


def read_calibration_manifest(root: Path) -> CalibrationSet:
    """Read ``manifest.json`` and verify what can be verified without the images.

    Raises:
        ArtifactError: There is none, it is damaged or edited, or it contradicts itself.
    """
    path = Path(root) / MANIFEST_NAME
    raw = read_json(path, f"a calibration set's manifest, so it is damaged; {_REMEDY}")
    try:
        manifest = CalibrationSet.model_validate(raw)
    except ValidationError as error:
        raise ArtifactError(
            f"{str(path)!r} is not a calibration set's manifest: {first_problem(error)}; {_REMEDY}"
        ) from error
    if manifest.sealed().manifest_sha256 != manifest.manifest_sha256:
        raise ArtifactError(f"{str(path)!r} does not match its digest: it was edited or damaged; {_REMEDY}")
    if (problem := _contradiction(manifest)) is not None:
        raise ArtifactError(f"{str(path)!r} contradicts itself: {problem}; {_REMEDY}")
    return manifest


def open_calibration_set(root: Path) -> CalibrationFiles:
    """Open a calibration set after comparing every file with its digest.

    Raises:
        ArtifactError: The manifest is damaged, or a file is missing, changed, or not listed.
    """
    manifest = read_calibration_manifest(root)
    for check in (_files_check(root, manifest), _unlisted_check(root, manifest)):
        if check.status == "failed":
            raise ArtifactError(f"calibration set {str(root)!r}: {check.detail}; {_REMEDY}")
    return CalibrationFiles(root, manifest)


def check_files(root: Path, manifest: CalibrationSet) -> tuple[Check, ...]:
    """Compare a calibration set with its manifest, image by image, decoding each."""
    return (_files_check(root, manifest), _unlisted_check(root, manifest), _ids_check(root, manifest))


def _contradiction(manifest: CalibrationSet) -> str | None:
    for entry in manifest.entries:
        path = PurePosixPath(entry.path)
        if path.is_absolute() or ".." in path.parts or "\\" in entry.path:
            return f"the path {entry.path!r} leads out of the folder"
        if (entry.label is None) != (not manifest.classes) or (entry.label and entry.label not in manifest.classes):
            return f"{entry.path!r} has the label {entry.label!r}, which is not one of its classes"
    if len({entry.path for entry in manifest.entries}) != len(manifest.entries):
        return "a path is listed twice"
    if manifest.samples != len(manifest.entries) or not manifest.entries:
        return f"it says {manifest.samples} samples and lists {len(manifest.entries)}"
    labels = manifest.labels()
    ids = [entry.sample_id for entry in manifest.entries]
    digest = content_digest(manifest.classes, ids, None if labels is None else np.array(labels, np.int64))
    return None if digest == manifest.set_sha256 else "the digest of the set is not that of its samples and labels"


def _files_check(root: Path, manifest: CalibrationSet) -> Check:
    problems: list[str] = []
    for entry in manifest.entries:
        try:
            if sha256_of_file(root / entry.path) != entry.sha256:
                problems.append(f"{entry.path!r} was changed")
        except ArtifactError:
            problems.append(f"{entry.path!r} is missing or cannot be read")
    return _check("files", problems, f"{len(manifest.entries)} files match their digests")


def _unlisted_check(root: Path, manifest: CalibrationSet) -> Check:
    listed = {entry.path for entry in manifest.entries}
    problems = [f"{path!r} is not listed in the manifest" for path in images_below(root) if path not in listed]
    return _check("unlisted files", problems, "every image is listed")


def _ids_check(root: Path, manifest: CalibrationSet) -> Check:
    problems: list[str] = []
    for entry in manifest.entries:
        try:
            image = open_image(root / entry.path)
        except DataError as error:
            problems.append(str(error))
            continue
        if entry.sample_id not in {entry.sha256, pixels_id(image)}:
            problems.append(f"{entry.path!r} is not the sample that the manifest names")
    return _check("sample ids", problems, "every id is that of the image")


def _check(name: str, problems: list[str], passed: str) -> Check:
    if not problems:
        return Check(name=name, status="passed", detail=passed)
    more = f" and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
    return Check(name=name, status="failed", detail="; ".join(problems[:_LISTED]) + more)
