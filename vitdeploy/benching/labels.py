"""The labels of the data as indices of a model's classes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vitdeploy.benching.options import BenchOptions
from vitdeploy.datasets import Dataset, match_labels
from vitdeploy.records import ModelSpec, Task

ClassKey = tuple[tuple[str, ...], int | None, Task]

NO_TOP1: dict[Task, str] = {
    "multi-label": "its classes do not exclude each other, so there is no top-1 and no agreement",
    "regression": "it gives numbers, no classes, so there is no top-1 and no agreement",
    "features": "it has no head, so there is no top-1 and no agreement",
}
"""What a row of a model without a single predicted class says."""


def class_key(model: ModelSpec) -> ClassKey:
    """Return what decides how labels are matched, equal for models with the same classes."""
    return model.classes, model.class_count, model.task


def predicts_a_class(model: ModelSpec) -> bool:
    """Return whether there is a top-1 to measure."""
    return model.task not in NO_TOP1


def match_classes(dataset: Dataset, model: ModelSpec, options: BenchOptions) -> NDArray[np.int64]:
    """Return the dataset's labels as indices of the model's classes, [n].

    Raises:
        DataError: They do not fit; see ``match_labels``.
    """
    return match_labels(
        dataset,
        model.classes,
        count=model.class_count,
        label_map=options.label_map,
        by_order=options.labels_by_order,
    )
