"""What each row says of each image: as a Parquet file, and the images on which rows and baseline differ."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitdeploy import __version__
from vitdeploy.artifacts.files import FilesTogether
from vitdeploy.artifacts.outputs import refuse_unwritable
from vitdeploy.artifacts.ownership import MARK
from vitdeploy.benching.baseline import BaselineChoice
from vitdeploy.benching.labels import ClassKey, class_key, predicts_a_class
from vitdeploy.benching.measuring import Entry, reference_logits
from vitdeploy.datasets import Dataset
from vitdeploy.measure.heads import predicted_classes, probabilities
from vitdeploy.reading import sha256_of_file
from vitdeploy.records import ModelSpec
from vitdeploy.records.differences import Differences, DifferingImage, ShownPrediction
from vitdeploy.text import printable

TOP = 5
SHOWN = 24
THUMBNAIL = 96
SMALL = 32  # pixels: what is no larger is kept exactly, as PNG
ROWS_AT_A_TIME = 10_000

Labels = Mapping[ClassKey, NDArray[np.int64]]


def refuse_unwritable_predictions(path: Path) -> None:
    """Raise where predictions could not be written: before anything is measured.

    Raises:
        ModuleNotFoundError: pyarrow is not installed.
        ArtifactError: The file cannot be written.
    """
    import pyarrow.parquet  # noqa: F401

    refuse_unwritable(path, "a Parquet file")


def write_predictions(
    entries: Sequence[Entry], dataset: Dataset, labels: Labels, path: Path, files: FilesTogether
) -> str:
    """Write a line for each row of the report and each image, [rows · images], of the rows that predict a class.

    Returns the SHA-256 of the file.

    Raises:
        ArtifactError: The file cannot be written, or the disk is full.
    """
    import pyarrow
    import pyarrow.parquet

    texts, numbers = pyarrow.string(), pyarrow.int32()
    schema = pyarrow.schema(
        [
            ("sample_id", texts), ("image", texts), ("label", numbers), ("label_name", texts), ("row", texts),
            ("backend", texts), ("precision", texts), ("payload_sha256", texts), ("correct", pyarrow.bool_()),
            ("top1", numbers), ("top1_name", texts), ("top1_probability", pyarrow.float32()),
            ("top5", pyarrow.list_(numbers)), ("top5_names", pyarrow.list_(texts)),
            ("top5_probabilities", pyarrow.list_(pyarrow.float32())),
        ],
        metadata={MARK: __version__},
    )  # fmt: skip
    with files.path(path) as temporary:
        with pyarrow.parquet.ParquetWriter(temporary, schema) as writer:
            for entry in entries:
                held: list[dict[str, Any]] = []
                for line in _lines(entry, dataset, labels):
                    held.append(line)
                    if len(held) == ROWS_AT_A_TIME:
                        writer.write_table(pyarrow.Table.from_pylist(held, schema))
                        held = []
                writer.write_table(pyarrow.Table.from_pylist(held, schema))
        return sha256_of_file(temporary)


def _lines(entry: Entry, dataset: Dataset, labels: Labels) -> Iterator[dict[str, Any]]:
    model, candidate = entry.candidate.model, entry.candidate
    if entry.logits is None or not predicts_a_class(model):
        return
    chances, first = probabilities(entry.logits, model), predicted_classes(entry.logits, model)
    assert chances is not None
    assert first is not None
    order = np.argsort(-chances, axis=1, kind="stable")[:, :TOP]
    known = labels.get(class_key(model))
    for index, ranked in enumerate(order.tolist()):
        top = int(first[index])
        label = None if known is None else int(known[index])
        yield {
            "sample_id": dataset.sample_ids[index],
            "image": printable(dataset.name(index)),
            "label": label,
            "label_name": None if label is None else class_name(model, label),
            "row": candidate.name,
            "backend": candidate.backend,
            "precision": candidate.precision,
            "payload_sha256": candidate.digest,
            "correct": None if label is None else top == label,
            "top1": top,
            "top1_name": class_name(model, top),
            "top1_probability": float(chances[index, top]),
            "top5": ranked,
            "top5_names": [class_name(model, one) for one in ranked],
            "top5_probabilities": chances[index, ranked].tolist(),
        }


def class_name(model: ModelSpec, index: int) -> str:
    """Return what a model calls a class, as one line."""
    return printable(model.class_name(index))


@dataclass(frozen=True)
class _Judged:
    """A row's predictions beside the baseline's: classes [n], probabilities of these [n], labels [n] or None."""

    entry: Entry
    predicted: NDArray[np.int64]
    chance: NDArray[np.float64]
    expected: NDArray[np.int64]
    expected_chance: NDArray[np.float64]
    labels: NDArray[np.int64] | None


def find_differences(
    entries: Sequence[Entry], reference: BaselineChoice, dataset: Dataset, labels: Labels, *, thumbnails: bool
) -> Differences | None:
    """Return the images on which any row predicts another class than the baseline; None without a comparison."""
    judged = [found for entry in entries if (found := _judge(entry, entries, reference, labels)) is not None]
    if not judged:
        return None
    differs = np.stack([one.predicted != one.expected for one in judged])
    images = np.flatnonzero(differs.any(axis=0))
    weight = np.stack([_weight(one) for one in judged]).max(axis=0, where=differs, initial=0.0)
    chosen = sorted(images.tolist(), key=lambda index: (-weight[index], index))[:SHOWN]
    names = [entry.candidate.name for entry in entries if entry.is_baseline]
    title = names[0] if names else "stored reference"
    return Differences(
        images=len(images),
        shown=tuple(_shown(index, judged, title, dataset, thumbnails=thumbnails) for index in chosen),
    )


def _judge(entry: Entry, entries: Sequence[Entry], reference: BaselineChoice, labels: Labels) -> _Judged | None:
    model, against = entry.candidate.model, reference_logits(entry, entries, reference)
    if entry.logits is None or against is None or against.shape != entry.logits.shape or not predicts_a_class(model):
        return None
    predicted, expected = predicted_classes(entry.logits, model), predicted_classes(against, model)
    mine, theirs = probabilities(entry.logits, model), probabilities(against, model)
    assert predicted is not None
    assert expected is not None
    assert mine is not None
    assert theirs is not None
    every = np.arange(len(predicted))
    known = labels.get(class_key(model))
    return _Judged(entry, predicted, mine[every, predicted], expected, theirs[every, expected], known)


def _weight(one: _Judged) -> NDArray[np.float64]:
    """Return how much a difference says, [n]: new errors above all others, and sure ones above unsure ones."""
    lost = np.zeros(len(one.predicted)) if one.labels is None else (one.expected == one.labels).astype(np.float64)
    return lost + np.minimum(one.chance, 1.0) / 2


def _shown(
    index: int, judged: Sequence[_Judged], baseline: str, dataset: Dataset, *, thumbnails: bool
) -> DifferingImage:
    first = next(one for one in judged if one.predicted[index] != one.expected[index])
    model = first.entry.candidate.model
    label = None if first.labels is None else class_name(model, int(first.labels[index]))
    others = [one for one in judged if one.predicted[index] != one.expected[index]]
    return DifferingImage(
        name=printable(dataset.name(index)),
        sample_id=dataset.sample_ids[index],
        label=label,
        baseline=_prediction(baseline, first, first.expected[index], first.expected_chance[index], index),
        others=tuple(
            _prediction(one.entry.candidate.name, one, one.predicted[index], one.chance[index], index) for one in others
        ),
        thumbnail=thumbnail(dataset.image(index)) if thumbnails else None,
    )


def _prediction(row: str, one: _Judged, predicted: np.int64, chance: np.float64, index: int) -> ShownPrediction:
    return ShownPrediction(
        row=row,
        predicted=class_name(one.entry.candidate.model, int(predicted)),
        probability=float(chance),
        right=None if one.labels is None else bool(predicted == one.labels[index]),
    )


def thumbnail(image: Image.Image) -> str:
    """Return an image of at most 96 pixels a side as a ``data:`` URI; without what else its file says."""
    small = image.convert("L" if image.mode == "L" else "RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    kind = "png" if max(image.size) <= SMALL else "jpeg"
    small.save(buffer, kind, **({} if kind == "png" else {"quality": 80}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
