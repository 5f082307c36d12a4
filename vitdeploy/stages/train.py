"""``train``: from a dataset to a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitdeploy import environment
from vitdeploy.artifacts import Checkpoint, read_checkpoint
from vitdeploy.datasets import Dataset, Split, open_dataset, require_labels, splits_of
from vitdeploy.errors import ArtifactError, DataError
from vitdeploy.progress import SILENT, Progress
from vitdeploy.records import Manifest, Preprocess, sha256_of, stage_key
from vitdeploy.training.options import DEFAULTS, TrainOptions
from vitdeploy.training.paths import state_path
from vitdeploy.training.schedule import seed_of
from vitdeploy.training.subject import Subject, choose_subject


def train(
    data: str,
    output: Path,
    *,
    model: str = "vit",
    arguments: Mapping[str, Any] | None = None,
    options: TrainOptions = DEFAULTS,
    preprocess: Preprocess | None = None,
    resume: bool = False,
    progress: Progress = SILENT,
) -> Checkpoint:
    """Train a model on a dataset's training split and write the weights that are best on its validation split.

    The test split is looked at once, at the end, and its top-1 stands in the manifest beside that on validation.
    While it runs, ``NAME.state.pt`` beside the output holds what ``resume`` needs, and ``NAME.metrics.jsonl`` has a
    line per epoch.

    Args:
        data: ``digits``, a folder of class folders, or another dataset with labels.
        output: The checkpoint, ``NAME.safetensors``.
        model: A catalogue name, or a family, of which a small member is taken for small images.
        arguments: Of the model's constructor; replace those of the variant.
        options: Length, learning rate, augmentation, devices and so on.
        preprocess: By default that of the variant, else what the dataset suggests.
        resume: Go on from the state of an interrupted training; where the output is already finished, return it.
        progress: Shows epoch, loss and top-1 on validation.

    Raises:
        DataError: The dataset has no labels, fewer than two classes, or splits with other classes.
        ModelError: The model's name or arguments are wrong.
        UsageError: Options contradict each other, or the dataset.
        TrainingError: The loss is not a number, or the state does not fit.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the output has the best weights so far, and ``resume`` goes on.
    """
    output = Path(output)
    splits = open_splits(data)
    subject = choose_subject(model, _complete(arguments, options), splits["train"], preprocess)
    key = _key(subject, options, splits)
    if resume and (finished := _finished(output, key)) is not None:
        progress.note(f"{str(output)!r} is finished: nothing to resume")
        return finished
    if subject.note:
        progress.note(subject.note)
    options = _fitting_batch(options, len(splits["train"]), progress)
    manifest = Manifest(
        kind="checkpoint",
        key=key,
        model=subject.spec,
        preprocess=subject.preprocess,
        options=options.key(),
        parents=_parents(splits),
        producer=f"vitdeploy {environment.versions().get('vitdeploy', '')}".strip(),
        versions=environment.versions(),
        environment=environment.current(),
    )
    _run(manifest, options, output, splits, resume=resume, progress=progress)
    return read_checkpoint(output)


def train_key(
    data: str,
    *,
    model: str = "vit",
    arguments: Mapping[str, Any] | None = None,
    options: TrainOptions = DEFAULTS,
    preprocess: Preprocess | None = None,
) -> str:
    """Return the freshness key of the checkpoint that ``train`` would write; needs no torch."""
    splits = open_splits(data)
    subject = choose_subject(model, _complete(arguments, options), splits["train"], preprocess)
    return _key(subject, options, splits)


def open_splits(data: str) -> dict[str, Dataset]:
    """Return train and validation, and test where the source has one.

    Raises:
        DataError: A split is missing or empty, or its classes are not those of the training split.
    """
    names: list[Split] = ["train", "validation"]
    own = splits_of(data)
    if not own or "test" in own:
        names.append("test")
    splits: dict[str, Dataset] = {name: open_dataset(data, split=name) for name in names}
    for dataset in splits.values():
        require_labels(dataset)
        if dataset.classes != splits["train"].classes:
            raise DataError(
                f"{dataset.uri!r} has the classes {_listed(dataset.classes)}, but the training split has "
                f"{_listed(splits['train'].classes)}: give all splits the same class folders"
            )
    return splits


def _run(
    manifest: Manifest,
    options: TrainOptions,
    output: Path,
    splits: Mapping[str, Dataset],
    *,
    resume: bool,
    progress: Progress,
) -> None:
    import torch

    from vitdeploy.models import model_from_spec
    from vitdeploy.training.launch import launch
    from vitdeploy.training.loop import Job

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(options.seed, "weights"))
        module = model_from_spec(manifest.model)
    unfinished = state_path(output)
    if unfinished.exists() and not resume:
        progress.note(f"starting anew; the state of an unfinished training, {str(unfinished)!r}, is dropped")
        unfinished.unlink()
    job = Job(
        module=module,
        manifest=manifest,
        options=options,
        output=output,
        train=splits["train"],
        validation=splits["validation"],
        test=splits.get("test"),
        resume=resume and unfinished.exists(),
    )
    launch(job, progress)


def _complete(arguments: Mapping[str, Any] | None, options: TrainOptions) -> dict[str, Any]:
    """Return the model's arguments with the drop path that the options ask for."""
    extra = {} if options.drop_path is None else {"drop_path": options.drop_path}
    return {**(arguments or {}), **extra}


def _key(subject: Subject, options: TrainOptions, splits: Mapping[str, Dataset]) -> str:
    decisive = {
        "options": options.key(),
        "model": subject.spec.model_dump(mode="json"),
        "preprocess": subject.preprocess.model_dump(mode="json"),
    }
    return stage_key("train", decisive, _parents(splits))


def _parents(splits: Mapping[str, Dataset]) -> dict[str, str]:
    return {"data": sha256_of({name: dataset.digest for name, dataset in splits.items()})}


def _finished(output: Path, key: str) -> Checkpoint | None:
    """Return the checkpoint if it is whole and what this training would give."""
    try:
        checkpoint = read_checkpoint(output)
    except ArtifactError:
        return None
    return checkpoint if checkpoint.manifest.key == key else None


def _fitting_batch(options: TrainOptions, images: int, progress: Progress) -> TrainOptions:
    """Return the options with a batch that the training split can fill.

    Raises:
        DataError: There are fewer images than accumulation steps.
    """
    if options.batch <= images:
        return options
    batch = images - images % options.accumulate
    if batch == 0:
        raise DataError(f"the training split has {images} images, expected at least {options.accumulate}, one per step")
    progress.note(f"batch {batch} instead of {options.batch}: the training split has {images} images")
    return replace(options, batch=batch)


def _listed(classes: tuple[str, ...]) -> str:
    shown = ", ".join(map(repr, classes[:5]))
    return shown if len(classes) <= 5 else f"{shown} and {len(classes) - 5} more"
