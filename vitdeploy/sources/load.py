"""From what names a model to a PyTorch module in evaluation mode, its preprocessing and a digest of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy.artifacts import Artifact, Checkpoint
from vitdeploy.datasets.class_names import usable_class_names
from vitdeploy.errors import ArtifactError, CheckpointError, ModelError, UsageError
from vitdeploy.preprocess import read_config
from vitdeploy.progress import SILENT, Progress
from vitdeploy.records import ModelSpec, Preprocess
from vitdeploy.sources.head import HeadEvidence, decide_head
from vitdeploy.sources.loaded import IMAGENET_CLASSES, RANDOM_NOTE, LoadedModel, Weights, class_names, digest_of
from vitdeploy.sources.source import HUGGING_FACE, TIMM, TORCHVISION, Source, SourceOptions, open_source

if TYPE_CHECKING:
    from vitdeploy.checkpoints.evidence import TimmFolder

__all__ = ["LoadedModel", "load", "load_source"]


def load_source(
    source: Artifact | Path | str,
    *,
    weights: Checkpoint | Path | str | None = None,
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
        weights: A weight file of any dialect, or a checkpoint, for a source that is a name.
        random_weights: Fresh weights from ``seed``: to look at graph, size and speed, never at accuracy.
        arguments: Constructor arguments, such as ``{"num_classes": 10}``; for a checkpoint of ours those that change no
            weights but tables of positions.
        reset_head: Draw a new head where ``num_classes`` is another than that of the weights.
        seed: Decides random weights.
    Raises:
        UsageError: The options contradict each other, or a name comes with no weights.
        ModelError: There is no such model, or it does not take the arguments.
        CheckpointError: The weights do not fit, or cannot be fetched.
        ArtifactError: The file is missing or damaged.
    """
    options = SourceOptions(
        weights=weights,
        random_weights=random_weights,
        arguments=dict(arguments or {}),
        reset_head=reset_head,
        seed=seed,
    )
    return load(open_source(source, options))


def load(source: Source, progress: Progress = SILENT) -> LoadedModel:
    """Load a model that was found, and note what was decided on the way.

    Raises:
        ModelError: It does not take the arguments.
        CheckpointError: The weights do not fit, or cannot be fetched.
        ArtifactError: The file was changed since it was opened, or is damaged.
    """
    if source.hub == HUGGING_FACE and source.file is None:
        from vitdeploy.sources.hubs import hugging_face_folder

        source = replace(source, file=hugging_face_folder(source.text.removeprefix(HUGGING_FACE)))
    if source.options.headless:
        source = _for_features(source)
    loaded = _with_preprocess(_with_head(_load(source), source), source)
    for note in loaded.notes:
        progress.note(note)
    return loaded


def _for_features(source: Source) -> Source:
    """Return the source with what asks for features as its task: a head that it has is loaded, and left out after.

    Raises:
        UsageError: Another option speaks of classes.
    """
    options = source.options
    if options.task not in (None, "features") or options.labels is not None or options.reset_head:
        raise UsageError("features have no classes: leave out labels=, reset_head=True and any other task=")
    arguments = {name: value for name, value in options.arguments.items() if name != "num_classes"}
    if options.arguments.get("num_classes", 0) != 0:
        raise UsageError("task='features' leaves the head out, and num_classes asks for one: leave one of the two out")
    return replace(source, options=replace(options, task="features", arguments=arguments))


def _with_head(loaded: LoadedModel, source: Source) -> LoadedModel:
    """Return the model with what its outputs mean and the names of its classes."""
    from vitdeploy.sources.headless import without_head

    options = source.options
    if options.headless:
        loaded = without_head(loaded)
    spec = loaded.spec
    overrides = options.task is not None or options.labels is not None
    if source.checkpoint is not None and not overrides:
        return loaded  # its record says it
    count = int(spec.arguments.get("num_classes", IMAGENET_CLASSES))
    config = read_config(source.file) if source.file is not None and source.file.is_dir() else {}
    if count == 0:
        if options.labels is not None or options.task not in (None, "features"):
            raise UsageError(f"{source.text!r} has no head, so task= and labels= have no place: leave them out")
        return replace(loaded, spec=spec.model_copy(update={"task": "features", "classes": ()}))
    head = decide_head(
        HeadEvidence(
            outputs=count,
            config={key: config[key] for key in ("problem_type", "model_type") if key in config},
            task=options.task,
            labels=None if options.labels is None else Path(options.labels),
            known=spec.classes,
        )
    )
    spec = spec.model_copy(update={"task": head.task, "classes": head.classes})
    return replace(loaded, spec=spec, notes=(*loaded.notes, *head.notes))


def _with_preprocess(loaded: LoadedModel, source: Source) -> LoadedModel:
    """Return the model with the preprocessing that was named, if one was.

    Raises:
        UsageError: It gives images of another size or number of channels than the model takes.
    """
    named, own = source.options.named_preprocess, loaded.preprocess
    if named is None:
        return loaded
    if (named.channels, named.size) != (own.channels, own.size):
        offered, expected = (f"{one.channels}×{one.size[0]}×{one.size[1]}" for one in (named, own))
        raise UsageError(
            f"the preprocessing of {named.source!r} gives images of {offered}, and {source.text!r} takes {expected}: "
            f"name the one that belongs to it, or change the model's size with arguments={{'image_size': N}}"
        )
    from vitdeploy.checkpoints.preprocessing import UNSTATED

    notes = tuple(note for note in loaded.notes if not note.startswith(UNSTATED))
    return replace(loaded, preprocess=named, notes=notes)


def _load(source: Source) -> LoadedModel:
    options, arguments = source.options, dict(source.options.arguments)
    if source.checkpoint is not None and source.hub == "":
        return _refitted(_load_checkpoint(source.checkpoint), options)
    if source.hub in (TIMM, TORCHVISION):
        return _load_hub(source)
    if source.file is None:
        return _load_random(source.text, arguments, options.seed)
    name = None if source.hub == HUGGING_FACE else source.name
    return _load_foreign(source.file, name or None, options)


def _load_hub(source: Source) -> LoadedModel:
    """Load a model of timm or torchvision; for a training it is fitted only when its own weights are in it."""
    from vitdeploy.sources.hubs import load_timm, load_torchvision
    from vitdeploy.sources.refit import refit

    options, arguments = source.options, dict(source.options.arguments)
    weights = Weights(source.file, options.random_weights, options.seed)
    name = source.text.removeprefix(source.hub)
    load_hub = load_timm if source.hub == TIMM else load_torchvision
    if options.headless and source.file is not None:
        try:
            return load_hub(name, weights, arguments)
        except CheckpointError:  # a file without a head
            return load_hub(name, weights, {**arguments, "num_classes": 0})
    if options.head_for is None:
        return load_hub(name, weights, arguments)
    if options.random_weights:
        return load_hub(name, weights, {**arguments, "num_classes": options.head_for})
    size: dict[str, Any] = {key: arguments[key] for key in ("image_size", "img_size") if key in arguments}
    usual = {key: value for key, value in arguments.items() if key not in size}
    try:
        loaded = load_hub(name, weights, usual)
    except CheckpointError:  # a file of another image size than the model's usual one
        if not size or source.file is None:
            raise
        loaded, size = load_hub(name, weights, arguments), {}
    return refit(loaded, size, classes=options.head_for, seed=options.seed)


def _refitted(loaded: LoadedModel, options: SourceOptions) -> LoadedModel:
    """Return a checkpoint's model with the arguments that the user gives, and a head for other classes on request.

    Raises:
        CheckpointError: Another number of classes is asked for, and no new head.
    """
    from vitdeploy.sources.refit import refit

    arguments = dict(options.arguments)
    wanted, stored = arguments.pop("num_classes", None), loaded.spec.arguments.get("num_classes")
    classes = options.head_for
    if classes is None and wanted not in (None, stored):
        if not options.reset_head:
            raise CheckpointError(
                f"{loaded.origin} has {stored} classes, {wanted} were asked for: reset_head=True draws a new head"
            )
        classes = wanted
    if not arguments and classes in (None, stored):
        return loaded
    return refit(loaded, arguments, classes=classes, seed=options.seed)


def _load_checkpoint(checkpoint: Checkpoint) -> LoadedModel:
    """Build the module that a checkpoint of ours names and fill it tensor by tensor, so that no copy is held."""
    import torch
    from safetensors import safe_open

    from vitdeploy.checkpoints.matching import check_match
    from vitdeploy.models.registry import model_from_spec

    manifest, where = checkpoint.manifest, repr(str(checkpoint.path))
    if manifest.preprocess is None:
        raise ArtifactError(f"{where} carries no preprocessing, so its inputs are unknown: train or convert it again")
    with torch.random.fork_rng(devices=[]):
        module = model_from_spec(manifest.model)
    state = module.state_dict()
    with safe_open(checkpoint.path, framework="pt") as file, torch.no_grad():
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        check_match(found, {name: tuple(tensor.shape) for name, tensor in state.items()}, where)
        for name, tensor in state.items():
            tensor.copy_(file.get_tensor(name))
    origin = f"checkpoint {checkpoint.path.name}"
    return LoadedModel(
        module.eval(),
        manifest.model,
        manifest.preprocess,
        manifest.payload_sha256,
        origin,
        trained_on=manifest.trained_on,
    )


def _load_foreign(path: Path, name: str | None, options: SourceOptions) -> LoadedModel:
    """Hand a file that is not ours to the dialects."""
    import torch

    from vitdeploy.checkpoints import LoadRequest, load_foreign
    from vitdeploy.checkpoints.evidence import timm_folder

    arguments = options.arguments
    rest = {key: value for key, value in arguments.items() if key not in ("image_size", "num_classes")}
    request = LoadRequest(
        image_size=arguments.get("image_size"),
        num_classes=arguments.get("num_classes"),
        reset_head=options.reset_head,
        head_for=options.head_for,
        headless=options.headless,
        named_classes=options.labels is not None or options.head_for is not None,
        arguments=rest,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(options.seed)  # a new head
        try:
            found = load_foreign(path, name, request)
        except CheckpointError:
            model = timm_folder(path)
            if name is not None or model is None:
                raise
            return _load_timm_folder(path, model, options)
    origin = f"{found.dialect} weights {path.name}"
    return LoadedModel(found.module, found.spec, found.preprocess, digest_of(found.module), origin, found.notes)


def _load_timm_folder(path: Path, model: TimmFolder, options: SourceOptions) -> LoadedModel:
    """Build a folder's model with timm, as its config.json says; no family of ours has a place for its weights."""
    from vitdeploy.sources.hubs import load_timm

    arguments = {**model.arguments, **options.arguments}
    loaded = load_timm(model.architecture, Weights(path, False, options.seed), arguments)
    notes = [f"{path}: timm builds it, as its config.json says that it is {model.architecture}"]
    classes: tuple[str, ...] = ()
    if options.labels is None and options.head_for is None and loaded.spec.arguments["num_classes"]:
        classes, problem = usable_class_names(model.config, "config.json", loaded.spec.arguments["num_classes"])
        notes += [problem] * bool(problem)
    return replace(
        loaded,
        spec=loaded.spec.model_copy(update={"classes": classes or loaded.spec.classes}),
        preprocess=(model.preprocess or loaded.preprocess).at_size(loaded.preprocess.size),
        notes=(*notes, *loaded.notes),
    )


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
