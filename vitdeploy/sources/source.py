"""``open_source``: what names a model is found, checked and identified, without torch and before any work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from vitdeploy.artifacts import Artifact, Checkpoint, open_artifact, read_checkpoint
from vitdeploy.artifacts.checkpoint import METADATA_KEY
from vitdeploy.errors import ArtifactError, CheckpointError, UsageError
from vitdeploy.preprocess import preprocess_from
from vitdeploy.reading import missing, safetensors_metadata, sha256_of_file
from vitdeploy.records import Preprocess, Task, sha256_of

TIMM, TORCHVISION, HUGGING_FACE = "timm:", "torchvision:", "hf:"
LOCAL_FOLDER = "local-dir:"
HUBS = (TIMM, TORCHVISION, HUGGING_FACE)
_FILE_SUFFIXES = (".safetensors", ".pth", ".pt", ".npz", ".onnx", ".bin", ".tar")


@dataclass(frozen=True)
class SourceOptions:
    """How a model is loaded.

    weights: A weight file of any dialect, or a checkpoint, for a source that is a name.
    random_weights: Fresh weights from ``seed``: to look at graph, size and speed, never at accuracy.
    arguments: Constructor arguments, such as ``{"image_size": 384}``. For a checkpoint of vitdeploy's only those that
        change no weights but tables of positions.
    reset_head: Draw a new head where ``num_classes`` is another than that of the weights.
    head_for: Number of classes of a training: a head for as many is kept, any other is drawn anew.
    seed: Decides random weights, those of a new head too.
    labels: A file of class names, for weights that do not name them, or in place of theirs.
    preprocess: A record, or ``timm:NAME``, ``hf:DIR`` or a JSON file, in place of what belongs to the weights.
    task: What the outputs mean, in place of what the files say. ``features`` leaves the head out, as ``num_classes=0``
        does.
    """

    weights: Checkpoint | Path | str | None = None
    random_weights: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)
    reset_head: bool = False
    head_for: int | None = None
    seed: int = 0
    labels: Path | str | None = None
    preprocess: Preprocess | str | None = None
    task: Task | None = None

    @property
    def headless(self) -> bool:
        """Return whether the model is to end at the features that its head reads."""
        return self.task == "features" or self.arguments.get("num_classes") == 0

    @cached_property
    def named_preprocess(self) -> Preprocess | None:
        """The record that ``preprocess`` names.

        Raises:
            DataError, ArtifactError: It cannot be read or carried out.
        """
        return preprocess_from(self.preprocess) if isinstance(self.preprocess, str) else self.preprocess


@dataclass(frozen=True)
class Source:
    """A model that was found: ``load`` of ``vitdeploy.sources.load`` makes a module of it.

    ``text`` is what the user wrote, ``name`` the model's name where the weights do not say it themselves. The weights
    are those of ``checkpoint``, which vitdeploy wrote, of the foreign ``file`` or folder, random, or with none of them
    what the hub in ``text`` publishes.
    """

    text: str
    options: SourceOptions = SourceOptions()
    name: str = ""
    checkpoint: Checkpoint | None = None
    file: Path | None = None

    @property
    def hub(self) -> str:
        """Return ``timm:``, ``torchvision:`` or ``hf:``, or "" for a model that comes from no hub."""
        return hub_of(self.text)

    @cached_property
    def digest(self) -> str:
        """What identifies the weights: a checkpoint's payload, a foreign file's bytes, else the name.

        Raises:
            ArtifactError: The file cannot be read.
        """
        if self.checkpoint is not None:
            return self.checkpoint.digest
        if self.file is not None and self.file.is_dir():
            files = sorted(file for file in self.file.iterdir() if file.is_file())
            return sha256_of([[file.name, sha256_of_file(file)] for file in files])
        if self.file is not None:
            return sha256_of_file(self.file)
        return sha256_of(self.text)

    @cached_property
    def values(self) -> dict[str, Any]:
        """What else decides the model, as JSON values; paths do not."""
        options = self.options
        values: dict[str, Any] = {"name": self.name} if self.name else {}
        if options.arguments:
            values["arguments"] = dict(options.arguments)
        if options.reset_head:
            values["reset_head"] = True
        if options.random_weights:
            values["random_weights"] = True
        if options.labels is not None:
            values["labels"] = sha256_of_file(Path(options.labels))
        if options.named_preprocess is not None:
            values["preprocess"] = options.named_preprocess.model_dump(mode="json")
        if options.task is not None:
            values["task"] = options.task
        return values


def hub_of(text: str) -> str:
    """Return the hub's prefix of a source's text, "" where it has none."""
    return next((hub for hub in HUBS if text.startswith(hub)), "")


def place_of(source: Source | Artifact | Path | str) -> Path:
    """Return the file that names a model, or a path in the current folder that is called like it."""
    if isinstance(source, Source):
        found = source.checkpoint.path if source.checkpoint is not None else source.file
        return found if found is not None else place_of(source.text)
    if isinstance(source, Artifact):
        return source.path
    text = str(source)
    return Path(text) if Path(text).exists() else Path(Path(text.removeprefix(hub_of(text))).name)


def brings_weights(source: Artifact | Path | str, weights: Checkpoint | Path | str | None = None) -> bool:
    """Return whether a source names weights, and not only an architecture."""
    if weights is not None or isinstance(source, Artifact):
        return True
    text = str(source)
    return bool(hub_of(text)) or text.startswith(LOCAL_FOLDER) or Path(text).exists()


def open_source(source: Source | Artifact | Path | str, options: SourceOptions = SourceOptions()) -> Source:
    """Find what names a model and check that the options go with it; nothing is loaded, and torch is not needed.

    Args:
        source: A checkpoint of ours; a catalogue or family name, with ``weights`` or ``random_weights``; a foreign
            checkpoint or Hugging Face folder (``hf:DIR``, too); ``timm:NAME`` or ``torchvision:NAME``, whose published
            weights are fetched unless ``weights`` or ``random_weights`` say otherwise.
        options: See ``SourceOptions``.
    Raises:
        UsageError: The options contradict each other, or a name comes with no weights.
        ModelError: There is no such model.
        CheckpointError: The weights are of another model than the one that is named.
        ArtifactError: The file is missing or damaged, or the artifact holds no weights for PyTorch.
    """
    if isinstance(source, Source):
        return source
    if options.weights is not None and options.random_weights:
        raise UsageError("weights= and random_weights=True contradict each other: leave one of the two out")
    if isinstance(source, Artifact):
        _refuse_weights(str(source.path), options)
        return _of_checkpoint(str(source.path), _checkpoint(source), options)
    text = str(source)
    for prefix in (f"{TIMM}{LOCAL_FOLDER}", LOCAL_FOLDER):  # timm's words for a folder of its own
        text = text.removeprefix(prefix)
    weights = options.weights
    file = Path(weights) if isinstance(weights, str | Path) else None
    if file is not None and not file.exists():
        raise missing(file, FileNotFoundError())
    hub = hub_of(text)
    if hub in (TIMM, TORCHVISION):
        return Source(text, options, text, file=weights.path if isinstance(weights, Checkpoint) else file)
    if hub:
        _refuse_weights(text, options)
        folder = Path(text.removeprefix(hub))
        return Source(text, options, file=folder) if folder.is_dir() else Source(text, options, text)
    if Path(text).exists():
        _refuse_weights(text, options)
        if _is_ours(Path(text)):
            return _of_checkpoint(text, read_checkpoint(Path(text)), options)
        return Source(text, options, file=Path(text))
    text = _require_name(text)
    if options.random_weights:
        return Source(text, options, text)
    if weights is None:
        raise UsageError(
            f"model {text!r} needs weights: weights='FILE', or random_weights=True to look at graph and speed only"
        )
    if isinstance(weights, Artifact):
        return _named(text, _checkpoint(weights), options)
    assert file is not None
    return _named(text, read_checkpoint(file), options) if _is_ours(file) else Source(text, options, text, file=file)


def _checkpoint(artifact: Artifact) -> Checkpoint:
    if not isinstance(artifact, Checkpoint):
        raise ArtifactError(
            f"{str(artifact.path)!r} is a file of kind {artifact.manifest.kind!r}, expected a checkpoint: only weights "
            "become a PyTorch model"
        )
    current = open_artifact(artifact)
    assert isinstance(current, Checkpoint)
    return current


def _of_checkpoint(text: str, checkpoint: Checkpoint, options: SourceOptions) -> Source:
    if options.reset_head and "num_classes" not in options.arguments:
        raise UsageError(f"reset_head=True of {text!r} needs the number of classes: arguments={{'num_classes': N}}")
    return Source(text, options, checkpoint=checkpoint)


def _named(name: str, checkpoint: Checkpoint, options: SourceOptions) -> Source:
    """Return a checkpoint of ours whose model was named beside it."""
    model = checkpoint.manifest.model
    if name not in (model.name, model.family):
        raise CheckpointError(
            f"{str(checkpoint.path)!r} is of model {model.name!r}, not {name!r}: leave the name out, the file says it"
        )
    return Source(name, options, checkpoint=checkpoint)


def _refuse_weights(text: str, options: SourceOptions) -> None:
    if options.weights is not None or options.random_weights:
        option = "random_weights=True" if options.random_weights else "weights="
        raise UsageError(f"{text!r} brings its own weights, so {option} has no place: leave it out")


def _is_ours(path: Path) -> bool:
    if path.is_dir():
        return False
    try:
        return METADATA_KEY in safetensors_metadata(path)
    except ArtifactError:
        return False  # not safetensors, or damaged: the reader of foreign files says which


def _require_name(name: str) -> str:
    """Return the catalogue's name of a variant, or a family's.

    Raises:
        ModelError: There is none; the message has the nearest.
        ArtifactError: It looks like a file, which is missing.
    """
    from vitdeploy.catalog import resolve, variant, variants

    found = resolve(name)
    if found is not None:
        return found.name
    if name in {entry.family for entry in variants().values()}:
        return name
    if "/" in name or "\\" in name or Path(name).suffix in _FILE_SUFFIXES:
        raise missing(Path(name), FileNotFoundError())
    try:
        from vitdeploy.models.registry import FAMILIES  # some families have no variants; needs torch
    except ModuleNotFoundError:
        FAMILIES = {}
    return name if name in FAMILIES else variant(name).name
