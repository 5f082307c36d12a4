"""The manifest of a bundle: what lies in it, by digest, and where it comes from."""

from __future__ import annotations

from typing import Literal

from vitdeploy.records.base import Record, sha256_of
from vitdeploy.records.manifest import Manifest
from vitdeploy.records.model import ModelSpec
from vitdeploy.records.preprocess import Preprocess
from vitdeploy.records.samples import TrainingData

MANIFEST = "manifest.json"
"""The file that makes a folder or an archive a bundle; a calibration set has one of that name too."""
SCHEMA_VERSION = 1


class BundledFile(Record):
    """One file of a bundle: its name, its bytes, their SHA-256."""

    name: str
    bytes: int
    sha256: str


class BundledGraph(Record):
    """An ONNX model of a bundle and its manifest, so that a device needs no graph library to read it."""

    name: str
    manifest: Manifest


class BundleManifest(Record):
    """What a bundle holds; there is no clock time, so the same inputs give the same manifest.

    ``graphs`` and ``engines`` (whose manifests lie beside them) stand in the order of preference. ``files`` are all
    files but the manifest itself and its signature. ``licence`` and ``source`` are of the weights, empty where their
    owner did not state them; ``trained_on`` are the trainings behind them, as far as vitdeploy ran them.
    """

    schema_version: int = SCHEMA_VERSION
    kind: Literal["bundle"] = "bundle"
    model: ModelSpec
    preprocess: Preprocess
    graphs: tuple[BundledGraph, ...]
    engines: tuple[str, ...] = ()
    licence: str = ""
    source: str = ""
    trained_on: tuple[TrainingData, ...] = ()
    producer: str = ""
    files: tuple[BundledFile, ...] = ()
    manifest_sha256: str = ""

    def digest(self) -> str:
        """Return the SHA-256 of the canonical manifest without ``manifest_sha256``."""
        return sha256_of(self.model_dump(mode="json", exclude={"manifest_sha256"}))

    def sealed(self) -> BundleManifest:
        """Return a copy with its digest filled in."""
        return self.model_copy(update={"manifest_sha256": self.digest()})
