"""``predict``: the most likely classes of some images, by any artifact."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitdeploy.artifacts import Artifact, open_artifact
from vitdeploy.backends.opening import open_session
from vitdeploy.errors import ArtifactError, DataError, UsageError
from vitdeploy.measure.accuracy import run_batch
from vitdeploy.preprocess import normalize, open_image, to_pixels
from vitdeploy.records import Preprocess, Record
from vitdeploy.sessions import Session, SessionOptions

BATCH = 16


class ClassProbability(Record):
    """One class of a prediction; ``name`` is its index where the model does not name its classes."""

    index: int
    name: str
    probability: float


class Prediction(Record):
    """The classes of one image, the most likely first."""

    image: str
    classes: tuple[ClassProbability, ...]


def predict(
    artifact: Artifact | Path | str,
    images: Sequence[Path | str],
    *,
    top: int = 5,
    options: SessionOptions = SessionOptions(),
) -> list[Prediction]:
    """Return the ``top`` most likely classes of each image, in the order given.

    A checkpoint runs under PyTorch, an ONNX model under ONNX Runtime, an engine under the TensorRT that built it.

    Raises:
        UsageError: ``top`` is less than 1, or there are no images.
        ArtifactError: The artifact is missing, damaged, or carries no preprocessing.
        BackendError: Its runtime is not installed, or cannot run it on this machine.
        DataError: An image cannot be read.
    """
    if top < 1 or not images:
        raise UsageError(f"{top} classes of {len(images)} images were asked for, expected at least 1 of at least 1")
    opened = artifact if isinstance(artifact, Artifact) else open_artifact(artifact)
    spec = opened.manifest.preprocess
    if spec is None:
        raise ArtifactError(f"{str(opened.path)!r} carries no preprocessing, so an image cannot become its input")
    paths = [Path(image) for image in images]
    with open_session(opened, options) as session:
        logits = _logits(session, paths, spec, opened.manifest.batch_limits)
    names = opened.manifest.model.classes
    return [_prediction(path, row, names, top) for path, row in zip(paths, logits, strict=True)]


def _logits(
    session: Session, paths: Sequence[Path], spec: Preprocess, limits: tuple[int, int] | None
) -> NDArray[np.float32]:
    parts = []
    for start in range(0, len(paths), BATCH):
        pixels = np.stack([_pixels(path, spec) for path in paths[start : start + BATCH]])
        parts.append(run_batch(session, normalize(pixels, spec), limits))
    return np.concatenate(parts)


def _pixels(path: Path, spec: Preprocess) -> NDArray[np.uint8]:
    image = open_image(path)
    try:
        return to_pixels(image, spec)
    except DataError as error:
        raise DataError(f"{str(path)!r}: {error}") from error


def _prediction(path: Path, logits: NDArray[np.float32], names: Sequence[str], top: int) -> Prediction:
    powers = np.exp(logits.astype(np.float64) - float(logits.max()))
    probabilities = powers / powers.sum()
    order = np.argsort(-probabilities, kind="stable")[:top]
    return Prediction(
        image=str(path),
        classes=tuple(
            ClassProbability(index=int(i), name=names[i] if names else str(i), probability=float(probabilities[i]))
            for i in order
        ),
    )
