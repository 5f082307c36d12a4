"""The classes of the images that accuracy is measured on: as the data calls them, whatever the model's are called."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vitdeploy.datasets import Dataset
from vitdeploy.records.report import ClassCount


def class_counts(dataset: Dataset) -> tuple[ClassCount, ...]:
    """Return the classes that have images, in the dataset's order; none for a dataset without labels."""
    if dataset.labels is None:
        return ()
    found, counts = np.unique(np.asarray(dataset.labels), return_counts=True)
    return tuple(
        ClassCount(name=dataset.classes[index], images=int(count)) for index, count in zip(found, counts, strict=True)
    )


def class_of_each(dataset: Dataset) -> NDArray[np.int64] | None:
    """Return for each image the index of its class among ``class_counts``, [n]; None without labels."""
    if dataset.labels is None:
        return None
    return np.unique(np.asarray(dataset.labels), return_inverse=True)[1]
