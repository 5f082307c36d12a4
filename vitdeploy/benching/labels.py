"""The labels of the data as indices of a model's classes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vitdeploy.benching.options import BenchOptions
from vitdeploy.datasets import Dataset, match_labels
from vitdeploy.records import ModelSpec

ClassKey = tuple[tuple[str, ...], int | None]


def class_key(model: ModelSpec) -> ClassKey:
    """Return what decides how labels are matched, equal for models with the same classes."""
    return model.classes, model.class_count


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
