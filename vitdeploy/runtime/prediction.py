"""What a model says of an image, as a record."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vitdeploy.measure.heads import probabilities
from vitdeploy.records import ModelSpec, Record, Task


class ClassProbability(Record):
    """One class of a prediction; ``name`` is ``class 17`` where the model does not name its classes."""

    index: int
    name: str
    probability: float


class Prediction(Record):
    """What a model says of one image.

    ``image`` is its path as text (``vitdeploy.text.name_text``), or ``image N`` where it is none. ``classes``, the most
    likely first, whose probabilities sum to 1 over all classes, or are each class's own with task ``multi-label``. With
    ``regression`` and ``features`` there are none, and ``values`` has the outputs.
    """

    image: str
    classes: tuple[ClassProbability, ...] = ()
    task: Task = "single-label"
    values: tuple[float, ...] = ()


def predictions(
    names: Sequence[str], outputs: NDArray[np.float32], model: ModelSpec, top: int
) -> tuple[Prediction, ...]:
    """Return what outputs, [n, outputs], say of the images called ``names``, with the ``top`` classes of each."""
    found = probabilities(outputs, model)
    if found is None:
        return tuple(
            Prediction(image=name, task=model.task, values=tuple(map(float, row)))
            for name, row in zip(names, outputs, strict=True)
        )
    return tuple(
        Prediction(image=name, classes=_classes(row, model, top), task=model.task)
        for name, row in zip(names, found, strict=True)
    )


def _classes(probability: NDArray[np.float64], model: ModelSpec, top: int) -> tuple[ClassProbability, ...]:
    order = np.argsort(-probability, kind="stable")[:top]
    return tuple(
        ClassProbability(index=int(i), name=model.class_name(int(i)), probability=float(probability[i])) for i in order
    )
