"""Checkpoint: weights as ``.safetensors``, the manifest in the header's metadata."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.artifacts.base import Artifact
from vitdeploy.artifacts.digest import tensors_digest
from vitdeploy.artifacts.files import atomic_path, save_tensors
from vitdeploy.artifacts.manifests import check_payload, manifest_text, parse_manifest
from vitdeploy.artifacts.other_files import not_an_artifact
from vitdeploy.errors import ArtifactError
from vitdeploy.reading import open_safetensors
from vitdeploy.records import Manifest

METADATA_KEY = "vitdeploy"
LAYER_COUNTS = ("depth", "depths")
CHEAP_LAYERS, CHEAP_SIZE = 1_000, 1 << 16  # claims up to these cost little until the tensors are matched


class Checkpoint(Artifact):
    """Weights in the project's own layout; ``manifest.model`` says which module takes them."""

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Return name → array, as stored."""
        with open_safetensors(self.path) as file:
            return dict(file.tensors)


def write_checkpoint(path: Path, tensors: Mapping[str, NDArray[Any]], manifest: Manifest) -> Checkpoint:
    """Write weights and manifest atomically and return the artifact."""
    contiguous = {name: np.asarray(array, order="C") for name, array in tensors.items()}  # scalars stay scalars
    sealed = manifest.sealed(tensors_digest(contiguous))
    with atomic_path(Path(path)) as temporary:
        save_tensors(temporary, contiguous, {METADATA_KEY: manifest_text(sealed)})
    return Checkpoint(Path(path), sealed)


def read_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint that vitdeploy wrote, and verify it.

    Raises:
        ArtifactError: It is missing, truncated, changed, or written by something else (the line names ``weights``).
    """
    path = Path(path)
    with open_safetensors(path) as file:
        if METADATA_KEY not in file.metadata:
            raise not_an_artifact(path) or ArtifactError(
                f"{str(path)!r} has no vitdeploy manifest: name its model, as in "
                f"vd.export('NAME', 'model.onnx', options=vd.ExportOptions(weights={str(path)!r}))"
            )
        manifest = parse_manifest(file.metadata[METADATA_KEY], path)
        check_payload(manifest, tensors_digest(file.tensors), path, "train or convert it again")
        _refuse_claims(manifest.model.arguments, file.tensors, path)
    return Checkpoint(path, manifest)


def _refuse_claims(arguments: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]], path: Path) -> None:
    """Refuse a manifest whose model is larger than the weights beside it, before a module takes the memory.

    A model has no more layers than tensors, and no width, class or size beyond the number of its values.
    """
    values = sum(array.size for array in tensors.values())
    for name, value in arguments.items():
        limit = max(len(tensors), CHEAP_LAYERS) if name in LAYER_COUNTS else max(values, CHEAP_SIZE)
        for number in value if isinstance(value, list | tuple) else (value,):
            if isinstance(number, int) and number > limit:
                raise ArtifactError(
                    f"{str(path)!r} states a model with {name}={number} and holds {len(tensors)} tensors of {values} "
                    "values: the manifest is not that of these weights"
                )
