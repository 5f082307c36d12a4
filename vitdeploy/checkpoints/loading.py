"""From a weight file of any dialect to a model with every tensor in its place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy import catalog
from vitdeploy.catalog import Variant
from vitdeploy.catalog.presets import resized, squashed
from vitdeploy.checkpoints.converted import Converted
from vitdeploy.checkpoints.dialects import detect
from vitdeploy.checkpoints.files import Tensors, WeightFile, read_weights
from vitdeploy.checkpoints.layouts.swin import resize_table
from vitdeploy.checkpoints.matching import check_match, is_of_classes
from vitdeploy.checkpoints.positions import resize_positions
from vitdeploy.errors import CheckpointError
from vitdeploy.records import ModelSpec, Preprocess

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class LoadRequest:
    """What the user asks of a load.

    ``image_size`` resizes position tables once, by the rule of the checkpoint's own code. ``num_classes`` other than
    the file's needs ``reset_head``, which draws a fresh head; ``head_for`` is the number of classes of a training,
    which keeps a head for as many and draws any other. ``arguments`` replace constructor ones (``qk_scale``,
    ``heads`` where the keys cannot tell).
    """

    image_size: int | tuple[int, int] | None = None
    num_classes: int | None = None
    reset_head: bool = False
    head_for: int | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LoadedWeights:
    """A model in eval mode with the file's weights, and everything that was decided on the way, in words."""

    module: nn.Module
    spec: ModelSpec
    preprocess: Preprocess
    dialect: str
    reason: str
    notes: tuple[str, ...]


def load_foreign(path: Path, name: str | None = None, request: LoadRequest = LoadRequest()) -> LoadedWeights:
    """Load a checkpoint of any dialect into our model of the same family.

    ``name`` is a catalogue variant, or a family whose remaining arguments ``request`` gives. A Hugging Face folder
    needs none, nor does a file whose shapes fit one variant only.

    Raises:
        CheckpointError: The dialect is unknown, the weights are of another variant, or a tensor has no place.
        ModelError: ``name`` is not in the catalogue, or the image size is one that the family cannot take.
    """
    from vitdeploy.models import model_from_spec

    file = read_weights(Path(path))
    dialect, reason = detect(file)
    said = {**request.arguments, "image_size": request.image_size}
    converted = dialect.converted(file, {key: value for key, value in said.items() if value is not None})
    notes = [f"{path}: {dialect.name} weights of {dialect.family}, because {reason}"]
    if file.entry:
        notes.append(f"took the weights under {file.entry!r}")
    notes += [f"left out {name}: {why}" for name, why in converted.dropped.items()]
    notes += converted.notes
    variant = _variant(name, dialect.family, converted, path)
    arguments = _arguments(variant, converted, request, file)
    label = variant.name if variant is not None else Path(path).resolve().name
    classes = converted.classes if len(converted.classes) == arguments["num_classes"] else ()
    spec = ModelSpec(family=dialect.family, name=label, arguments=arguments, classes=classes)
    module = model_from_spec(spec)
    tensors = _fitted(dict(converted.tensors), module, converted, request, notes)
    _assign(module, tensors, f"{str(path)!r} as {label}")
    preprocess = _preprocess(variant, converted, arguments, notes)
    return LoadedWeights(module.eval(), spec, preprocess, dialect.name, reason, tuple(notes))


def _variant(name: str | None, family: str, converted: Converted, path: Path) -> Variant | None:
    """Return the catalogue's entry, by name or as the only one that fits; None where the file itself says enough."""
    if name in (None, family) and (converted.complete or name == family):
        return None
    if name is not None:
        variant = catalog.variant(name)
        if variant.family != family:
            raise CheckpointError(f"{str(path)!r} holds weights of family {family!r}, {name} is {variant.family!r}")
        return variant
    fitting = [
        entry
        for entry in catalog.variants().values()
        if entry.family == family
        and all(entry.arguments.get(key, value) == value for key, value in converted.arguments.items())
        and not ("layer_scale" in entry.arguments) ^ ("layer_scale" in converted.arguments)
    ]
    if len(fitting) == 1:
        return fitting[0]
    names = ", ".join(entry.name for entry in fitting[:6]) or f"'vitdeploy models {family}' lists them"
    raise CheckpointError(f"the keys of {str(path)!r} do not tell which {family} it is: name it, one of {names}")


def _arguments(variant: Variant | None, converted: Converted, request: LoadRequest, file: WeightFile) -> dict[str, Any]:
    base = dict(variant.arguments) if variant is not None else dict(converted.arguments)
    fixed = {key: converted.arguments[key] for key in _FREE & converted.arguments.keys()}
    arguments = {**base, **fixed, **converted.overrides, **request.arguments}
    if request.image_size is not None:
        size = request.image_size
        arguments["image_size"] = size if isinstance(size, int) else list(size)
    arguments.setdefault("image_size", 224)
    if variant is None and not converted.complete and "heads" not in arguments:
        raise CheckpointError(
            f"the keys of {str(file.path)!r} do not tell how many heads there are: name the variant, or say it, as in "
            "--argument heads=8"
        )
    found = converted.arguments.get("num_classes")
    if request.head_for is not None:
        return {**arguments, "num_classes": request.head_for}
    if found is None and not request.reset_head:
        raise CheckpointError(f"{str(file.path)!r} has no classification head: pass num_classes and reset_head")
    wanted = request.num_classes if request.num_classes is not None else found
    if wanted is None:
        raise CheckpointError(f"{str(file.path)!r} has no classification head: say num_classes for the new one")
    if found is not None and wanted != found and not request.reset_head:
        raise CheckpointError(
            f"{str(file.path)!r} has {found} classes, {wanted} were asked for: --reset-head draws a new head"
        )
    arguments["num_classes"] = wanted
    return arguments


# Constructor arguments that checkpoints of one variant may differ in, so that the file's value counts.
_FREE = {"representation_size", "pool", "class_token_position", "qkv_bias", "multi_token", "token_module", "channels"}


def _fitted(
    tensors: Tensors, module: nn.Module, converted: Converted, request: LoadRequest, notes: list[str]
) -> Tensors:
    """Resize position and bias tables to the model's size, and draw a new head where that was asked for."""
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    for name, tokens in converted.position_tokens.items():
        if name in tensors and name in expected and tensors[name].shape[1] != expected[name][1]:
            grid = _grid(expected[name][1] - tokens, module)
            before = tensors[name].shape[1] - tokens
            tensors[name] = resize_positions(tensors[name], grid, tokens, converted.resize_rule, name)
            notes.append(f"resized {name} from {math.isqrt(before)}×{math.isqrt(before)} to {grid[0]}×{grid[1]}")
    for name in tensors:
        if name.endswith("relative_position_bias_table") and name in expected:
            side = (math.isqrt(expected[name][0]) + 1) // 2
            if tensors[name].shape[0] != expected[name][0]:
                tensors[name] = resize_table(tensors[name], side, converted.table_rule)
                notes.append(f"resized {name} to a window of {side}")
    had, classes = converted.arguments.get("num_classes"), expected["head.weight"][0]
    if request.reset_head or (request.head_for is not None and had != classes):
        heads = [name for name in expected if name.startswith(("head.", "head_dist."))]
        heads += [
            name
            for name in tensors.keys() & expected.keys() - set(heads)
            if had is not None and is_of_classes(tuple(tensors[name].shape), expected[name], (had, classes))
        ]
        fresh = module.state_dict()
        for name in heads:
            tensors[name] = fresh[name].numpy()
        if request.head_for is None:
            notes.append("drew a new head: it must be trained before it says anything")
        else:
            notes.append(f"the head is new, for {classes} classes: {', '.join(heads)}")
    return tensors


def _grid(cells: int, module: nn.Module) -> tuple[int, int]:
    """Return rows and columns of a position table with ``cells`` entries, in the image's aspect ratio."""
    height, width = getattr(module, "image_size", (1, 1))
    rows = round(math.sqrt(cells * height / width))
    if rows == 0 or cells % rows:
        raise CheckpointError(f"{cells} positions do not make a grid in the aspect ratio {height}:{width}")
    return rows, cells // rows


def _assign(module: nn.Module, tensors: Tensors, where: str) -> None:
    import torch

    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    check_match({name: tuple(value.shape) for name, value in tensors.items()}, expected, where)
    state = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in tensors.items()}
    trainable = {name: parameter.requires_grad for name, parameter in module.named_parameters()}
    module.load_state_dict(state, assign=True)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(trainable[name])


def _preprocess(
    variant: Variant | None, converted: Converted, arguments: Mapping[str, Any], notes: list[str]
) -> Preprocess:
    """Return the file's own preprocessing, else the convention of its code base, fitted to the image's size."""
    image_size = arguments["image_size"]
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if converted.preprocess is not None:
        record = converted.preprocess
    elif converted.preprocessing == "torchvision":
        record = _torchvision(variant, size[0])
    elif converted.preprocessing == "google":
        record = squashed(size[0], "Google JAX ViT: squash, mean and std 0.5", half=True, interpolation="bilinear")
    elif converted.preprocessing == "unstated":
        record = squashed(size[0], "a default: squash, mean and std 0.5", half=True, interpolation="bilinear")
    elif variant is not None:
        record = variant.preprocess
    else:
        record = squashed(size[0], "Hugging Face ViTImageProcessor's default", half=True, interpolation="bilinear")
    if converted.preprocess is None:
        notes.append(f"the file says nothing of preprocessing: took {record.source}")
    return _with_channels(record, int(arguments.get("channels", 3)), notes).at_size((size[0], size[1]))


def _with_channels(record: Preprocess, channels: int, notes: list[str]) -> Preprocess:
    """Return the record for greyscale images where the model takes those: the mean of what each colour has."""
    if channels == record.channels:
        return record
    if channels not in (1, 3):
        raise CheckpointError(f"the weights take images of {channels} channels, only 1 and 3 can be read from files")
    mean, std = (sum(values) / len(values) for values in (record.mean, record.std))
    notes.append(f"the model takes {channels} channels: took mean {mean:.4g} and std {std:.4g}")
    update = {"channels": channels, "mean": (mean,) * channels, "std": (std,) * channels, "fill": ()}
    return record.model_copy(update=update)


def _torchvision(variant: Variant | None, size: int) -> Preprocess:
    if variant is not None and "torchvision" in variant.preprocess.source:
        return variant.preprocess
    return resized(size, max(size * 256 // 224, size), "torchvision, IMAGENET1K_V1", interpolation="bilinear")
