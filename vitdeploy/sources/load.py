"""``load_source``: from a text to a PyTorch model in evaluation mode, its preprocessing and a digest of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitdeploy.artifacts import Checkpoint, read_checkpoint
from vitdeploy.artifacts.checkpoint import METADATA_KEY
from vitdeploy.errors import ArtifactError, CheckpointError, ModelError, UsageError
from vitdeploy.reading import missing, safetensors_metadata
from vitdeploy.records import ModelSpec, Preprocess
from vitdeploy.sources.loaded import IMAGENET_CLASSES, RANDOM_NOTE, LoadedModel, Weights, class_names, digest_of

__all__ = ["LoadedModel", "load_source"]

TIMM, TORCHVISION, HUGGING_FACE = "timm:", "torchvision:", "hf:"
_FILE_SUFFIXES = (".safetensors", ".pth", ".pt", ".npz", ".onnx", ".bin", ".tar")


def load_source(
    source: str,
    *,
    weights: Path | None = None,
    random_weights: bool = False,
    arguments: Mapping[str, Any] | None = None,
    reset_head: bool = False,
    seed: int = 0,
) -> LoadedModel:
    """Load what ``source`` names.

    Args:
        source: A checkpoint of ours; a catalogue or family name, with ``weights`` or ``random_weights``; a foreign
            checkpoint or Hugging Face folder (``hf:DIR``, too); ``timm:NAME`` or ``torchvision:NAME``, whose published
            weights are fetched unless ``weights`` or ``random_weights`` say otherwise.
        weights: A weight file of any dialect, for a source that is a name.
        random_weights: Fresh weights from ``seed``: to look at graph, size and speed, never at accuracy.
        arguments: Constructor arguments, such as ``{"num_classes": 10}``; not for a checkpoint of ours.
        reset_head: Draw a new head where ``num_classes`` is another than the foreign file's.
        seed: Decides random weights.
    Raises:
        UsageError: The options contradict each other, or a name comes with no weights.
        ModelError: There is no such model, or it does not take the arguments.
        CheckpointError: The weights do not fit, or cannot be fetched.
        ArtifactError: The file is missing or damaged.
    """
    chosen = _weights(weights, random_weights, seed)
    arguments = dict(arguments or {})
    if source.startswith((TIMM, TORCHVISION)):
        from vitdeploy.sources.hubs import load_timm, load_torchvision

        hub, _, name = source.partition(":")
        return (load_timm if f"{hub}:" == TIMM else load_torchvision)(name, chosen, arguments)
    if source.startswith(HUGGING_FACE):
        from vitdeploy.sources.hubs import hugging_face_folder

        _refuse_weights(source, chosen)
        return _load_foreign(hugging_face_folder(source.removeprefix(HUGGING_FACE)), None, arguments, reset_head)
    path = Path(source)
    if path.exists():
        _refuse_weights(source, chosen)
        return _load_file(path, arguments, reset_head)
    _require_name(source)
    if chosen.random:
        return _load_random(source, arguments, seed)
    if chosen.file is None:
        raise UsageError(
            f"model {source!r} needs weights: --weights FILE, or --random-weights to look at graph and speed only"
        )
    if _is_ours(chosen.file):
        return _load_checkpoint(read_checkpoint(chosen.file), expected=source)
    return _load_foreign(chosen.file, source, arguments, reset_head)


def _weights(file: Path | None, random: bool, seed: int) -> Weights:
    if file is not None and random:
        raise UsageError("--weights and --random-weights contradict each other: give one of them")
    if file is not None and not Path(file).exists():
        raise missing(Path(file), FileNotFoundError())
    return Weights(None if file is None else Path(file), random, seed)


def _refuse_weights(source: str, weights: Weights) -> None:
    if weights.file is not None or weights.random:
        option = "--random-weights" if weights.random else "--weights"
        raise UsageError(f"{source!r} brings its own weights, so {option} has no place: leave it out")


def _load_file(path: Path, arguments: dict[str, Any], reset_head: bool) -> LoadedModel:
    if not _is_ours(path):
        return _load_foreign(path, None, arguments, reset_head)
    if arguments or reset_head:
        option = "--argument" if arguments else "--reset-head"
        raise UsageError(f"{str(path)!r} says itself which model it is, so {option} has no place: leave it out")
    return _load_checkpoint(read_checkpoint(path))


def _is_ours(path: Path) -> bool:
    if path.is_dir():
        return False
    try:
        return METADATA_KEY in safetensors_metadata(path)
    except ArtifactError:
        return False  # not safetensors, or damaged: the reader of foreign files says which


def _load_checkpoint(checkpoint: Checkpoint, expected: str | None = None) -> LoadedModel:
    """Build the module that a checkpoint of ours names and fill it tensor by tensor, so that no copy is held."""
    import torch
    from safetensors import safe_open

    from vitdeploy.checkpoints.matching import check_match
    from vitdeploy.models.registry import model_from_spec

    manifest, where = checkpoint.manifest, repr(str(checkpoint.path))
    if expected is not None and expected not in (manifest.model.name, manifest.model.family):
        raise CheckpointError(
            f"{where} is of model {manifest.model.name!r}, not {expected!r}: leave the name out, the file says it"
        )
    if manifest.preprocess is None:
        raise ArtifactError(f"{where} carries no preprocessing, so its inputs are unknown: train or convert it again")
    module = model_from_spec(manifest.model)
    state = module.state_dict()
    with safe_open(checkpoint.path, framework="pt") as file, torch.no_grad():
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        check_match(found, {name: tuple(tensor.shape) for name, tensor in state.items()}, where)
        for name, tensor in state.items():
            tensor.copy_(file.get_tensor(name))
    origin = f"checkpoint {checkpoint.path.name}"
    return LoadedModel(module.eval(), manifest.model, manifest.preprocess, checkpoint.digest, origin)


def _load_foreign(path: Path, name: str | None, arguments: dict[str, Any], reset_head: bool) -> LoadedModel:
    """Hand a file that is not ours to the dialects."""
    from vitdeploy.checkpoints import LoadRequest, load_foreign

    rest = {key: value for key, value in arguments.items() if key not in ("image_size", "num_classes")}
    request = LoadRequest(
        image_size=arguments.get("image_size"),
        num_classes=arguments.get("num_classes"),
        reset_head=reset_head,
        arguments=rest,
    )
    found = load_foreign(path, name, request)
    origin = f"{found.dialect} weights {path.name}"
    return LoadedModel(found.module, found.spec, found.preprocess, digest_of(found.module), origin, found.notes)


def _load_random(name: str, arguments: dict[str, Any], seed: int) -> LoadedModel:
    import torch

    from vitdeploy.models.registry import create_model

    spec, preprocess = _describe(name, arguments)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = create_model(name, **arguments).eval()
    return LoadedModel(module, spec, preprocess, digest_of(module), f"{name}, random weights", (RANDOM_NOTE,))


def _describe(name: str, arguments: dict[str, Any]) -> tuple[ModelSpec, Preprocess]:
    """Return record and preprocessing of a catalogue variant, or of a family at any size."""
    from vitdeploy.catalog import variant
    from vitdeploy.models.registry import FAMILIES

    if name in FAMILIES:
        family, merged, base = name, arguments, None
    else:
        entry = variant(name)
        family, merged, base = entry.family, {**entry.arguments, **arguments}, entry.preprocess
    if base is None or "image_size" in arguments or "channels" in arguments:
        base = _plain_preprocess(merged.get("image_size", 224), merged.get("channels", 3), base)
    classes = class_names(merged.get("num_classes", IMAGENET_CLASSES))
    return ModelSpec(family=family, name=name, arguments=merged, classes=classes), base


def _plain_preprocess(size: Any, channels: int, base: Preprocess | None) -> Preprocess:
    """Return a centre crop without margin, for another size or number of channels than the published one."""
    from vitdeploy.models.arguments import pair

    height, width = pair(size)
    if channels not in (1, 3):
        raise ModelError(f"channels is {channels!r}, expected 1 or 3: images are grey or RGB")
    keep = base is not None and base.channels == channels
    return Preprocess(
        size=(height, width),
        channels=1 if channels == 1 else 3,
        resize="shortest",
        resize_size=max(height, width),
        interpolation=base.interpolation if base is not None else "bicubic",
        mean=base.mean if base is not None and keep else (0.5,) * channels,
        std=base.std if base is not None and keep else (0.5,) * channels,
        source="centre crop without margin: the model has another input than any published weights",
    )


def _require_name(name: str) -> None:
    """Raise with the nearest names unless this is a family or a variant; what looks like a file is a missing one."""
    from vitdeploy.catalog import variant
    from vitdeploy.models.registry import FAMILIES

    if name in FAMILIES:
        return
    if "/" in name or "\\" in name or Path(name).suffix in _FILE_SUFFIXES:
        raise missing(Path(name), FileNotFoundError())
    variant(name)
