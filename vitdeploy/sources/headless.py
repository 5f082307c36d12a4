"""A loaded classifier without its head: features [B, D], what its head reads, in place of logits."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vitdeploy.errors import ModelError
from vitdeploy.sources.loaded import IMAGENET_CLASSES, LoadedModel

if TYPE_CHECKING:
    from torch import nn


def has_head(loaded: LoadedModel) -> bool:
    """Return whether the model gives logits."""
    return bool(loaded.spec.arguments.get("num_classes", IMAGENET_CLASSES))


def without_head(loaded: LoadedModel) -> LoadedModel:
    """Return the model built with ``num_classes=0``, every other weight as it was; one without a head stays as it is.

    What the features are is the family's word: of ours the pooled vector that the head reads (of DeiT's two heads the
    mean of both, as in timm), of timm's what ``forward_head(pre_logits=True)`` gives, of torchvision's the input of the
    last linear layer. The digest stays that of the weights with the head, so that lineage leads back to them.

    Raises:
        ModelError: The family has no such vector, or its head is more than one row of weights for each class.
    """
    import torch

    from vitdeploy.models.registry import model_from_spec

    if not has_head(loaded):
        return loaded
    classes = int(loaded.spec.arguments.get("num_classes", IMAGENET_CLASSES))
    spec = loaded.spec.model_copy(
        update={"arguments": {**loaded.spec.arguments, "num_classes": 0}, "classes": (), "task": "features"}
    )
    with torch.random.fork_rng(devices=[]):
        module = model_from_spec(spec)
    _move(loaded, module, classes)
    note = "its head is left out: the outputs are the features that it reads"
    return replace(loaded, module=module.eval(), spec=spec, notes=(*loaded.notes, note))


def _move(loaded: LoadedModel, module: nn.Module, classes: int) -> None:
    """Fill ``module`` with the weights of the classifier, all but those of its head.

    Raises:
        ModelError: Another weight has no place, or a place no weight.
    """
    import torch

    classifier, state = loaded.module.state_dict(), module.state_dict()
    own_word = loaded.spec.family == "timm"  # for what its models are without a head
    left = [
        name for name in classifier if name not in state and not own_word and classifier[name].shape[:1] != (classes,)
    ]
    odd = [*left, *(name for name in state if name not in classifier or classifier[name].shape != state[name].shape)]
    if odd:
        raise ModelError(
            f"{loaded.origin} has no features that can be told from its head: {odd[0]!r} would be left over without it"
        )
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(classifier[name])
