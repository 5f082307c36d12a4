"""Logits of several sessions over one dataset, each image read once, and what follows from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy import datasets
from vitdeploy.datasets import Dataset
from vitdeploy.measure import statistics
from vitdeploy.measure.heads import predicted_classes
from vitdeploy.measure.statistics import Interval
from vitdeploy.progress import SILENT, Progress
from vitdeploy.records import ModelSpec, Preprocess
from vitdeploy.sessions import Session, TensorSpec
from vitdeploy.text import one_line

DEFAULT_BATCH = 32

BatchLimits = tuple[int, int]
"""Smallest and largest batch that a session takes."""


@dataclass(frozen=True)
class Outputs:
    """name → logits [n, classes] float32, in the dataset's order; and who failed, with the reason."""

    logits: dict[str, NDArray[np.float32]]
    failures: dict[str, str] = field(default_factory=dict)


def collect_logits(
    sessions: Mapping[str, Session],
    dataset: Dataset,
    preprocess: Preprocess,
    *,
    batch: int = DEFAULT_BATCH,
    limits: Mapping[str, BatchLimits | None] | None = None,
    progress: Progress = SILENT,
) -> Outputs:
    """Run every session over the whole dataset in one pass.

    One that raises, or gives logits that are not finite, is out; the others go on. An image that cannot be read is the
    dataset's error, which is raised.

    Args:
        sessions: By name.
        dataset: Its order is that of the logits.
        preprocess: What all these sessions take.
        batch: How many images at a time.
        limits: Of the sessions that take no batch of any size; a batch that the graph itself fixes need not be named.
        progress: One bar over the images.
    """
    limits = limits or {}
    parts: dict[str, list[NDArray[np.float32]]] = {name: [] for name in sessions}
    failures: dict[str, str] = {}
    with progress.task("Accuracy", total=len(dataset)) as task:
        for images in datasets.batches(dataset, preprocess, batch):
            for name, session in sessions.items():
                if name in failures:
                    continue
                try:
                    parts[name].append(run_batch(session, images, limits.get(name)))
                except Exception as error:  # any runtime's own exception type; the candidate fails, the bench goes on
                    failures[name] = f"{type(error).__name__} while its accuracy was measured: {one_line(error)}"
            task.advance(len(images))
    logits = {name: np.concatenate(found) for name, found in parts.items() if name not in failures and found}
    for name, values in logits.items():
        broken = int(np.sum(~np.isfinite(values).all(axis=1)))
        if broken:
            failures[name] = f"its logits are NaN or infinite for {broken} of {len(values)} images"
    return Outputs({name: values for name, values in logits.items() if name not in failures}, failures)


def run_batch(session: Session, images: NDArray[Any], limits: BatchLimits | None = None) -> NDArray[np.float32]:
    """Return the logits [b, classes] of network inputs, [b, C, H, W] or as ``to_input`` gives them.

    They go in pieces of the largest batch that the session takes; the last one is padded up to the smallest.
    """
    spec, output = only_input(session), only_output(session)
    fixed = spec.shape[0] if spec.shape else None
    least, most = (fixed, fixed) if fixed is not None else limits or (1, len(images))
    parts = []
    for start in range(0, len(images), most):
        piece = images[start : start + most]
        padding = [(0, max(least - len(piece), 0)), *[(0, 0)] * (images.ndim - 1)]
        parts.append(_run(session, spec, output, np.pad(piece, padding))[: len(piece)])
    return np.concatenate(parts)


def only_input(session: Session) -> TensorSpec:
    """Return the one input; a classifier of images has no second."""
    if len(session.inputs) != 1:
        raise ValueError(f"the model has inputs {list(session.inputs)}, expected one")
    return next(iter(session.inputs.values()))


def only_output(session: Session) -> str:
    """Return the name of the logits: ``logits``, or the only output."""
    if "logits" in session.outputs:
        return "logits"
    if len(session.outputs) != 1:
        raise ValueError(f"the model has outputs {list(session.outputs)}, expected 'logits' or only one")
    return next(iter(session.outputs))


def _run(session: Session, spec: TensorSpec, output: str, images: NDArray[Any]) -> NDArray[np.float32]:
    logits = session.run({spec.name: np.ascontiguousarray(images.astype(spec.dtype, copy=False))})[output]
    if logits.ndim != 2 or len(logits) != len(images):
        raise ValueError(f"logits have shape {logits.shape} for {len(images)} images, expected [batch, classes]")
    return logits.astype(np.float32, copy=False)


@dataclass(frozen=True)
class Accuracy:
    """Fields of a report's row; None where there are no labels, or nothing to compare with."""

    top1: float | None = None
    top1_ci95: Interval | None = None
    correct_by_class: tuple[int, ...] | None = None
    delta_top1_pp: float | None = None
    delta_ci95_pp: Interval | None = None
    agreement: float | None = None
    logits_sqnr_db: float | None = None
    logits_identical: bool | None = None


def judge(
    outputs: NDArray[np.float32],
    labels: NDArray[np.int64] | None,
    reference: NDArray[np.float32] | None = None,
    model: ModelSpec | None = None,
    classes: NDArray[np.int64] | None = None,
) -> Accuracy:
    """Compare outputs with labels, and with the outputs of the baseline on the same images.

    A model that predicts no single class has no top-1 and no agreement. An SQNR without bound is None with
    ``logits_identical`` true, as JSON has no infinity.

    Args:
        outputs: [n, outputs].
        labels: Indices of the model's classes, [n].
        reference: As ``outputs``; None where there is nothing to compare with.
        model: What the outputs mean; None for logits of classes that exclude each other.
        classes: Of the data, each with an image, [n]: right answers are counted by them too.
    """
    fields: dict[str, Any] = {}
    predicted = predicted_classes(outputs, model)
    right = None if labels is None or predicted is None else np.equal(predicted, labels)
    if right is not None:
        fields["top1"] = float(right.mean())
        fields["top1_ci95"] = statistics.wilson_interval(int(right.sum()), len(right))
        if classes is not None:
            counts = np.bincount(classes, weights=right)
            fields["correct_by_class"] = tuple(int(count) for count in counts)
    if reference is not None:
        expected = predicted_classes(reference, model)
        if right is not None and expected is not None and labels is not None:
            delta, (low, high) = statistics.paired_difference(right, np.equal(expected, labels))
            fields["delta_top1_pp"], fields["delta_ci95_pp"] = 100 * delta, (100 * low, 100 * high)
        if predicted is not None:
            fields["agreement"] = float(np.mean(predicted == expected))
        sqnr = statistics.logits_sqnr_db(outputs, reference)
        fields["logits_sqnr_db"] = sqnr if math.isfinite(sqnr) else None
        fields["logits_identical"] = bool(np.array_equal(outputs, reference))
    return Accuracy(**fields)
