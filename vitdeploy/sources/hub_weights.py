"""The weights of a file for a model that timm or torchvision builds, wherever in the file they stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy.checkpoints.candidates import common_root, roots
from vitdeploy.checkpoints.files import Tensors, WeightFile, open_weights
from vitdeploy.checkpoints.heads import settle_head
from vitdeploy.checkpoints.layouts import google, hybrid

if TYPE_CHECKING:
    from torch import nn

ENOUGH = 0.9
"""The share of a model's parameters, besides those of its head, at which a table of a file is one of its weights."""


@dataclass(frozen=True)
class HubWeights:
    """Tensors with the head under the model's name, as the file has them, and what was decided on the way."""

    tensors: Tensors
    unchanged: Tensors
    notes: tuple[str, ...] = ()


def read_hub_weights(path: Path, module: nn.Module) -> HubWeights:
    """Return the weights of a file for a model: below the place whose names are the model's, its head in its place.

    Args:
        path: A weight file or a folder, in any container and wrappers.
        module: The model, with any number of classes and of any image size.
    Raises:
        ArtifactError, CheckpointError: The file is damaged, or holds no weights.
    """
    opened = open_weights(path)
    linear = _classifier(module)
    wanted = {name for name, _ in module.named_parameters() if not linear or not name.startswith(f"{linear}.")}

    def accept(names: Sequence[str]) -> bool | None:
        return True if len(wanted.intersection(names)) >= ENOUGH * len(wanted) else None

    found = roots(opened, accept)
    file = opened.below(found[0][0] if found else common_root(opened))
    if not found and (root := google.root_of(file.leaves)) is not None:
        return _of_google(file, root)
    head = settle_head(file.tensors, _outermost(linear, module), linear) if linear else None
    tensors = file.tensors if head is None or head.problem else head.tensors
    notes = [note for note in (_place(file), head.note if head is not None else "") if note]
    return HubWeights(dict(tensors), dict(file.tensors), tuple(notes))


def _of_google(file: WeightFile, root: str) -> HubWeights:
    """Return the weights of Google's JAX code under timm's names."""
    inside, beside = google.below(file.tensors, root)
    tensors = hybrid.from_google(inside)
    notes = ["renamed the weights of Google's JAX code as timm has them"]
    if beside:
        notes.append(f"left out {beside}: no part of the model")
    return HubWeights(tensors, tensors, tuple(notes))


def _place(file: WeightFile) -> str:
    place = ".".join(part for part in (file.entry, file.prefix.removesuffix(".")) if part)
    return f"took the weights under {place!r}" if place else ""


def _classifier(module: nn.Module) -> str:
    """Return where the linear of the logits stands, "" where there is none or several."""
    from torch import nn

    stated = getattr(module, "pretrained_cfg", None)
    name = stated.get("classifier") if isinstance(stated, Mapping) else None
    linears = [place for place, child in module.named_modules() if isinstance(child, nn.Linear)]
    if stated is not None:
        return name if isinstance(name, str) and name in linears else ""
    return linears[-1] if linears else ""


def _outermost(linear: str, module: nn.Module) -> str:
    """Return the attribute that people replace: the outermost one in which there is nothing but the linear."""
    names: Any = list(module.state_dict())
    place = linear
    while "." in place:
        above = place.rpartition(".")[0]
        if any(name.startswith(f"{above}.") and not name.startswith(f"{linear}.") for name in names):
            break
        place = above
    return place
