"""The classes of ImageNet-1k in ILSVRC 2012 order; ``imagenet1k.txt`` says where the facts come from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources


@dataclass(frozen=True)
class ImageNetClass:
    """``synset`` is the WordNet id (``n01440764``), ``label`` is unique among the classes, ``lemmas`` need not be."""

    index: int
    synset: str
    label: str
    lemmas: tuple[str, ...]


@cache
def imagenet_classes() -> tuple[ImageNetClass, ...]:
    """Return the 1000 classes, position = index of the logit in models trained on ImageNet-1k."""
    text = resources.files("vitdeploy.datasets").joinpath("imagenet1k.txt").read_text("utf8")
    rows = [line.split("\t") for line in text.splitlines() if line and not line.startswith("#")]
    return tuple(
        ImageNetClass(index, synset, label, tuple(lemmas.split(", ")))
        for index, (synset, label, lemmas) in enumerate(rows)
    )


def imagenet_labels() -> tuple[str, ...]:
    """Return the 1000 labels: what ``ModelSpec.classes`` is for a model with ImageNet's classes in ILSVRC order."""
    return tuple(entry.label for entry in imagenet_classes())
