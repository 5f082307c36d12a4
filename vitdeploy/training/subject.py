"""What is trained: from a name, arguments and a dataset to a model's specification and its preprocessing; no torch."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from vitdeploy.catalog import Variant, resolve, variant, variants
from vitdeploy.datasets import Dataset
from vitdeploy.errors import DataError, UsageError
from vitdeploy.preprocess import IMAGENET_MEAN, IMAGENET_STD, image_size
from vitdeploy.records import ModelSpec, Preprocess
from vitdeploy.training.small import SMALL_SIDE, gives_shape, small_member, smallest_variant

DEFAULT_SIDE = 32
USUAL = "vitdeploy train"
LOOKED_AT = 12


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
        model: A catalogue name, or a family, of which a small member is taken for images of up to 64×64 pixels, and
            the smallest variant of the catalogue for larger ones, unless ``arguments`` give its shape.
        arguments: Replace those of the variant or of the small member.
        train: The training split.
        preprocess: Taken as it is; by default that of the variant, else what the dataset suggests.

    Raises:
        DataError: The dataset has no labels or fewer than two classes.
        ModelError: There is no such model.
        UsageError: ``num_classes`` or ``channels`` contradicts the dataset or the preprocessing, or the family has no
            small member for images of this size.
    """
    if train.labels is None or len(train.classes) < 2:
        noun = "no labels" if train.labels is None else f"{len(train.classes)} class"
        raise DataError(f"{train.uri!r} has {noun}, and training needs at least 2 classes: one folder per class")
    chosen, own = resolve(model), dict(arguments)
    size = image_size(arguments)
    if chosen is not None:
        family, note = chosen.family, ""
    else:
        family = _family(model)
        wanted = size or (preprocess or train.preprocess or _square(DEFAULT_SIDE, 3)).size
        small = {} if gives_shape(arguments) else small_member(family, wanted)
        own = {**small, **own}
        chosen = None if small or gives_shape(arguments) else smallest_variant(family, wanted)
        note = _note(family, wanted, small, chosen)
    if chosen is not None:
        own = {**chosen.arguments, **own}
    if preprocess is None and resolve(model) is None:
        preprocess = train.preprocess
    preprocess = preprocess or _usual(chosen, size, own.get("channels", 3))
    preprocess = preprocess if size is None else preprocess.at_size(size)
    name = model if chosen is None else chosen.name
    return Subject(_spec(name, family, own, preprocess, train), preprocess, note)


def detail_note(subject: Subject, train: Dataset) -> str:
    """Return what to choose where photographs are much larger than the small images they are trained at; else "".

    The size of a few images is looked at.
    """
    if subject.preprocess.source != USUAL or max(subject.preprocess.size) > SMALL_SIDE or train.file(0) is None:
        return ""
    sizes = []
    for index in range(0, len(train), max(1, len(train) // LOOKED_AT)):
        with suppress(DataError):  # the training names what cannot be read
            sizes.append(train.image(index).size)
    if not sizes:
        return ""
    width, height = sorted(sizes, key=min)[len(sizes) // 2]
    side = max(subject.preprocess.size)
    if min(width, height) < 2 * side:
        return ""
    return (
        f"the images are about {width}×{height} pixels and are trained at {side}×{side}, which is fast and enough for "
        "classes that differ at a glance: for finer detail fine-tune a model of 224 pixels from weights, such as "
        "vit_tiny_patch16_224 with a weight file, or timm:vit_tiny_patch16_224 (docs/training.md has the settings)"
    )


def _usual(variant: Variant | None, size: tuple[int, int] | None, channels: int) -> Preprocess:
    """Return the preprocessing of a variant; without one, or with another number of channels, the usual one."""
    if variant is not None and channels == variant.preprocess.channels:
        return variant.preprocess
    return _square(max(size or (DEFAULT_SIDE, DEFAULT_SIDE)), channels)


def _note(family: str, size: tuple[int, int], small: Mapping[str, Any], variant: Variant | None) -> str:
    if small:
        listed = ", ".join(f"{name}={value}" for name, value in small.items())
        return f"{family} of small size: image_size={size[0]}×{size[1]}, {listed}"
    if variant is not None:
        parameters = f"{variant.parameters / 1e6:.1f} M parameters"
        return f"{family} at {size[0]}×{size[1]}: {variant.name}, the smallest of the catalogue ({parameters})"
    return ""


def _family(name: str) -> str:
    """Return ``name`` if it is a family; the registry, which needs torch, is asked only for families without variants.

    Raises:
        ModelError: It is neither a family nor a catalogue name.
    """
    if name in {entry.family for entry in variants().values()}:
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


def _square(side: int, channels: int) -> Preprocess:
    """Return the preprocessing of images that say nothing themselves: shorter side to ``side``, centre crop."""
    if channels not in (1, 3):
        raise UsageError(f"channels is {channels!r}, expected 1 or 3")
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.5,), (0.5,))
    return Preprocess(size=(side, side), channels=channels, resize_size=side, mean=mean, std=std, source=USUAL)
