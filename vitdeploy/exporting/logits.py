"""PyTorch's logits: of the images that a graph is checked with, and of a whole dataset for machines without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vitdeploy import environment
from vitdeploy.artifacts.reference import ReferenceInfo
from vitdeploy.datasets import Dataset, batches
from vitdeploy.errors import ModelError
from vitdeploy.exporting.checking import CPU, Logits
from vitdeploy.preprocess import normalize
from vitdeploy.progress import Progress

if TYPE_CHECKING:
    from vitdeploy.sources.load import LoadedModel

REFERENCE_BATCH = 32


def torch_logits(loaded: LoadedModel, pixels: NDArray[np.uint8]) -> Logits:
    """Return PyTorch's logits [n, classes] of pixels [n, H, W, C], on the CPU in float32.

    Raises:
        ModelError: They are no numbers, or no rows of logits.
    """
    from vitdeploy.backends.pytorch import open_module

    spec = loaded.preprocess
    session = open_module(loaded.module, (None, spec.channels, *spec.size), options=CPU)
    parts = [session.run({"input": normalize(pixels[i : i + 1], spec)})["logits"] for i in range(len(pixels))]
    logits = np.concatenate(parts)
    if logits.ndim != 2:
        raise ModelError(f"{loaded.origin} gives outputs of shape {logits.shape}, expected [n, classes]")
    if not np.isfinite(logits).all():
        raise ModelError(
            f"{loaded.origin} gives logits that are NaN or infinite under PyTorch: its weights are damaged"
        )
    return logits


def reference_logits(loaded: LoadedModel, dataset: Dataset, progress: Progress) -> tuple[ReferenceInfo, Logits]:
    """Return PyTorch's logits [n, classes] of a whole dataset, with what identifies both."""
    from vitdeploy.backends.pytorch import open_module

    spec = loaded.preprocess
    session = open_module(loaded.module, (None, spec.channels, *spec.size), options=CPU)
    parts = []
    with progress.task("reference logits", total=len(dataset)) as task:
        for images in batches(dataset, spec, REFERENCE_BATCH):
            parts.append(session.run({"input": images})["logits"])
            task.advance(len(images))
    info = ReferenceInfo(
        data_sha256=dataset.digest,
        sample_ids=dataset.sample_ids,
        origin=loaded.origin,
        versions=environment.versions(),
    )
    return info, np.concatenate(parts)
