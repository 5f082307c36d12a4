"""What a model's outputs say: classes, probabilities, or neither, by its task and by what it has applied already."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vitdeploy.records import ModelSpec

Outputs = NDArray[np.float32]


def predicted_classes(outputs: Outputs, model: ModelSpec | None = None) -> NDArray[np.int64] | None:
    """Return the class that the model predicts for each image, [n].

    None: it predicts no single one, because its task is ``multi-label``, ``regression`` or ``features``.

    Args:
        outputs: [n, outputs].
        model: What they mean; None for logits of classes that exclude each other.
    """
    if model is None or model.task == "single-label":
        return outputs.argmax(axis=1)
    if model.task != "binary":
        return None
    threshold = 0.5 if model.activation == "sigmoid" else 0.0
    positive: NDArray[np.int64] = (outputs[:, 0] > threshold).astype(np.int64)
    return positive


def probabilities(outputs: Outputs, model: ModelSpec) -> NDArray[np.float64] | None:
    """Return the probability of each class, [n, classes]; None for ``regression`` and ``features``.

    Those of one image sum to 1 unless the task is ``multi-label``. What the model has applied is not applied again.
    """
    values = outputs.astype(np.float64)
    if model.task in ("regression", "features"):
        return None
    if model.task == "single-label":
        return values if model.activation != "none" else softmax(values)
    positive = values if model.activation == "sigmoid" else sigmoid(values)
    return np.concatenate([1 - positive, positive], axis=1) if model.task == "binary" else positive


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return e^x / Σ e^x per row."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    result: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return result


def sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return 1 / (1 + e^−x), without overflow."""
    small = np.exp(-np.abs(logits))
    result: NDArray[np.float64] = np.where(logits >= 0, 1 / (1 + small), small / (1 + small))
    return result
