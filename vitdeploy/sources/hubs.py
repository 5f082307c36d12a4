"""Models of timm, torchvision and Hugging Face by name; the only code of this package that may use the network."""

from __future__ import annotations

import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.errors import CheckpointError, ModelError
from vitdeploy.preprocess import image_size
from vitdeploy.records import ModelSpec, Preprocess
from vitdeploy.sources.hub_arguments import fitting_arguments
from vitdeploy.sources.hub_weights import HubWeights, read_hub_weights
from vitdeploy.sources.loaded import RANDOM_NOTE, LoadedModel, Weights, class_names, digest_of, fill
from vitdeploy.sources.refit import refit
from vitdeploy.sources.source import TIMM, TORCHVISION
from vitdeploy.text import one_line

if TYPE_CHECKING:
    from torch import nn

_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")


def load_timm(name: str, weights: Weights, arguments: Mapping[str, Any]) -> LoadedModel:
    """Build any timm model as it is; its preprocessing is that of its pretrained configuration.

    A file may hold weights for another ``img_size`` than is asked for: timm then resizes their tables.

    Raises:
        ModelError: timm is missing, has no such model, or refuses the arguments.
        CheckpointError: The weights do not fit or cannot be fetched.
    """
    import torch

    from vitdeploy.models.external import create_timm, import_timm, translated
    from vitdeploy.preprocess import preprocess_from_timm_config

    timm, arguments = import_timm(name), translated("timm", arguments, name)
    notes: tuple[str, ...] = (RANDOM_NOTE,) if weights.random else ()
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm's notes on models that it renamed
        torch.manual_seed(weights.seed)
        if weights.file is not None:
            found = read_hub_weights(weights.file, create_timm(name, arguments))
            arguments, notes = {**_classes_of(timm, name, found.tensors), **arguments}, found.notes
            module = _filled_timm(name, arguments, found, f"{str(weights.file)!r} as timm:{name}")
        else:
            module = create_timm(name, arguments) if weights.random else _fetch_timm(timm, name, arguments)
    classes = int(getattr(module, "num_classes"))  # noqa: B009 (nn.Module types attributes as tensors)
    spec = ModelSpec(
        family="timm", name=name, arguments={**arguments, "num_classes": classes}, classes=class_names(classes)
    )
    preprocess = preprocess_from_timm_config(_configuration(module, arguments), f"{TIMM}{name}")
    origin = f"{TIMM}{name}, {weights.describe('published weights')}"
    return LoadedModel(module.eval(), spec, preprocess, digest_of(module), origin, notes)


def _filled_timm(name: str, arguments: Mapping[str, Any], found: HubWeights, where: str) -> nn.Module:
    """Return a model with the weights of a file: under its own names, else through timm's own conversion of them.

    timm renames what older versions and the papers' repositories wrote, and resizes tables of positions, which is
    taken where ``img_size`` asks for it.

    Raises:
        CheckpointError: Names or shapes differ otherwise, or weights are no floating-point numbers.
    """
    import torch

    from vitdeploy.checkpoints.matching import check_numbers
    from vitdeploy.models.external import create_timm

    module = create_timm(name, arguments)
    floating = {key for key, value in module.state_dict().items() if value.is_floating_point()}
    check_numbers({key: np.asarray(value) for key, value in found.tensors.items()}, floating, where)
    try:
        fill(module, found.tensors, where)
    except CheckpointError as error:
        state = {key: torch.as_tensor(value) for key, value in found.unchanged.items()}
        classes = int(getattr(module, "num_classes"))  # noqa: B009 (nn.Module types attributes as tensors)
        with suppress(ModelError):
            module = create_timm(name, arguments, (state, classes))
            if _same_but_positions(module, found.tensors, "img_size" in arguments):
                return module
        shapes = {key: tuple(value.shape) for key, value in found.tensors.items()}
        if offer := fitting_arguments(name, arguments, module, shapes):
            raise CheckpointError(f"{error}; with arguments={offer} it fits") from error
        raise
    return module


def _same_but_positions(module: nn.Module, tensors: Mapping[str, Any], resized: bool) -> bool:
    """Return whether no tensor that a file has under the model's name has another shape; positions may if resized."""
    return all(
        tuple(tensors[name].shape) == tuple(value.shape) or (resized and "pos" in name)
        for name, value in module.state_dict().items()
        if name in tensors
    )


def _fetch_timm(timm: Any, name: str, arguments: Mapping[str, Any]) -> nn.Module:
    local = f"weights='FILE' loads weights from disk, random_weights=True uses none ({TIMM}{name})"
    if not timm.models.is_model_pretrained(name):
        raise CheckpointError(f"timm publishes no weights for {name!r}: {local}")
    with _hugging_face_hub() as hub:
        try:
            module: nn.Module = timm.create_model(name, pretrained=True, **arguments)
        except Exception as error:  # the hub's client raises what its HTTP library and the file system raise
            reason = hub.silence or one_line(error)
            raise CheckpointError(f"the weights of 'timm:{name}' cannot be fetched ({reason}): {local}") from error
    return module


@dataclass(frozen=True)
class _Hub:
    """Whether the hub answers: "" where it does, else what to tell the user."""

    silence: str


@contextmanager
def _hugging_face_hub() -> Iterator[_Hub]:
    """Ask the hub once whether it is there; if not, let its client look into its cache only.

    The client alone would try again and again for more than a minute before it gave up.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    silence = "" if before or answers(constants.ENDPOINT) else "the hub does not answer, and nothing is cached"
    constants.HF_HUB_OFFLINE = before or bool(silence)
    try:
        yield _Hub(silence)
    finally:
        constants.HF_HUB_OFFLINE = before


def answers(url: str) -> bool:
    """Return whether anything answers at ``url`` within 5 seconds, proxies of the environment respected."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=5):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


def _classes_of(timm: Any, name: str, tensors: Mapping[str, Any]) -> dict[str, int]:
    """Return the number of classes that a file of timm's own layout was trained for, where it can be told."""
    config = timm.get_pretrained_cfg(name.partition(".")[0])
    head = config.classifier if config is not None else None
    bias = tensors.get(f"{head[0] if isinstance(head, list | tuple) else head}.bias")
    return {"num_classes": int(bias.shape[0])} if bias is not None else {}


def _configuration(module: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return timm's configuration, fitted to another image size or number of channels."""
    config = dict(module.pretrained_cfg)
    channels, height, width = config.get("input_size", (3, 224, 224))
    if "img_size" in arguments:
        size = arguments["img_size"]
        height, width = (size, size) if isinstance(size, int) else size
        config["crop_pct"] = 1.0
    if arguments.get("in_chans", channels) != channels:
        channels = int(arguments["in_chans"])
        config |= {"mean": (0.5,) * channels, "std": (0.5,) * channels}
    return config | {"input_size": (channels, height, width)}


def load_torchvision(name: str, weights: Weights, arguments: Mapping[str, Any]) -> LoadedModel:
    """Build a classification model of torchvision as it is; its preprocessing is that of its default weights.

    With ``image_size``, weights of the model's usual size are taken at that one, their positions resized.

    Raises:
        ModelError: torchvision is missing, has no such model, or refuses the arguments.
        CheckpointError: The weights do not fit or cannot be fetched.
    """
    import torch

    from vitdeploy.models.external import create_torchvision, translated

    size, rest = image_size(arguments), {key: value for key, value in arguments.items() if key != "image_size"}
    if size is not None and not weights.random:
        try:
            usual = load_torchvision(name, weights, rest)
        except CheckpointError:
            if weights.file is None:
                raise
        else:
            return refit(usual, {"image_size": arguments["image_size"]})
    arguments = translated("torchvision", arguments, name)
    found = None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(weights.seed)
        module = create_torchvision(name, arguments)
        if weights.file is not None:
            found = read_hub_weights(weights.file, module)
        if found is not None and "num_classes" not in arguments:
            arguments |= _classes_in(found.tensors, module)
            module = create_torchvision(name, arguments)
    from torchvision import models

    published = models.get_model_weights(name).DEFAULT
    notes: tuple[str, ...] = (RANDOM_NOTE,) if weights.random else ()
    if found is not None:
        notes = found.notes
        fill(module, found.tensors, f"{str(weights.file)!r} as torchvision:{name}")
    elif not weights.random:
        fill(module, _fetch_torchvision(published, name), f"the published weights of torchvision:{name}")
    classes = int(arguments.get("num_classes", len(published.meta["categories"])))
    names_of_classes = class_names(classes)
    spec = ModelSpec(
        family="torchvision", name=name, arguments={**arguments, "num_classes": classes}, classes=names_of_classes
    )
    origin = f"{TORCHVISION}{name}, {weights.describe(f'published weights {published.name}')}"
    preprocess = _torchvision_preprocess(published.transforms(), f"torchvision:{name}, {published.name}")
    preprocess = preprocess if size is None else preprocess.at_size(size)
    return LoadedModel(module.eval(), spec, preprocess, digest_of(module), origin, notes)


def _classes_in(tensors: Mapping[str, Any], module: nn.Module) -> dict[str, int]:
    """Return the number of classes of a file where it is all that sets its shapes apart from those of the module."""
    pairs = set()
    for key, value in module.state_dict().items():
        if key in tensors and tuple(tensors[key].shape) != tuple(value.shape):
            pairs.add((int(tensors[key].shape[0]) if tensors[key].shape else 0, len(value)))
    return {"num_classes": next(iter(pairs))[0]} if len(pairs) == 1 else {}


def _fetch_torchvision(published: Any, name: str) -> Mapping[str, Any]:
    try:
        state: Mapping[str, Any] = published.get_state_dict(progress=False, check_hash=True)
    except Exception as error:  # urllib and the file system
        raise CheckpointError(
            f"the weights of 'torchvision:{name}' cannot be fetched ({one_line(error)}): weights='FILE' loads "
            "weights from disk, random_weights=True uses none"
        ) from error
    return state


def _torchvision_preprocess(transform: Any, source: str) -> Preprocess:
    interpolation = str(transform.interpolation.value)
    if interpolation not in _INTERPOLATIONS:
        raise ModelError(f"{source} resizes with {interpolation!r}, which a Preprocess cannot say")
    return Preprocess(
        size=(transform.crop_size[0], transform.crop_size[0]),
        resize="shortest",
        resize_size=transform.resize_size[0],
        interpolation=interpolation,
        mean=tuple(transform.mean),
        std=tuple(transform.std),
        source=source,
    )


def hugging_face_folder(name: str) -> Path:
    """Return the folder that ``hf:NAME`` means: one that is there, else a model of the hub, fetched into its cache.

    Raises:
        CheckpointError: There is no such folder and the hub has no such model or cannot be reached.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    local = "download the model and name its folder, as in 'hf:./my-model'"
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise CheckpointError(f"there is no folder {name!r}: {local}")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise CheckpointError(f"'hf:{name}' needs huggingface_hub, which is not installed: {local}") from error
    with _hugging_face_hub() as hub:
        try:
            fetched = snapshot_download(name, allow_patterns=["*.json", "*.safetensors"])
        except Exception as error:  # the client raises what its HTTP library and the file system raise
            reason = hub.silence or one_line(error)
            raise CheckpointError(f"'hf:{name}' cannot be fetched ({reason}): {local}") from error
    return Path(fetched)
