"""``batch_predictor``: a model as a function of batches, for engines that spread work over processes and machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.artifacts import Artifact, open_artifact
from vitdeploy.artifacts.bundle import Bundle, is_bundle, read_bundle
from vitdeploy.errors import ArtifactError, DataError, UsageError
from vitdeploy.preprocess import stacked
from vitdeploy.runtime.prediction import predictions
from vitdeploy.runtime.predictor import BATCH, Predictor, load
from vitdeploy.sessions import SessionOptions


def batch_predictor(
    source: Bundle | Artifact | Path | str,
    *,
    column: str = "image",
    features: bool = False,
    options: SessionOptions = SessionOptions(),
) -> BatchPredictor:
    """Return a function of batches: a dictionary of columns goes in, and comes out with predictions for its images.

    It can be pickled, and each process opens the model when it gets its first batch, as Ray Data's ``map_batches`` and
    Spark's pandas UDFs need it. The source must lie under the same path on every machine, and hold the same there.

    Args:
        source: A bundle or an artifact.
        column: The column with the images: encoded files as bytes or as Hugging Face's ``{"bytes": …, "path": …}``,
            paths, or arrays of uint8.
        features: Give what ``embed`` gives, in place of classes.
        options: Where it runs; with several processes on one machine, how many threads each takes.
    Raises:
        ArtifactError: The source is missing or damaged.
    """
    path = source.path if isinstance(source, Bundle | Artifact) else Path(source)
    return BatchPredictor(path.absolute(), _digest(path), column, features, options)


@dataclass(frozen=True)
class BatchPredictor:
    """A model that is opened once in each process; made by ``batch_predictor``."""

    path: Path
    digest: str
    column: str = "image"
    features: bool = False
    options: SessionOptions = SessionOptions()
    _open: list[Predictor] = field(default_factory=list, init=False, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": []}

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the batch's other columns, and what the model says of each of its n images, in order.

        * ``class`` (int64, −1 where there is none), ``name`` and ``probability`` (float64) of the likeliest class,
        * or ``values``, [n, D] float32, of a model without classes and with ``features``,
        * ``error``: why an image could not be read, empty where it could; its numbers are NaN.

        Raises:
            UsageError: The batch has no such column.
            DataError: A row is no image, or several.
            ArtifactError: The source is not what it was where this was made.
        """
        if self.column not in batch:
            raise UsageError(
                f"the batch has columns {', '.join(map(repr, batch))}, expected {self.column!r} among them"
            )
        model = self._model()
        images: Sequence[Any] = list(batch[self.column])
        outcomes = [outcome for _, outcome in model.read(images)]
        if len(outcomes) != len(images):
            raise DataError(f"{len(images)} rows hold {len(outcomes)} images: a row is one image, not a folder of them")
        errors = np.array([str(one) if isinstance(one, DataError) else "" for one in outcomes], dtype=object)
        pixels = [one for one in outcomes if not isinstance(one, DataError)]
        others = {name: values for name, values in batch.items() if name != self.column}
        parts = [model.run(several, features=self.features) for several in stacked(pixels, BATCH)]
        return {**others, **self._columns(model, parts, errors == ""), "error": errors}

    def _columns(
        self, model: Predictor, parts: Sequence[NDArray[np.float32]], readable: NDArray[np.bool_]
    ) -> dict[str, NDArray[Any]]:
        count = len(readable)
        if self.features or model.model.task in ("regression", "features"):
            values = np.full((count, parts[0].shape[1] if parts else 0), np.nan, np.float32)
            if parts:
                values[readable] = np.concatenate(parts)
            return {"values": values}
        index = np.full(count, -1, np.int64)
        name = np.full(count, "", dtype=object)
        probability = np.full(count, np.nan, np.float64)
        if parts:
            outputs = np.concatenate(parts)
            best = [one.classes[0] for one in predictions([""] * len(outputs), outputs, model.model, 1)]
            index[readable] = [one.index for one in best]
            name[readable] = [one.name for one in best]
            probability[readable] = [one.probability for one in best]
        return {"class": index, "name": name, "probability": probability}

    def _model(self) -> Predictor:
        if not self._open:
            if _digest(self.path) != self.digest:
                raise ArtifactError(f"{str(self.path)!r} holds something else here than where the work was started")
            self._open.append(load(self.path, options=self.options))
        return self._open[0]


def _digest(path: Path) -> str:
    if path.is_dir() or is_bundle(path):
        return read_bundle(path).manifest.manifest_sha256
    return open_artifact(path).digest
