"""``predict``: what a model says of some images, by any artifact."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitdeploy.artifacts import Artifact, open_artifact
from vitdeploy.backends.opening import open_session
from vitdeploy.datasets import images_below
from vitdeploy.errors import ArtifactError, DataError, UsageError
from vitdeploy.measure.accuracy import run_batch
from vitdeploy.measure.heads import probabilities
from vitdeploy.preprocess import normalize, open_image, to_pixels
from vitdeploy.records import ModelSpec, Preprocess, Record, Task
from vitdeploy.sessions import Session, SessionOptions

BATCH = 16


class ClassProbability(Record):
    """One class of a prediction; ``name`` is its index where the model does not name its classes."""

    index: int
    name: str
    probability: float


class Prediction(Record):
    """What a model says of one image.

    ``classes``, the most likely first, whose probabilities sum to 1 over all classes, or are each class's own with task
    ``multi-label``. With ``regression`` and ``features`` there are none, and ``values`` has the outputs.
    """

    image: str
    classes: tuple[ClassProbability, ...] = ()
    task: Task = "single-label"
    values: tuple[float, ...] = ()


def predict(
    artifact: Artifact | Path | str,
    images: Sequence[Path | str] | Path | str,
    *,
    top: int = 5,
    options: SessionOptions = SessionOptions(),
) -> list[Prediction]:
    """Return the ``top`` most likely classes of each image, in the order given.

    A checkpoint runs under PyTorch, an ONNX model under ONNX Runtime, an engine under the TensorRT that built it. A
    model without classes gives its outputs.

    Args:
        artifact: The model.
        images: Files, or folders, of which all images count; one or several.
        top: How many classes.
        options: Where it runs.
    Raises:
        UsageError: ``top`` is less than 1, or there are no images.
        ArtifactError: The artifact is missing, damaged, or carries no preprocessing.
        BackendError: Its runtime is not installed, or cannot run it on this machine.
        DataError: An image cannot be read.
    """
    named = [images] if isinstance(images, (str, Path)) else list(images)
    if top < 1 or not named:
        raise UsageError(f"{top} classes of {len(named)} images were asked for, expected at least 1 of at least 1")
    opened = open_artifact(artifact)
    spec, model = opened.manifest.preprocess, opened.manifest.model
    if spec is None:
        raise ArtifactError(f"{str(opened.path)!r} carries no preprocessing, so an image cannot become its input")
    paths = list(_files(map(Path, named)))
    with open_session(opened, options) as session:
        outputs = _outputs(session, paths, spec, opened.manifest.batch_limits)
    return _predictions(paths, outputs, model, top)


def _files(paths: Iterator[Path]) -> Iterator[Path]:
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        found = [path / name for name in images_below(path)]
        if not found:
            raise DataError(f"folder {str(path)!r} holds no images")
        yield from found


def _outputs(
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


def _predictions(paths: Sequence[Path], outputs: NDArray[np.float32], model: ModelSpec, top: int) -> list[Prediction]:
    found = probabilities(outputs, model)
    if found is None:
        return [
            Prediction(image=str(path), task=model.task, values=tuple(map(float, row)))
            for path, row in zip(paths, outputs, strict=True)
        ]
    return [_prediction(path, row, model, top) for path, row in zip(paths, found, strict=True)]


def _prediction(path: Path, probability: NDArray[np.float64], model: ModelSpec, top: int) -> Prediction:
    names = model.classes
    order = np.argsort(-probability, kind="stable")[:top]
    classes = tuple(
        ClassProbability(index=int(i), name=names[i] if names else str(i), probability=float(probability[i]))
        for i in order
    )
    return Prediction(image=str(path), classes=classes, task=model.task)
