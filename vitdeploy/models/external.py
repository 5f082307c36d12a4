"""Models of timm and torchvision as they are: built by name, so that a checkpoint of vitdeploy's can hold them too."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from vitdeploy.errors import ModelError

_TORCHVISION_HEADS = ("heads", "head", "fc", "classifier")
_TORCHVISION_SIZES = {"vit_": "image_size", "maxvit_": "input_size"}
"""What models of torchvision with tables of positions are called → their argument for the size of images."""
_TIMM_NAMES = {"image_size": "img_size", "channels": "in_chans", "drop_path": "drop_path_rate"}


def build(family: str, name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Build a model of ``timm`` or ``torchvision``, in training mode, with fresh weights.

    Raises:
        ModelError: The package is missing, has no such model, or refuses the arguments.
    """
    return create_timm(name, arguments) if family == "timm" else create_torchvision(name, arguments)


def translated(family: str, arguments: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return constructor arguments of the model ``name`` under those that its family uses: timm's is ``img_size``.

    Of torchvision's models most take images of any size, so theirs is left out.
    """
    if family == "timm":
        return {_TIMM_NAMES.get(name, name): value for name, value in arguments.items()}
    if family == "torchvision" and not name.startswith(tuple(_TORCHVISION_SIZES)):
        return {name: value for name, value in arguments.items() if name != "image_size"}
    return dict(arguments)


def import_timm(name: str) -> Any:
    """Return timm, which has the model ``name``.

    Raises:
        ModelError: It is not installed, or has no such model; the message has the nearest names.
    """
    try:
        import timm
    except ImportError as error:
        raise ModelError(f"'timm:{name}' needs timm, which is not installed: pip install 'vitdeploy[torch]'") from error
    if not timm.is_model(name.partition(".")[0]):
        raise ModelError(f"timm has no model {name!r}: {nearest(name, timm.list_models())}")
    return timm


def create_timm(
    name: str, arguments: Mapping[str, Any], weights: tuple[Mapping[str, Tensor], int] | None = None
) -> nn.Module:
    """Build a model of timm.

    Args:
        name: With or without the tag of its pretrained weights; they are not fetched.
        arguments: As timm names them. A model that takes images of any size has no ``img_size``, so there it is
            left out.
        weights: State dict and number of classes of the same model at another image size or number of classes: timm
            fits the tables by the model's own rule and leaves a head of another size fresh.

    Raises:
        ModelError: timm is missing, has no such model, or refuses the arguments.
    """
    timm = import_timm(name)
    extra: dict[str, Any] = {"pretrained": False}
    if weights is not None:
        state, classes = weights
        overlay = {"state_dict": dict(state), "num_classes": classes, "label_offset": 0, "source": ""}
        extra = {"pretrained": True, "pretrained_cfg_overlay": overlay}
    arguments = dict(arguments)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # timm's notes on models that it renamed
            try:
                module: nn.Module = timm.create_model(name, **extra, **arguments)
            except TypeError as error:
                if "img_size" not in arguments or "img_size" not in str(error):
                    raise
                del arguments["img_size"]
                module = timm.create_model(name, **extra, **arguments)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise ModelError(f"timm cannot build {name!r} with {arguments!r}: {_first_line(error)}") from error
    return module


def create_torchvision(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Build a classification model of torchvision.

    Raises:
        ModelError: torchvision is missing, has no such model, or refuses the arguments.
    """
    try:
        from torchvision import models
    except ImportError as error:
        raise ModelError(f"'torchvision:{name}' needs torchvision: pip install 'vitdeploy[torch]'") from error
    names = models.list_models(module=models)
    if name not in names:
        raise ModelError(f"torchvision has no classification model {name!r}: {nearest(name, names)}")
    arguments = _sized(name, arguments)
    try:
        if arguments.get("num_classes") == 0:
            rest = {key: value for key, value in arguments.items() if key != "num_classes"}
            return _without_last_linear(models.get_model(name, weights=None, **rest), name)
        module: nn.Module = models.get_model(name, weights=None, **arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ModelError(f"torchvision cannot build {name!r} with {dict(arguments)!r}: {_first_line(error)}") from error
    return module


def _sized(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments with ``image_size``, in pixels or as [height, width], as the model of torchvision takes it.

    Raises:
        ModelError: The model takes squares alone.
    """
    rest = dict(arguments)
    own = next((own for start, own in _TORCHVISION_SIZES.items() if name.startswith(start)), None)
    if "image_size" not in rest or own is None:
        return rest
    size = rest.pop("image_size")
    height, width = (size, size) if isinstance(size, int) else size
    if own == "image_size" and height != width:
        raise ModelError(f"'torchvision:{name}' takes square images, and image_size is {height}×{width}")
    return {**rest, own: height if own == "image_size" else (height, width)}


def _without_last_linear(module: nn.Module, name: str) -> nn.Module:
    """Return a model of torchvision whose last linear layer hands on what it reads.

    Raises:
        ModelError: Its logits are not those of a linear layer.
    """
    places = [
        place
        for place, child in module.named_modules()
        if isinstance(child, nn.Linear) and place.partition(".")[0] in _TORCHVISION_HEADS
    ]
    if not places:
        raise ModelError(f"'torchvision:{name}' has no linear head, so it has no features [B, D] to give")
    parent, _, attribute = places[-1].rpartition(".")
    setattr(module.get_submodule(parent), attribute, nn.Identity())
    return module


def nearest(name: str, names: list[str]) -> str:
    """Return a hint with the names that are most like ``name``."""
    near = difflib.get_close_matches(name, names, n=3)
    return f"did you mean {', '.join(near)}?" if near else "its documentation lists them"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(":. ") if lines else type(error).__name__
