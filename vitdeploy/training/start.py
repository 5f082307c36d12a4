"""Where a training starts: fresh weights, or those of a trained model with a head for the new classes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vitdeploy.datasets import Dataset
from vitdeploy.errors import DataError, UsageError
from vitdeploy.records import Preprocess, TrainingData
from vitdeploy.sources.load import load
from vitdeploy.sources.source import Source
from vitdeploy.training.schedule import seed_of
from vitdeploy.training.subject import Subject

if TYPE_CHECKING:
    from torch import nn

    from vitdeploy.training.loss import Teacher


@dataclass(frozen=True)
class Start:
    """What is trained, the module with its initial weights, and the trainings that these come from."""

    subject: Subject
    module: nn.Module
    trained_on: tuple[TrainingData, ...] = ()


def fresh_start(subject: Subject, seed: int) -> Start:
    """Return fresh weights, which depend on ``seed`` alone."""
    import torch

    from vitdeploy.models import model_from_spec

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(seed, "weights"))
        return Start(subject, model_from_spec(subject.spec))


def trained_start(source: Source, train: Dataset, *, seed: int) -> Start:
    """Return a trained model that is to learn the dataset's classes.

    Where their number is another, the head is drawn anew and everything else kept. The source's arguments may ask for
    another image size, for which tables of positions are resized, and for whatever else changes no weight, such as
    ``drop_path``. The subject's note says all of it, a line for each.

    Raises:
        CheckpointError: The weights do not fit the arguments.
        UsageError: ``num_classes`` is not that of the dataset.
    """
    classes = len(train.classes)
    arguments = dict(source.options.arguments)
    if arguments.pop("num_classes", classes) != classes:
        stated = source.options.arguments["num_classes"]
        raise UsageError(f"num_classes is {stated!r}, and {train.uri!r} has {classes}: leave the argument out")
    options = replace(source.options, arguments=arguments, head_for=classes, seed=seed_of(seed, "weights"))
    loaded = load(replace(source, options=options))
    spec = loaded.spec.model_copy(update={"classes": train.classes, "task": "single-label"})
    notes = (*loaded.notes, f"starting from {loaded.origin}")
    return Start(Subject(spec, loaded.preprocess, "\n".join(notes)), loaded.module.train(), loaded.trained_on)


def open_teacher(source: Source, student: Subject) -> Teacher:
    """Load a teacher for a student.

    Raises:
        DataError: It knows other classes.
        UsageError: It takes images of another size or number of channels.
    """
    from vitdeploy.training.loss import Teacher

    loaded = load(source)
    theirs, ours = loaded.preprocess, student.preprocess
    if (theirs.size, theirs.channels) != (ours.size, ours.channels):
        raise UsageError(
            f"teacher {source.text!r} takes {_shape(theirs)}, and the student {_shape(ours)}: train the student at "
            "that size, or give the teacher the argument image_size"
        )
    if loaded.spec.classes != student.spec.classes:
        raise DataError(
            f"teacher {source.text!r} knows {_classes(loaded.spec.classes)}, and the dataset has "
            f"{len(student.spec.classes)} others: train it on the same data first"
        )
    return Teacher(loaded.module, theirs, ours)


def _classes(names: tuple[str, ...]) -> str:
    return f"{len(names)} classes" if names else "no names of classes"


def _shape(preprocess: Preprocess) -> str:
    height, width = preprocess.size
    return f"{preprocess.channels}×{height}×{width}"
