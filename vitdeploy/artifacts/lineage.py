"""Where an artifact comes from: its parents among the files beside it, found by the digests that manifests state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from vitdeploy.artifacts import Artifact, Checkpoint, OnnxModel, load_ir, open_artifact, read_onnx
from vitdeploy.artifacts.calibration_table import SUFFIX as CALIBRATION_SUFFIX
from vitdeploy.artifacts.checkpoint import METADATA_KEY as CHECKPOINT_KEY
from vitdeploy.artifacts.manifests import parse_manifest
from vitdeploy.artifacts.onnx_model import METADATA_KEY as ONNX_KEY
from vitdeploy.errors import ArtifactError
from vitdeploy.progress import Progress
from vitdeploy.reading import safetensors_metadata
from vitdeploy.records import Manifest


def find_parent_checkpoint(artifacts: Sequence[Artifact], progress: Progress) -> Checkpoint | None:
    """Return the checkpoint from which these were made, where it lies beside them and its digest fits.

    The way leads over ONNX models that are given or lie beside them (engine → INT8 graph → FP32 graph → checkpoint).
    """
    chain, candidates = ancestors(artifacts), list[Checkpoint]()
    wanted = {
        digest for artifact in chain for role, digest in artifact.manifest.parents.items() if role == "checkpoint"
    }
    for folder in _folders(artifacts):
        for path in sorted(folder.glob("*.safetensors")):
            if stated_digest(path) not in wanted:
                continue
            try:
                found = open_artifact(path)
            except ArtifactError as error:
                progress.note(f"not taken as the baseline: {error}")
                continue
            if isinstance(found, Checkpoint):
                candidates.append(found)
    for checkpoint in candidates:
        if not _contradicted(checkpoint, chain):
            return checkpoint
    for checkpoint in candidates:
        words, where = " and ".join(_contradicted(checkpoint, chain)), repr(str(checkpoint.path))
        progress.note(f"not taken as the baseline: {where} has the same weights and other {words}; baseline= names it")
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


def find_beside(path: Path, digest: str) -> Artifact | None:
    """Return the sound artifact in the same folder that has this payload digest."""
    return next(each_beside(path, digest), None)


def each_beside(path: Path, digest: str) -> Iterator[Artifact]:
    """Yield the sound artifacts in the same folder that have this payload digest, by name."""
    for other in sorted(path.absolute().parent.iterdir()):
        if other.name == path.name or stated_digest(other) != digest:
            continue
        try:
            yield open_artifact(other)
        except ArtifactError:
            continue  # damaged: not the parent


def contradictions(child: Manifest, parent: Manifest) -> tuple[str, ...]:
    """Return in which words of a possible parent an artifact contradicts it, where payloads agree.

    Weights alone do not say how images come to them, what their outputs mean or how many heads share them. What the
    child's own options changed is no contradiction.
    """
    options, found = child.options, []
    pictures = [one.preprocess and one.preprocess.model_dump(exclude={"source"}) for one in (child, parent)]
    if "preprocess" not in options and None not in pictures and pictures[0] != pictures[1]:
        found.append("preprocessing")
    if not {"labels", "task", "arguments"} & options.keys() and child.model.classes != parent.model.classes:
        found.append("class names")
    if not {"task", "arguments"} & options.keys() and child.model.task != parent.model.task:
        found.append("task")
    child_arguments, parent_arguments = (
        {key: value for key, value in one.model.arguments.items() if key != "num_classes"} for one in (child, parent)
    )
    if "arguments" not in options and (child_arguments, child.model.family) != (parent_arguments, parent.model.family):
        found.append("constructor arguments")
    if child.trained_on and parent.trained_on and child.trained_on != parent.trained_on:
        found.append("training data")
    return tuple(found)


def stated_digest(path: Path) -> str | None:
    """Return the payload digest that a file states in its manifest, without reading its tensors."""
    try:
        if path.suffix == ".onnx":
            text = load_ir(path).metadata_props.get(ONNX_KEY)
        elif path.suffix == ".safetensors":
            text = safetensors_metadata(path).get(CHECKPOINT_KEY)
        elif path.name.endswith(CALIBRATION_SUFFIX):
            return open_artifact(path).digest
        else:
            return None
        return None if text is None else parse_manifest(text, path).payload_sha256
    except ArtifactError:
        return None


def _contradicted(checkpoint: Checkpoint, chain: Sequence[Artifact]) -> tuple[str, ...]:
    """Return what its children say otherwise than a checkpoint with the digest that they state."""
    children = [one.manifest for one in chain if one.manifest.parents.get("checkpoint") == checkpoint.digest]
    found = [word for child in children for word in contradictions(child, checkpoint.manifest)]
    return tuple(dict.fromkeys(found))


def _folders(artifacts: Sequence[Artifact]) -> list[Path]:
    return sorted({artifact.path.absolute().parent for artifact in artifacts})


def _graphs_beside(artifacts: Sequence[Artifact]) -> Iterator[OnnxModel]:
    for folder in _folders(artifacts):
        for path in sorted(folder.glob("*.onnx")):
            try:
                yield read_onnx(path)
            except ArtifactError:
                continue  # foreign or damaged: no link of the chain
