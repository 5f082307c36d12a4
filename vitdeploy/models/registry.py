"""Which module builds which family, and ``create_model``.

A family is one file with one ``nn.Module`` class whose constructor takes JSON values (``num_classes``, ``channels``,
``image_size``, … as keyword arguments) and whose ``forward`` maps [B, C, H, W] to logits [B, num_classes]. It has
timm's two conventions for fine-tuning: ``no_weight_decay()`` returns the names of parameters without decay and
``group_matcher(coarse)`` the regular expressions that order parameters into layers. ``position_grids`` maps the name
of each table of positions, [1, tokens + rows · columns, D], to (tokens, (rows, columns)); some families have none.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from torch import nn

from vitdeploy import catalog
from vitdeploy.errors import ModelError, UsageError
from vitdeploy.models.arguments import check_types
from vitdeploy.plugins import load_plugins
from vitdeploy.records import ModelSpec

FAMILIES: dict[str, str | type[nn.Module]] = {
    "vit": "vitdeploy.models.vit:VisionTransformer",
    "vit_pytorch": "vitdeploy.models.vit_pytorch:PixelNormViT",
    "hybrid": "vitdeploy.models.hybrid:HybridViT",
    "deit": "vitdeploy.models.deit:DistilledViT",
    "t2t": "vitdeploy.models.t2t:T2TViT",
    "tnt": "vitdeploy.models.tnt:TNT",
    "pvt": "vitdeploy.models.pvt:PVT",
    "pvt_v2": "vitdeploy.models.pvt_v2:PVTv2",
    "swin": "vitdeploy.models.swin:SwinTransformer",
    "swin_v2": "vitdeploy.models.swin_v2:SwinTransformerV2",
    "patchconvnet": "vitdeploy.models.patchconvnet:PatchConvNet",
}

EXTERNAL = ("timm", "torchvision")


def register_family(name: str, module: type[nn.Module], variants: Sequence[catalog.Variant] = ()) -> None:
    """Add a family under a name of its own, with its variants; see the head of this file for what its class is.

    Raises:
        UsageError: Another family or variant has one of these names, or a variant is of another family.
    """
    if FAMILIES.get(name, module) is not module:
        raise UsageError(f"there already is a family {name!r}: register another name")
    for entry in variants:
        if entry.family != name:
            raise UsageError(f"variant {entry.name!r} is of family {entry.family!r}, expected {name!r}")
    catalog.register(variants)
    FAMILIES[name] = module


def family_class(family: str) -> type[nn.Module]:
    """Return the module class of a family.

    Raises:
        ModelError: There is no such family.
    """
    if family not in FAMILIES:
        raise ModelError(f"there is no family {family!r}, expected one of {', '.join(FAMILIES)}")
    entry = FAMILIES[family]
    if not isinstance(entry, str):
        return entry
    module, name = entry.split(":")
    cls: type[nn.Module] = getattr(importlib.import_module(module), name)
    return cls


def create_model(name: str, **arguments: Any) -> nn.Module:
    """Build a catalogue variant, or a family at any size: ``create_model("vit", width=64, depth=3, …)``.

    Arguments given here replace those of the variant. The weights are freshly initialised.

    Raises:
        ModelError: Name or argument is unknown, or the values do not fit each other.
    """
    if name in FAMILIES:
        return model_from_spec(ModelSpec(family=name, name=name, arguments=arguments))
    entry = catalog.variant(name)
    return model_from_spec(ModelSpec(family=entry.family, name=entry.name, arguments={**entry.arguments, **arguments}))


def model_from_spec(spec: ModelSpec) -> nn.Module:
    """Build the module that ``spec`` describes, in training mode, with fresh weights.

    Besides ours, the families ``timm`` and ``torchvision`` are the models of these packages, by their names.

    Raises:
        ModelError: The family does not know an argument, or the values do not fit each other.
    """
    if spec.family in EXTERNAL:
        from vitdeploy.models.external import build

        return build(spec.family, spec.name, spec.arguments)
    cls = family_class(spec.family)
    known = set(inspect.signature(cls).parameters)
    unknown = sorted(set(spec.arguments) - known)
    if unknown:
        near = get_close_matches(unknown[0], sorted(known), n=1)
        meant = f" ({near[0]!r} is meant?)" if near else ""
        raise ModelError(
            f"family {spec.family!r} has no argument {unknown[0]!r}{meant}, expected some of {', '.join(sorted(known))}"
        )
    check_types(cls, spec.arguments)
    return cls(**spec.arguments)


load_plugins(catalog.GROUP)
