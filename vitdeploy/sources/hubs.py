"""Models of timm, torchvision and Hugging Face by name; the only code of this package that may use the network."""

from __future__ import annotations

import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy.errors import CheckpointError, ModelError
from vitdeploy.records import ModelSpec, Preprocess
from vitdeploy.sources.loaded import RANDOM_NOTE, LoadedModel, Weights, class_names, digest_of, fill
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

    timm, arguments = import_timm(name), translated("timm", arguments)
    if weights.file is not None:
        tensors = _tensors(weights.file)
        arguments = {**_classes_of(timm, name, tensors), **arguments}
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm's notes on models that it renamed
        torch.manual_seed(weights.seed)
        fetch = weights.file is None and not weights.random
        module = _fetch_timm(timm, name, arguments) if fetch else create_timm(name, arguments)
        if weights.file is not None:
            module = _filled_timm(module, name, arguments, tensors, f"{str(weights.file)!r} as timm:{name}")
    classes = int(getattr(module, "num_classes"))  # noqa: B009 (nn.Module types attributes as tensors)
    spec = ModelSpec(
        family="timm", name=name, arguments={**arguments, "num_classes": classes}, classes=class_names(classes)
    )
    preprocess = preprocess_from_timm_config(_configuration(module, arguments), f"{TIMM}{name}")
    origin = f"{TIMM}{name}, {weights.describe('published weights')}"
    return LoadedModel(module.eval(), spec, preprocess, digest_of(module), origin, _notes(weights))


def _filled_timm(
    module: nn.Module, name: str, arguments: Mapping[str, Any], tensors: Mapping[str, Any], where: str
) -> nn.Module:
    """Return ``module`` with the weights of a file; where they are of the usual image size, timm resizes their tables.

    Raises:
        CheckpointError: Names or shapes differ otherwise.
    """
    import torch

    from vitdeploy.models.external import create_timm

    try:
        fill(module, tensors, where)
    except CheckpointError:
        if "img_size" not in arguments:
            raise
        usual = create_timm(name, {key: value for key, value in arguments.items() if key != "img_size"})
        fill(usual, tensors, where)
        state = {key: value.clone() for key, value in usual.state_dict().items()}
        module = create_timm(name, arguments, (state, int(arguments["num_classes"])))
        with torch.no_grad():
            changed = [
                key for key, value in usual.state_dict().items() if value.shape != module.state_dict()[key].shape
            ]
        if not changed:
            raise
    return module


def _fetch_timm(timm: Any, name: str, arguments: Mapping[str, Any]) -> nn.Module:
    local = f"weights='FILE' takes weights that are on disk, random_weights=True none ({TIMM}{name})"
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

    Raises:
        ModelError: torchvision is missing, has no such model, or refuses the arguments.
        CheckpointError: The weights do not fit or cannot be fetched.
    """
    import torch

    from vitdeploy.models.external import create_torchvision, translated

    arguments = translated("torchvision", arguments)
    tensors = _tensors(weights.file) if weights.file is not None else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(weights.seed)
        module = create_torchvision(name, arguments)
        if tensors is not None and "num_classes" not in arguments:
            arguments |= _classes_in(tensors, module)
            module = create_torchvision(name, arguments)
    from torchvision import models

    published = models.get_model_weights(name).DEFAULT
    if tensors is not None:
        fill(module, tensors, f"{str(weights.file)!r} as torchvision:{name}")
    elif not weights.random:
        fill(module, _fetch_torchvision(published, name), f"the published weights of torchvision:{name}")
    classes = int(arguments.get("num_classes", len(published.meta["categories"])))
    names_of_classes = class_names(classes)
    spec = ModelSpec(
        family="torchvision", name=name, arguments={**arguments, "num_classes": classes}, classes=names_of_classes
    )
    origin = f"{TORCHVISION}{name}, {weights.describe(f'published weights {published.name}')}"
    preprocess = _torchvision_preprocess(published.transforms(), f"torchvision:{name}, {published.name}")
    return LoadedModel(module.eval(), spec, preprocess, digest_of(module), origin, _notes(weights))


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
            f"the weights of 'torchvision:{name}' cannot be fetched ({one_line(error)}): weights='FILE' takes "
            "weights that are on disk, random_weights=True none"
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


def _tensors(path: Path) -> Mapping[str, Any]:
    from vitdeploy.checkpoints import read_weights

    return read_weights(path).tensors


def _notes(weights: Weights) -> tuple[str, ...]:
    return (RANDOM_NOTE,) if weights.random else ()
