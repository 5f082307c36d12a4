"""Where an artifact comes from: its parents among the files beside it, found by the digests that manifests state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from vitdeploy.artifacts import Artifact, Checkpoint, OnnxModel, load_ir, manifest_in_graph, open_artifact, read_onnx
from vitdeploy.artifacts.calibration_table import SUFFIX as CALIBRATION_SUFFIX
from vitdeploy.artifacts.calibration_table import arrays_of
from vitdeploy.artifacts.checkpoint import METADATA_KEY as CHECKPOINT_KEY
from vitdeploy.artifacts.files import TEMPORARY_PREFIX
from vitdeploy.artifacts.manifests import parse_manifest
from vitdeploy.errors import ArtifactError
from vitdeploy.progress import Progress
from vitdeploy.reading import safetensors_metadata
from vitdeploy.records import Manifest, Preprocess

ARTIFACT_SUFFIXES = (".safetensors", ".onnx", CALIBRATION_SUFFIX, ".engine", ".plan")


def find_parent_checkpoint(artifacts: Sequence[Artifact], progress: Progress) -> Checkpoint | None:
    """Return the checkpoint from which these were made, where it lies beside them, as it was exported.

    The way leads over ONNX models that are given or lie beside them (engine → INT8 graph → FP32 graph → checkpoint).
    Preprocessing and class names that an export was given stand in the manifest that is returned.
    """
    children = [one.manifest for one in ancestors(artifacts) if "checkpoint" in one.manifest.parents]
    paths = [path for folder in _folders(artifacts) for path in sorted(folder.glob("[!.]*.safetensors"))]
    stated = [(path, manifest) for path in paths if (manifest := stated_manifest(path)) is not None]
    for child in children:
        for path, manifest in stated:
            if not is_parent(manifest, child, "checkpoint"):
                continue
            try:
                found = open_artifact(path)
            except ArtifactError as error:
                progress.note(f"not taken as the baseline: {error}")
                continue
            if isinstance(found, Checkpoint):
                return Checkpoint(found.path, as_exported(found.manifest, child, head=False))
    return None


def ancestors(artifacts: Sequence[Artifact]) -> list[Artifact]:
    """Return these artifacts and the ONNX models that they were made from, as far as they are given or lie beside."""
    known = {artifact.digest: artifact for artifact in artifacts}
    chain = list(artifacts)
    searched_folder = False
    for artifact in chain:
        for role, digest in artifact.manifest.parents.items():
            if role != "onnx" or any(one.digest == digest for one in chain):
                continue
            if digest not in known and not searched_folder:
                searched_folder = True
                known = {graph.digest: graph for graph in _graphs_beside(artifacts)} | known
            if digest in known:
                chain.append(known[digest])
    return chain


def find_parent(artifact: Artifact, role: str) -> Artifact | None:
    """Return the sound artifact in the same folder from which this one states that it was made."""
    for other in sorted(artifact.path.absolute().parent.iterdir()):
        manifest = None if other.name == artifact.path.name else stated_manifest(other)
        if manifest is None or not is_parent(manifest, artifact.manifest, role):
            continue
        try:
            return open_artifact(other)
        except ArtifactError:
            continue  # damaged: not the parent
    return None


def is_parent(candidate: Manifest, child: Manifest, role: str) -> bool:
    """Return whether an artifact is the one from which ``child`` states that it was made.

    An export names the model that it exported, with the head and preprocessing that its options gave to the weights.
    """
    digest = child.parents.get(role)
    return digest == candidate.identity or (
        role == "checkpoint" and digest == as_exported(candidate, child, head=True).identity
    )


def as_exported(weights: Manifest, child: Manifest, *, head: bool) -> Manifest:
    """Return what weights are with the options of the export that made ``child`` of them.

    head: Whether the model counts without its head too, where the export left that out.
    """
    options, model = child.options, weights.model
    if head and "task" in options:
        model = child.model
    elif "labels" in options:
        model = model.model_copy(update={"classes": child.model.classes})
    stated = options.get("preprocess")
    preprocess = weights.preprocess if stated is None else Preprocess.model_validate(stated)
    return weights.model_copy(update={"model": model, "preprocess": preprocess})


def stated_manifest(path: Path) -> Manifest | None:
    """Return the manifest that a file carries, without reading its tensors; None without, or where it is damaged."""
    try:
        if path.suffix == ".onnx":
            return manifest_in_graph(load_ir(path), path)
        if path.suffix == ".safetensors":
            text = safetensors_metadata(path).get(CHECKPOINT_KEY)
            return None if text is None else parse_manifest(text, path)
        if path.name.endswith(CALIBRATION_SUFFIX):
            return open_artifact(path).manifest
    except ArtifactError:
        pass  # damaged, or no artifact: it says nothing
    return None


def _folders(artifacts: Sequence[Artifact]) -> list[Path]:
    return sorted({artifact.path.absolute().parent for artifact in artifacts})


def _graphs_beside(artifacts: Sequence[Artifact]) -> Iterator[OnnxModel]:
    for folder in _folders(artifacts):
        for path in sorted(folder.glob("[!.]*.onnx")):
            try:
                yield read_onnx(path)
            except ArtifactError:
                continue  # foreign or damaged: no link of the chain


def artifacts_in(folder: Path) -> list[Path]:
    """Return the files in a folder that are called like artifacts, by name.

    Arrays of calibration tables are none, nor is what a killed process had not finished.
    """
    named = (one for one in folder.iterdir() if one.name.endswith(ARTIFACT_SUFFIXES) and one.is_file())
    files = sorted(one for one in named if not one.name.startswith(TEMPORARY_PREFIX))
    arrays = {arrays_of(one) for one in files if one.name.endswith(CALIBRATION_SUFFIX)}
    return [one for one in files if one not in arrays]
