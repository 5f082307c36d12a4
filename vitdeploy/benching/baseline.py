"""What differences and speed-ups are against: PyTorch eager FP32 where it can be had, else the next best, by name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vitdeploy import backends
from vitdeploy.artifacts import Artifact, CalibrationTable, Checkpoint, OnnxModel, open_artifact, sidecar_of
from vitdeploy.artifacts.checkpoint import METADATA_KEY
from vitdeploy.artifacts.lineage import ancestors, as_exported, find_parent_checkpoint, is_parent
from vitdeploy.artifacts.ownership import is_ours
from vitdeploy.artifacts.reference import load_reference
from vitdeploy.benching.candidates import (
    Candidate,
    devices_of,
    list_candidates,
    list_checkpoints,
    of_loaded,
    title_of,
)
from vitdeploy.datasets import Dataset
from vitdeploy.errors import ArtifactError, BackendError
from vitdeploy.progress import Progress
from vitdeploy.reading import safetensors_metadata
from vitdeploy.records import Manifest
from vitdeploy.records.report import Device, backend_title
from vitdeploy.sources.source import Source, open_source

if TYPE_CHECKING:
    from vitdeploy.sources.loaded import LoadedModel

FOREIGN_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")
"""Of files that may hold the weights behind an export, though vitdeploy did not write them."""


@dataclass(frozen=True)
class BaselineChoice:
    """The baseline of a bench.

    ``candidates`` are its rows, one per device and empty where there is no row; ``logits`` are stored ones
    [n, classes] that stand in for PyTorch where it cannot be had, those of the graph with the digest ``logits_of``.
    ``accuracy_against`` says it in words.
    """

    candidates: tuple[Candidate, ...] = ()
    logits: NDArray[np.float32] | None = None
    logits_of: str = ""
    accuracy_against: str = ""


@dataclass(frozen=True)
class Scene:
    """What there is to choose a baseline from."""

    artifacts: Sequence[Artifact]
    others: Sequence[Candidate]
    runtimes: Sequence[str]
    device: Device | None
    dataset: Dataset


def open_baseline(source: Source | Artifact | Path | str | None) -> Source | Artifact | None:
    """Open what is to be the baseline: an artifact where it is one, else a source that PyTorch loads.

    Raises:
        ArtifactError: The file is missing, damaged, or does not run.
        UsageError, ModelError: The source names no weights, or no model.
    """
    if source is None:
        return None
    if isinstance(source, Source):
        return source.checkpoint or source
    if not isinstance(source, Artifact) and not _is_ours(Path(source)):
        return open_source(source)
    artifact = open_artifact(source)
    if isinstance(artifact, CalibrationTable):
        raise ArtifactError(f"{str(artifact.path)!r} is a calibration table, which does not run: name another baseline")
    return artifact


def choose_baseline(scene: Scene, named: Source | Artifact | None, progress: Progress) -> BaselineChoice:
    """Return the baseline.

    In this order: ``named``; a checkpoint among the artifacts; the checkpoint that they were made from, where it lies
    beside them and its digest fits; PyTorch's logits as export stored them; the FP32 graph itself.

    Raises:
        BackendError: ``named`` needs torch, and it is not installed.
        ArtifactError, CheckpointError: ``named`` cannot be loaded.
    """
    if named is not None:
        return _named(scene, named)
    absent = backends.get_backend("pytorch").unavailable()
    if absent is None:
        checkpoint = _first_checkpoint(scene.artifacts) or find_parent_checkpoint(scene.artifacts, progress)
        if checkpoint is not None:
            return _of_checkpoint(scene, checkpoint, checkpoint.path.name)
        reason = _not_found(scene.artifacts, progress)
    else:
        reason = "torch is not installed"
    if (stored := _stored(scene)) is not None:
        logits, graph = stored
        against = f"PyTorch's logits as export stored them ({reason})"
        return BaselineChoice(logits=logits, logits_of=graph.digest, accuracy_against=against)
    graphs = [one for one in scene.others if one.precision == "fp32" and isinstance(one.artifact, OnnxModel)]
    if graphs:
        title = backend_title(graphs[0].backend)
        return BaselineChoice(
            _first_per_device(one for one in graphs if one.digest == graphs[0].digest),
            accuracy_against=f"the FP32 graph {graphs[0].name} under {title}, not PyTorch ({reason})",
        )
    return BaselineChoice(
        accuracy_against=(
            f"nothing ({reason}, and there is no FP32 graph): name one with vd.bench(..., baseline='SOURCE')"
        )
    )


def _not_found(artifacts: Sequence[Artifact], progress: Progress) -> str:
    """Return which checkpoint was looked for in vain; a note tells how foreign weights that are there become one."""
    child = next((one.manifest for one in ancestors(artifacts) if "checkpoint" in one.manifest.parents), None)
    if child is None:
        return "no checkpoint was given, and the artifacts do not say which they were made from"
    folders = dict.fromkeys(artifact.path.parent for artifact in artifacts)
    beside = [path for folder in folders for path in sorted(folder.iterdir()) if path.suffix in FOREIGN_SUFFIXES]
    foreign = [path for path in beside if path.is_file() and not is_ours(path)]
    if foreign:
        model, file = child.model, foreign[0]
        source = f"{model.family}:{model.name}" if model.family in ("timm", "torchvision") else model.name
        output = file.with_name(f"{file.stem}.checkpoint.safetensors")
        progress.note(
            f"{', '.join(path.name for path in foreign[:3])} beside them: no checkpoint of vitdeploy's, so not taken "
            f"as the baseline; vd.convert({source!r}, {str(output)!r}, options=vd.SourceOptions(weights={str(file)!r}))"
            " makes one, which is taken if these are the weights"
        )
    wanted = child.parents["checkpoint"][:12]
    return f"no checkpoint was given, and {wanted}…, which they were made from, is not beside them"


def _named(scene: Scene, named: Source | Artifact) -> BaselineChoice:
    text = named.text if isinstance(named, Source) else named.path.name
    if isinstance(named, Checkpoint | Source):
        absent = backends.get_backend("pytorch").unavailable()
        if absent is not None:
            raise BackendError(f"the baseline {text!r} needs PyTorch: {absent}")
    if isinstance(named, Source):
        from vitdeploy.sources.load import load

        loaded = load(named)
        stated, changed = _as_exported(scene, _manifest_of(loaded))
        taken = replace(loaded, spec=stated.model, preprocess=stated.preprocess or loaded.preprocess)
        return _of_loaded(scene, taken, named, changed)
    if isinstance(named, Checkpoint):
        stated, changed = _as_exported(scene, named.manifest)
        return _of_checkpoint(scene, Checkpoint(named.path, stated), f"{text}{changed}")
    rows = list(_first_per_device(list_candidates([named], scene.runtimes, scene.device)))
    title = backend_title(rows[0].backend)
    return BaselineChoice(tuple(rows), accuracy_against=f"{text} under {title}, as named")


def _manifest_of(loaded: LoadedModel) -> Manifest:
    return Manifest(
        kind="checkpoint",
        model=loaded.spec,
        preprocess=loaded.preprocess,
        trained_on=loaded.trained_on,
        payload_sha256=loaded.weights_sha256,
    )


def _as_exported(scene: Scene, weights: Manifest) -> tuple[Manifest, str]:
    """Return named weights as the artifacts were made from them, if they were, and what that export changed."""
    for child in ancestors(scene.artifacts):
        if is_parent(weights, child.manifest, "checkpoint"):
            stated = as_exported(weights, child.manifest, head=False)
            changed = " and ".join(
                word
                for word, differs in (
                    ("preprocessing", stated.preprocess != weights.preprocess),
                    ("class names", stated.model != weights.model),
                )
                if differs
            )
            return stated, f", with {changed} as exported" if changed else ""
    return weights, ""


def _of_checkpoint(scene: Scene, checkpoint: Checkpoint, text: str) -> BaselineChoice:
    if _are_features(scene) and checkpoint.manifest.model.task != "features":
        from vitdeploy.sources.load import load

        source = open_source(checkpoint)
        return _of_loaded(scene, load(source), source)
    rows = list_checkpoints([checkpoint], scene.others, scene.device)
    return BaselineChoice(tuple(rows), accuracy_against=f"PyTorch eager FP32 of {text}")


def _of_loaded(scene: Scene, loaded: LoadedModel, source: Source, changed: str = "") -> BaselineChoice:
    """Return a loaded model as the baseline; of models that give features, without its head, as they are."""
    if _are_features(scene):
        from vitdeploy.sources.headless import without_head

        loaded = without_head(loaded)
    rows = [of_loaded(source, loaded, device) for device in devices_of(scene.others, scene.device)]
    return BaselineChoice(tuple(rows), accuracy_against=f"PyTorch eager FP32 of {title_of(source)}{changed}")


def _are_features(scene: Scene) -> bool:
    return bool(scene.others) and all(one.model.task == "features" for one in scene.others)


def _is_ours(path: Path) -> bool:
    """Return whether a file is an artifact, or should be one; foreign weights are left to ``load_source``."""
    if not path.is_file():
        return False
    if path.suffix in {".onnx", ".engine", ".plan"} or sidecar_of(path).is_file():
        return True
    return path.suffix == ".safetensors" and METADATA_KEY in safetensors_metadata(path)


def _first_per_device(candidates: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """Return one candidate for each device: there is one baseline, whatever runtimes were asked for."""
    first: dict[Device, Candidate] = {}
    for one in candidates:
        first.setdefault(one.device, one)
    return tuple(first.values())


def _first_checkpoint(artifacts: Iterable[Artifact]) -> Checkpoint | None:
    return next((artifact for artifact in artifacts if isinstance(artifact, Checkpoint)), None)


def _stored(scene: Scene) -> tuple[NDArray[np.float32], OnnxModel] | None:
    """Return PyTorch's logits for the samples of the dataset, as export stored them beside a graph, and the graph."""
    for artifact in ancestors(scene.artifacts):
        if isinstance(artifact, OnnxModel):
            reference = load_reference(artifact)
            logits = reference.rows(scene.dataset.sample_ids) if reference is not None else None
            if logits is not None:
                return logits, artifact
    return None
