"""A small member of each family for images of 8×8 pixels, with every tensor redrawn, as the recipes describe them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from redrawing import redraw
from torch import nn

from vitdeploy.artifacts import Checkpoint, write_checkpoint
from vitdeploy.models import create_model
from vitdeploy.preprocess import DIGITS_PREPROCESS
from vitdeploy.reading.yaml_text import read_yaml
from vitdeploy.records import Manifest, ModelSpec

RECIPES = Path(__file__).resolve().parent.parent.parent / "vitdeploy" / "recipes" / "families"
FAMILIES = ("vit", "deit", "swin", "swin_v2", "pvt", "pvt_v2", "t2t", "tnt", "patchconvnet")


def small_model(family: str) -> tuple[nn.Module, dict[str, Any]]:
    """Return the model of a family's recipe and its arguments."""
    arguments = read_yaml(RECIPES / f"{family}.yaml")["train"]["arguments"]
    for name in ("init", "position_std"):
        arguments.pop(name, None)
    arguments |= {"image_size": 8, "channels": 1, "num_classes": 10}
    return redraw(create_model(family, **arguments)).eval(), arguments


def small_checkpoint(family: str, path: Path) -> Checkpoint:
    """Write that model."""
    model, arguments = small_model(family)
    tensors = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    spec = ModelSpec(family=family, name=family, arguments=arguments, classes=tuple("0123456789"))
    return write_checkpoint(path, tensors, Manifest(kind="checkpoint", model=spec, preprocess=DIGITS_PREPROCESS))
