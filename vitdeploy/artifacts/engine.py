"""Engine: a plain TensorRT plan, and its manifest beside it as ``<name>.engine.json``."""

from __future__ import annotations

import hashlib
from pathlib import Path

from vitdeploy.artifacts.base import Artifact
from vitdeploy.artifacts.golden import Golden
from vitdeploy.artifacts.manifests import check_payload, manifest_of, manifest_text
from vitdeploy.artifacts.pairs import atomic_pair, fitting_version
from vitdeploy.errors import ArtifactError
from vitdeploy.reading import read_bytes, read_json, refuse_stand_in, require_regular, sha256_of_file
from vitdeploy.records import Manifest


class Engine(Artifact):
    """A verified plan; what can run it stands in ``manifest.build``."""

    def plan(self) -> bytes:
        """Return the serialized engine."""
        return read_bytes(self.path)

    @property
    def golden(self) -> Golden | None:
        """Inputs and the outputs that the graph gave for them, by which a device can check the engine."""
        return None if self.manifest.golden is None else Golden.from_text(self.manifest.golden)


def sidecar_of(path: Path) -> Path:
    """Return where the manifest of an engine lies."""
    return Path(path).with_name(Path(path).name + ".json")


def write_engine(path: Path, plan: bytes, manifest: Manifest) -> Engine:
    """Write the plan and its sidecar; a plan without a matching sidecar is refused when read.

    A full disk, and a kill at any moment, leave the old pair or the new one (``atomic_pair``).
    """
    sealed = manifest.sealed(hashlib.sha256(plan).hexdigest())
    with atomic_pair(sidecar_of(path), manifest_text(sealed), Path(path)) as temporary:
        temporary.write_bytes(plan)
    return Engine(Path(path), sealed)


def read_engine(path: Path) -> Engine:
    """Open an engine and verify it against its sidecar.

    Raises:
        ArtifactError: Plan or sidecar is missing, or the plan was changed.
    """
    path = Path(path)
    require_regular(path)
    sidecar = sidecar_of(path)
    if not sidecar.is_file():
        refuse_stand_in(path)
        raise ArtifactError(
            f"{str(path)!r} has no manifest {str(sidecar)!r} beside it: rebuild it with vd.build('MODEL.onnx')"
        )
    digest = sha256_of_file(path)
    manifest = fitting_version(
        read_json(sidecar, "an engine's manifest"),
        lambda raw: manifest_of(raw, path),
        lambda found: found.payload_sha256 == digest,
    )
    check_payload(manifest, digest, path, "build it again with vd.build('MODEL.onnx')")
    return Engine(path, manifest)
