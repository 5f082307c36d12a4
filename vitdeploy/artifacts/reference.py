"""PyTorch's logits by sample hash, stored beside an ONNX file for machines without torch."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitdeploy.artifacts.base import ArrayValue, Artifact
from vitdeploy.artifacts.digest import tensors_digest
from vitdeploy.artifacts.files import atomic_path, save_tensors
from vitdeploy.errors import ArtifactError
from vitdeploy.reading import parse_json, read_tensors, safetensors_metadata
from vitdeploy.records import Record, canonical_json, sha256_of

METADATA_KEY = "vitdeploy.reference"
SUFFIX = ".reference.safetensors"


class ReferenceInfo(Record):
    """What the header of a reference file says: whose logits of what they are, and digests of both."""

    schema_version: int = 1
    onnx_sha256: str = ""
    data_sha256: str
    sample_ids: tuple[str, ...]
    origin: str
    versions: dict[str, str] = {}
    logits_sha256: str = ""


@dataclass(frozen=True, eq=False)
class Reference(ArrayValue):
    """Logits [n, classes] float32 of the PyTorch model, one row per sample of ``info.sample_ids``."""

    path: Path
    info: ReferenceInfo
    logits: NDArray[np.float32]

    def rows(self, sample_ids: Sequence[str]) -> NDArray[np.float32] | None:
        """Return the logits of these samples [len(sample_ids), classes], None unless all of them are stored."""
        index = {name: row for row, name in enumerate(self.info.sample_ids)}
        if not all(name in index for name in sample_ids):
            return None
        return self.logits[[index[name] for name in sample_ids]]


def reference_path(onnx: Path) -> Path:
    """Return where the reference logits of an ONNX file lie."""
    return onnx.with_name(f"{onnx.stem}{SUFFIX}")


def write_reference(onnx: Path, info: ReferenceInfo, logits: NDArray[np.float32]) -> Reference:
    """Write the logits beside the ONNX file, atomically; ``info.logits_sha256`` is filled in."""
    with reference_beside(onnx, info, logits) as reference:
        return reference


@contextmanager
def reference_beside(onnx: Path, info: ReferenceInfo, logits: NDArray[np.float32]) -> Iterator[Reference]:
    """Write the logits, which take their place when the block ends: what fails in it leaves what was there."""
    tensors = {"logits": np.ascontiguousarray(logits)}
    sealed = info.model_copy(update={"logits_sha256": tensors_digest(tensors)})
    text = canonical_json({**sealed.model_dump(mode="json"), "info_sha256": sha256_of(sealed.model_dump(mode="json"))})
    path = reference_path(onnx)
    with atomic_path(path) as temporary:
        save_tensors(temporary, tensors, {METADATA_KEY: text})
        yield Reference(path, sealed, logits)


def load_reference(artifact: Artifact) -> Reference | None:
    """Return the logits that lie beside an artifact and belong to it or to a graph that it was made from.

    Raises:
        ArtifactError: The file that states so is damaged.
    """
    return find_reference(artifact.path.parent, {artifact.digest, *artifact.manifest.parents.values()})


def find_reference(folder: Path, digests: Collection[str]) -> Reference | None:
    """Return the first reference in ``folder`` that was stored for a graph with one of these digests.

    Raises:
        ArtifactError: The file that states so is damaged.
    """
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            stated = parse_json(safetensors_metadata(path)[METADATA_KEY])["onnx_sha256"]
        except (ArtifactError, KeyError, ValueError, TypeError):
            continue  # not a file of ours, or not whole: it cannot be the one that is looked for
        if stated in digests:
            return read_reference(path)
    return None


def read_reference(path: Path) -> Reference:
    """Read and verify a reference file.

    Raises:
        ArtifactError: It is missing, is no reference file, or was changed.
    """
    damaged = (
        f"the reference logits {str(path)!r} are damaged: "
        "make them again with vd.export(..., options=vd.ExportOptions(reference='DATA'))"
    )
    try:
        raw = parse_json(safetensors_metadata(path)[METADATA_KEY])
        digest = raw.pop("info_sha256")
        info = ReferenceInfo.model_validate(raw)
        tensors = read_tensors(path)
    except KeyError as error:
        raise ArtifactError(f"{str(path)!r} holds no reference logits of vitdeploy") from error
    except (ValueError, TypeError, AttributeError, ArtifactError) as error:
        raise (ArtifactError(damaged) if path.is_file() else error) from error
    logits = tensors.get("logits")
    if logits is None or sha256_of(raw) != digest or tensors_digest({"logits": logits}) != info.logits_sha256:
        raise ArtifactError(damaged)
    if logits.ndim != 2 or logits.shape[0] != len(info.sample_ids):
        raise ArtifactError(damaged)
    return Reference(path, info, logits)
