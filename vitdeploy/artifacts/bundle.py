"""Bundle: all that a device needs of one model, as a folder or a zip archive, each file known by its digest."""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from vitdeploy import environment
from vitdeploy.artifacts.engine import Engine, read_engine
from vitdeploy.artifacts.files import atomic_folder, atomic_path
from vitdeploy.artifacts.golden import Golden
from vitdeploy.artifacts.onnx_model import OnnxModel
from vitdeploy.artifacts.other_files import ARTIFACT, not_an_artifact
from vitdeploy.artifacts.signature import SIGNATURE, check_signature
from vitdeploy.errors import ArtifactError
from vitdeploy.reading import (
    first_problem,
    is_of_system,
    missing,
    plain_name,
    read_head,
    read_json,
    read_tensors,
    refuse_stand_in,
    require_text,
    sha256_of_file,
    top_folder,
    unpack_zip,
)
from vitdeploy.records import BundledFile, BundleManifest, canonical_json
from vitdeploy.records.bundle import MANIFEST, SCHEMA_VERSION

GOLDEN = "golden.safetensors"
ZIP_SUFFIX = ".zip"
_ZIP_START = b"PK\x03\x04"
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)
"""The earliest that the format can say: an archive of the same files is the same bytes on any day."""


@dataclass(frozen=True)
class Bundle:
    """A bundle whose every file was compared with its digest; made by ``read_bundle``.

    ``folder`` holds its files: ``path`` itself, or where the archive was unpacked to.
    """

    path: Path
    folder: Path
    manifest: BundleManifest

    @property
    def is_signed(self) -> bool:
        """Return whether the bundle carries a signature, by whomever."""
        return (self.folder / SIGNATURE).is_file()

    def graphs(self) -> tuple[OnnxModel, ...]:
        """Return the ONNX models in the order of preference; no graph library is needed."""
        golden = self._golden()
        return tuple(
            OnnxModel(self.folder / graph.name, graph.manifest, golden.get(graph.name))
            for graph in self.manifest.graphs
        )

    def engines(self) -> tuple[Engine, ...]:
        """Return the engines in the order of preference."""
        return tuple(read_engine(self.folder / name) for name in self.manifest.engines)

    def _golden(self) -> dict[str, Golden]:
        if not any(file.name == GOLDEN for file in self.manifest.files):
            return {}
        tensors = read_tensors(self.folder / GOLDEN)
        return {
            name.removeprefix("outputs."): Golden(tensors["pixels"], tensors["reference"], outputs)
            for name, outputs in tensors.items()
            if name.startswith("outputs.")
        }


def is_bundle(path: Path) -> bool:
    """Return whether a folder or a zip archive is a bundle, by its manifest; nothing is verified."""
    try:
        if path.is_dir():
            raw = read_json(path / MANIFEST) if (path / MANIFEST).is_file() else None
            return isinstance(raw, dict) and raw.get("kind") == "bundle"
        if not path.is_file() or read_head(path, len(_ZIP_START)) != _ZIP_START:
            return False
        with zipfile.ZipFile(path) as archive:
            names = list(map(plain_name, archive.namelist()))
            return top_folder(names) + MANIFEST in names
    except (ArtifactError, OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return False


def read_bundle(path: Path | str, public_key: Path | str | None = None) -> Bundle:
    """Open a bundle and compare every file with its digest; an archive is unpacked into the cache folder first.

    Args:
        path: A folder or a zip archive.
        public_key: The owner's key (Ed25519, PEM), whose signature the bundle must carry; None takes any bundle.
    Raises:
        ArtifactError: It is missing, no bundle, damaged, changed, not signed with that key, or holds what its manifest
            does not list.
        UsageError: ``public_key`` is no such key.
    """
    bundle = _read(Path(path))
    if public_key is not None:
        check_signature(bundle.folder / MANIFEST, public_key, bundle.path)
    return bundle


def _read(path: Path) -> Bundle:
    require_text(path)
    if not path.exists():
        raise missing(path, FileNotFoundError())
    if path.is_dir():
        return Bundle(path, path, _verified(path, path))
    refuse_stand_in(path)
    folder = environment.cache_folder() / "bundles" / sha256_of_file(path)
    if folder.is_dir():
        try:
            return Bundle(path, folder, _verified(folder, path))
        except ArtifactError:
            pass  # half unpacked, or changed since: unpacked anew
    with atomic_folder(folder) as empty:
        unpack_zip(path, empty)
        manifest = _verified(empty, path)
    return Bundle(path, folder, manifest)


def read_bundle_manifest(folder: Path, path: Path) -> BundleManifest:
    """Read the manifest in ``folder``, and check its own digest; ``path`` is what an error names.

    Raises:
        ArtifactError: There is none, or it is damaged or of a newer vitdeploy.
    """
    if not (folder / MANIFEST).is_file():
        raise not_an_artifact(path, f"a bundle, {ARTIFACT}") or ArtifactError(
            f"{str(path)!r} is no bundle: it has no {MANIFEST}; vd.package(['ARTIFACT'], 'vit.bundle') makes one"
        )
    raw = read_json(folder / MANIFEST, "the manifest of a bundle")
    if not isinstance(raw, dict) or raw.get("kind") != "bundle":
        raise not_an_artifact(path, f"a bundle, {ARTIFACT}") or ArtifactError(
            f"{str(path)!r} is no bundle: its {MANIFEST} is of another kind"
        )
    version = raw.get("schema_version")
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise ArtifactError(f"{str(path)!r} is a bundle of schema {version!r}, this vitdeploy reads {SCHEMA_VERSION}")
    try:
        manifest = BundleManifest.model_validate(raw)
    except ValidationError as error:
        raise ArtifactError(f"{str(path)!r} has a manifest that is not valid: {first_problem(error)}") from error
    if manifest.manifest_sha256 != manifest.digest():
        raise ArtifactError(f"the manifest of {str(path)!r} does not match its digest: it was changed or damaged")
    return manifest


def _verified(folder: Path, path: Path) -> BundleManifest:
    manifest = read_bundle_manifest(folder, path)
    listed = {file.name: file for file in manifest.files}
    for name in {*listed, *(graph.name for graph in manifest.graphs), *manifest.engines}:
        if name != Path(name).name or name in ("", ".", "..") or name not in listed:
            raise ArtifactError(f"{str(path)!r} names the file {name!r}, which it does not list, or which is a path")
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name in (MANIFEST, SIGNATURE):
            listed.pop(entry.name, None)
        elif entry.name not in listed and is_of_system(entry.name):
            continue  # nobody reads it
        elif not stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode):
            raise ArtifactError(
                f"{str(path)!r} holds {entry.name!r}, which is a link or no file: refused; a copy of the folder with "
                "files in place of links is taken"
            )
        elif entry.name not in listed:
            raise ArtifactError(f"{str(path)!r} holds {entry.name!r}, which its manifest does not list: remove it")
        else:
            _compare(Path(entry.path), listed.pop(entry.name), path)
    if listed:
        raise ArtifactError(f"{str(path)!r} lacks {', '.join(map(repr, sorted(listed)))}: copy the whole bundle again")
    return manifest


def _compare(file: Path, expected: BundledFile, path: Path) -> None:
    if file.stat().st_size != expected.bytes or sha256_of_file(file) != expected.sha256:
        raise ArtifactError(
            f"{expected.name!r} in {str(path)!r} does not match its digest: it was changed or damaged, copy it again"
        )


def seal_bundle(folder: Path, manifest: BundleManifest, sign: Callable[[bytes], bytes] | None = None) -> BundleManifest:
    """Write the manifest of a folder, listing the files that lie in it, and its signature, and return it."""
    files = tuple(
        BundledFile(name=file.name, bytes=file.stat().st_size, sha256=sha256_of_file(file))
        for file in sorted(folder.iterdir())
    )
    sealed = manifest.model_copy(update={"files": files}).sealed()
    text = canonical_json(sealed.model_dump(mode="json")) + "\n"
    (folder / MANIFEST).write_bytes(text.encode())
    if sign is not None:
        (folder / SIGNATURE).write_bytes(sign(text.encode()))
    return sealed


def golden_tensors(graphs: tuple[OnnxModel, ...], inputs: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """Return what ``golden.safetensors`` holds of graphs that share their samples, whose network inputs are given."""
    first = graphs[0].golden
    assert first is not None
    outputs = {f"outputs.{graph.path.name}": graph.golden.outputs for graph in graphs if graph.golden is not None}
    return {"pixels": first.pixels, "inputs": inputs, "reference": first.reference, **outputs}


def write_zip(folder: Path, path: Path) -> None:
    """Write the files of a folder as an archive: in the order of their names, as they are, with no time of day."""
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(folder.iterdir()):
            entry = zipfile.ZipInfo(file.name, _ZIP_TIME)
            entry.create_system = 3  # as on Unix, wherever it is written
            entry.external_attr = (stat.S_IFREG | 0o644) << 16
            entry.file_size = file.stat().st_size
            with file.open("rb") as source, archive.open(entry, "w") as target:
                while block := source.read(1 << 20):
                    target.write(block)
