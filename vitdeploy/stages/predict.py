"""``predict``: what a model says of some images, by any artifact."""

from __future__ import annotations

from pathlib import Path

from vitdeploy.artifacts import Artifact
from vitdeploy.artifacts.bundle import Bundle
from vitdeploy.errors import UsageError
from vitdeploy.runtime.images import Images
from vitdeploy.runtime.prediction import Prediction
from vitdeploy.runtime.predictor import load
from vitdeploy.sessions import SessionOptions


def predict(
    artifact: Bundle | Artifact | Path | str,
    images: Images,
    *,
    top: int = 5,
    options: SessionOptions = SessionOptions(),
) -> list[Prediction]:
    """Return the ``top`` most likely classes of each image, in the order given.

    A checkpoint runs under PyTorch, an ONNX model under ONNX Runtime, an engine under the TensorRT that built it, of a
    bundle what this machine can run best. A model without classes gives its outputs. For several calls, ``load`` opens
    the model once.

    Args:
        artifact: The model.
        images: Files, folders, of which all images count, images of Pillow, or arrays; one or several.
        top: How many classes.
        options: Where it runs.
    Raises:
        UsageError: ``top`` is less than 1, or there are no images.
        ArtifactError: The artifact is missing, damaged, or carries no preprocessing.
        BackendError: Its runtime is not installed, or cannot run it on this machine.
        DataError: An image cannot be read.
    """
    if top < 1:
        raise UsageError(f"top is {top}, expected at least 1")
    with load(artifact, options=options) as model:
        return model.predict(images, top=top)
