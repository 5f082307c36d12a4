"""Where a training starts: fresh weights, or those of a trained model with a head for the new classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vitdeploy.datasets import Dataset
from vitdeploy.errors import CheckpointError, DataError, UsageError
from vitdeploy.records import ModelSpec, Preprocess
from vitdeploy.sources.load import load
from vitdeploy.sources.source import Source
from vitdeploy.training.schedule import seed_of
from vitdeploy.training.subject import Subject

if TYPE_CHECKING:
    from torch import nn

    from vitdeploy.training.loss import Teacher


@dataclass(frozen=True)
class Start:
    """What is trained, and the module with its initial weights."""

    subject: Subject
    module: nn.Module


def fresh_start(subject: Subject, seed: int) -> Start:
    """Return fresh weights, which depend on ``seed`` alone."""
    import torch

    from vitdeploy.models import model_from_spec

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(seed, "weights"))
        return Start(subject, model_from_spec(subject.spec))


def trained_start(source: Source, arguments: Mapping[str, Any], train: Dataset, *, seed: int) -> Start:
    """Return a trained model that is to learn the dataset's classes.

    Where their number is another, the head is drawn anew and everything else kept; the note says so. ``arguments`` that
    change no weight, such as ``drop_path``, replace those that the model was trained with.

    Raises:
        CheckpointError: An argument changes weights other than the head's.
        UsageError: The model is timm's or torchvision's own, or ``num_classes`` or ``channels`` contradicts dataset or
            weights.
    """
    from vitdeploy.models import FAMILIES

    loaded = load(source)
    if loaded.spec.family not in FAMILIES:
        raise UsageError(
            f"{source.text!r} is built by {loaded.spec.family}, which vitdeploy exports as it is and does not train: "
            "name a model of the catalogue, with '--weights FILE'"
        )
    classes = len(train.classes)
    if arguments.get("num_classes", classes) != classes:
        raise UsageError(
            f"num_classes is {arguments['num_classes']!r}, and {train.uri!r} has {classes}: leave the argument out"
        )
    spec = ModelSpec(
        family=loaded.spec.family,
        name=loaded.spec.name,
        arguments={**loaded.spec.arguments, **_translated(loaded.spec.family, arguments), "num_classes": classes},
        classes=train.classes,
    )
    module = fresh_start(Subject(spec, loaded.preprocess), seed).module
    renewed = _copy_weights(module, loaded.module, (classes, int(loaded.spec.arguments["num_classes"])))
    notes = [*loaded.notes, f"starting from {loaded.origin}"]
    if renewed:
        notes.append(f"the head is new, for {classes} classes: {', '.join(renewed)}")
    return Start(Subject(spec, loaded.preprocess, "; ".join(notes)), module)


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
            "that size"
        )
    if loaded.spec.classes != student.spec.classes:
        raise DataError(
            f"teacher {source.text!r} knows {len(loaded.spec.classes)} classes that are not the dataset's "
            f"{len(student.spec.classes)}: train it on the same data first"
        )
    return Teacher(loaded.module, theirs, ours)


def _translated(family: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments under the names that the family uses."""
    names = {"drop_path": "drop_path_rate"} if family == "timm" else {}
    return {names.get(name, name): value for name, value in arguments.items()}


def _copy_weights(module: nn.Module, trained: nn.Module, classes: tuple[int, int]) -> list[str]:
    """Fill ``module`` from ``trained`` and return the tensors that stay fresh because the number of classes differs.

    classes: (of the module, of the trained one); a tensor that differs must have just these as its first sizes.
    """
    import torch

    target, source = module.state_dict(), trained.state_dict()
    if target.keys() != source.keys():
        odd = sorted(target.keys() ^ source.keys())[0]
        raise CheckpointError(
            f"the arguments change the model's weights ({odd!r} is in one of the two): leave them out"
        )
    renewed = []
    with torch.no_grad():
        for name, value in source.items():
            if value.shape == target[name].shape:
                target[name].copy_(value)
            elif (*classes, value.shape[1:]) == (len(target[name]), len(value), target[name].shape[1:]):
                renewed.append(name)
            else:
                raise CheckpointError(
                    f"{name!r} is {list(value.shape)} in the weights and {list(target[name].shape)} with these "
                    f"arguments: leave out those that change the weights"
                )
    return renewed


def _shape(preprocess: Preprocess) -> str:
    height, width = preprocess.size
    return f"{preprocess.channels}×{height}×{width}"
