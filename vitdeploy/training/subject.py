"""What is trained: from a name, arguments and a dataset to a model's specification and its preprocessing; no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from vitdeploy.catalog import variant, variants
from vitdeploy.datasets import Dataset
from vitdeploy.errors import DataError, UsageError
from vitdeploy.preprocess import IMAGENET_MEAN, IMAGENET_STD
from vitdeploy.reading import parse_yaml
from vitdeploy.records import ModelSpec, Preprocess

SMALL_SIDE = 64
TINY_SIDE = 16
DEFAULT_SIDE = 32

# Small members of a family for small images, taken where a family is named without its shape. At this width the usual
# initial std of 0.02 underfits, so linears start as Xavier's and positions ten times wider. The other families have
# theirs for the digits in recipes/families.
SMALL_VIT = {"width": 64, "depth": 3, "heads": 4, "init": "xavier", "position_std": 0.2}
SMALL: dict[str, dict[str, Any]] = {"vit": SMALL_VIT, "deit": SMALL_VIT}
NO_SHAPE = {"image_size", "channels", "num_classes", "drop_path"}  # arguments that say nothing of a model's shape


@dataclass(frozen=True)
class Subject:
    """A model to be trained; ``note`` says what was chosen for the user, and is empty where nothing was."""

    spec: ModelSpec
    preprocess: Preprocess
    note: str = ""


def choose_subject(
    model: str, arguments: Mapping[str, Any], train: Dataset, preprocess: Preprocess | None = None
) -> Subject:
    """Complete a model's arguments from the dataset: classes, channels and image size.

    Args:
        model: A catalogue name, or a family, of which a small member is taken for small images.
        arguments: Replace those of the variant or of the small member.
        train: The training split.
        preprocess: Taken as it is; by default that of the variant, else what the dataset suggests.

    Raises:
        DataError: The dataset has no labels or fewer than two classes.
        ModelError: There is no such model.
        UsageError: ``num_classes`` or ``channels`` contradicts the dataset or the preprocessing.
    """
    if train.labels is None or len(train.classes) < 2:
        what = "no labels" if train.labels is None else f"{len(train.classes)} class"
        raise DataError(f"{train.uri!r} has {what}, and training needs at least 2 classes: one folder per class")
    known = variants()
    note = ""
    if model in known:
        family, given = known[model].family, {**known[model].arguments, **arguments}
        preprocess = _fitted(preprocess or known[model].preprocess, given)
    else:
        family = _family(model)
        preprocess = preprocess or train.preprocess or _square(_side(arguments), int(arguments.get("channels", 3)))
        preprocess = _fitted(preprocess, arguments)
        small = _small_member(family, preprocess.size, arguments)
        given = {**small, **arguments}
        if small:
            listed = ", ".join(f"{name}={value}" for name, value in given.items())
            note = f"{family} of small size: image_size={preprocess.size[0]}×{preprocess.size[1]}, {listed}"
    return Subject(_spec(model, family, given, preprocess, train), preprocess, note)


def _small_member(family: str, size: tuple[int, int], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a small member that takes images of ``size``; empty where none is known or wanted."""
    if family in SMALL:
        wanted = max(size) <= SMALL_SIDE and not {"width", "depth"} & set(given)
        return {**SMALL[family], "patch": _patch(size)} if wanted else {}
    file = resources.files("vitdeploy") / "recipes" / "families" / f"{family}.yaml"
    if max(size) > TINY_SIDE or set(given) - NO_SHAPE or not file.is_file():
        return {}
    arguments: dict[str, Any] = parse_yaml(file.read_text("utf8"))["train"]["arguments"]
    return arguments


def _family(name: str) -> str:
    """Return ``name`` if it is a family; the registry, which needs torch, is asked only for families without variants.

    Raises:
        ModelError: It is neither a family nor a catalogue name.
    """
    if name in SMALL or name in {entry.family for entry in variants().values()}:
        return name
    from vitdeploy.models import FAMILIES

    return name if name in FAMILIES else variant(name).family


def _spec(model: str, family: str, arguments: dict[str, Any], preprocess: Preprocess, train: Dataset) -> ModelSpec:
    """Return the specification with everything that the data decides.

    Raises:
        UsageError: ``num_classes`` or ``channels`` was given and is another number.
    """
    decided = {
        "image_size": list(preprocess.size),
        "channels": preprocess.channels,
        "num_classes": len(train.classes),
    }
    for name, reason in (("num_classes", f"{train.uri!r} has"), ("channels", "the preprocessing gives")):
        if name in arguments and arguments[name] != decided[name]:
            raise UsageError(f"{name} is {arguments[name]!r}, and {reason} {decided[name]}: leave the argument out")
    return ModelSpec(family=family, name=model, arguments={**arguments, **decided}, classes=train.classes)


def _fitted(preprocess: Preprocess, arguments: Mapping[str, Any]) -> Preprocess:
    """Return the preprocessing at the ``image_size`` that was asked for; images of one size are scaled to it."""
    if "image_size" not in arguments:
        return preprocess
    value = arguments["image_size"]
    size = (value, value) if isinstance(value, int) else tuple(value)
    if preprocess.resize == "none" and size != preprocess.size:
        preprocess = preprocess.model_copy(update={"resize": "squash"})
    return preprocess.at_size((size[0], size[1]))


def _side(arguments: Mapping[str, Any]) -> int:
    value = arguments.get("image_size", DEFAULT_SIDE)
    return value if isinstance(value, int) else max(value)


def _square(side: int, channels: int) -> Preprocess:
    """Return the preprocessing of images that say nothing themselves: shorter side to ``side``, centre crop."""
    if channels not in (1, 3):
        raise UsageError(f"channels is {channels!r}, expected 1 or 3")
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.5,), (0.5,))
    return Preprocess(
        size=(side, side), channels=channels, resize_size=side, mean=mean, std=std, source="vitdeploy train"
    )


def _patch(size: tuple[int, int]) -> int:
    """Return the patch that gives about 8 patches a side, and 4 on the smallest images."""
    wanted = 4 if min(size) <= 8 else 8
    divisors = [patch for patch in range(1, min(size) + 1) if not size[0] % patch and not size[1] % patch]
    return min(divisors, key=lambda patch: abs(min(size) / patch - wanted))
