"""What a model's outputs mean, decided from its configuration, its graph, and what the user says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitdeploy.datasets.class_names import read_class_names, repeated_names, usable_class_names
from vitdeploy.errors import DataError, UsageError
from vitdeploy.records.model import Activation, Task

_OF_PROBLEM_TYPE: dict[str, Task] = {
    "single_label_classification": "single-label",
    "multi_label_classification": "multi-label",
    "regression": "regression",
}


@dataclass(frozen=True)
class Head:
    """Task and class names of a model; ``notes`` say what was decided and is not written anywhere."""

    task: Task
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class HeadEvidence:
    """What there is to decide from.

    outputs: how many numbers the model gives per image.
    activation: what it has applied to them.
    config: Hugging Face's or timm's ``config.json``, empty without one; ``where`` is what errors call it.
    task: what the user says.
    labels: a file of class names.
    known: class names that the weights bring.
    """

    outputs: int
    activation: Activation = "none"
    config: Mapping[str, Any] | None = None
    where: str = "config.json"
    task: Task | None = None
    labels: Path | None = None
    known: tuple[str, ...] = ()


def decide_head(evidence: HeadEvidence) -> Head:
    """Return task and class names.

    In this order: what the user says; ``problem_type``; an architecture that is no classifier; else one output is the
    second of two classes, several behind a sigmoid are independent classes, and all others exclude each other. One
    output of a Hugging Face model without ``problem_type`` is a number, as in transformers.

    Raises:
        UsageError: The task does not fit the number of outputs.
        DataError: There are other numbers of class names than classes.
    """
    task, notes = _task(evidence)
    _refuse_unfit(task, evidence)
    names, more = _names(task, evidence)
    return Head(task, names, (*notes, *more))


def _task(evidence: HeadEvidence) -> tuple[Task, tuple[str, ...]]:
    if evidence.task is not None:
        return evidence.task, ()
    config = evidence.config or {}
    stated = _OF_PROBLEM_TYPE.get(str(config.get("problem_type")))
    if stated is not None:
        return ("binary", ()) if stated != "regression" and evidence.outputs == 1 else (stated, ())
    kinds = [str(kind) for kind in config.get("architectures") or ()]
    if kinds and all("For" not in kind and kind.endswith("Model") for kind in kinds):
        return "features", (f"{kinds[0]} has no head: its outputs are features, no classes",)
    if evidence.outputs == 1:
        if config.get("model_type") and evidence.activation == "none":
            return "regression", (
                f"one output and no problem_type in {evidence.where}: a number, as in transformers; task='binary' says "
                "that it is the logit of the second of two classes",
            )
        return "binary", ("one output: the second of two classes; task='regression' says that it is a number",)
    if evidence.activation == "sigmoid":
        return "multi-label", (
            "a sigmoid at the end: classes that do not exclude each other; task='single-label' says that they do",
        )
    return "single-label", ()


def _refuse_unfit(task: Task, evidence: HeadEvidence) -> None:
    count = evidence.outputs
    if task == "binary" and count != 1:
        raise UsageError(f"task='binary' is for one output, and the model has {count}: leave it out")
    if task in ("single-label", "multi-label") and count == 1:
        raise UsageError(f"task={task!r} needs several outputs, and the model has one: binary or regression fits")


def _names(task: Task, evidence: HeadEvidence) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return class names that fit, and a note on those that do not."""
    wanted = {"binary": 2, "features": 0}.get(task, evidence.outputs)
    if evidence.labels is not None:
        if task == "features":
            raise UsageError("labels= names classes, and a model without a head has none: leave it out")
        names = read_class_names(evidence.labels)
        if not _fits(task, names, wanted):
            noun = "outputs" if task != "binary" else "classes"
            raise DataError(f"{str(evidence.labels)!r} has {len(names)} class names, the model has {wanted} {noun}")
        note = repeated_names(names, repr(str(evidence.labels)))
        return _both(task, names), (note,) * bool(note)
    if task == "features":
        return (), ()
    counts = (wanted, 1) if task == "binary" else (wanted,)
    names, problem = usable_class_names(evidence.config or {}, evidence.where, *counts)
    return _both(task, names or evidence.known), (problem,) * bool(problem)


def _fits(task: Task, names: tuple[str, ...], wanted: int) -> bool:
    return len(names) == wanted or (task == "binary" and len(names) == 1)


def _both(task: Task, names: tuple[str, ...]) -> tuple[str, ...]:
    return (f"not {names[0]}", names[0]) if task == "binary" and len(names) == 1 else names
