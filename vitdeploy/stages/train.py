"""``train``: from a dataset to a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from vitdeploy import environment
from vitdeploy.artifacts import Checkpoint, read_checkpoint
from vitdeploy.artifacts.files import refuse_unwritable
from vitdeploy.datasets import Dataset, Split, open_dataset, require_labels, splits_of
from vitdeploy.errors import ArtifactError, DataError, UsageError
from vitdeploy.progress import SILENT, Progress
from vitdeploy.records import Manifest, Preprocess, sha256_of, stage_key
from vitdeploy.training.options import DEFAULTS, TrainOptions
from vitdeploy.training.paths import state_path
from vitdeploy.training.start import (
    Start,
    brings_weights,
    fresh_start,
    open_teacher,
    source_digest,
    trained_start,
)
from vitdeploy.training.subject import Subject, choose_subject


def train(
    data: str,
    output: Path | str,
    *,
    model: str = "vit",
    weights: Path | None = None,
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
        model: A catalogue name, or a family, of which a small member is taken for small images; or a trained model, as
            ``export`` takes it, which is trained further.
        weights: A file with weights to start from, for a model that is a name.
        arguments: Of the model's constructor; replace those of the variant.
        options: Length, learning rate, augmentation, devices and so on.
        preprocess: By default that of the variant, else what the dataset suggests; that of a trained model stays.
        resume: Go on from the state of an interrupted training; where the output is already finished, return it.
        progress: Shows epoch, loss and top-1 on validation.

    Raises:
        DataError: The dataset has no labels, fewer than two classes, or splits with other classes.
        ModelError: The model's name or arguments are wrong.
        UsageError: Options contradict each other, or the dataset.
        ArtifactError: The output cannot be written, or weights to start from are missing or damaged.
        TrainingError: The loss is not a number, or the state does not fit.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the output has the best weights so far, and ``resume`` goes on.
    """
    if _is_helping_process():
        progress = SILENT
    request = TrainRequest(data, model, weights, _complete(arguments, options), options, preprocess)
    output = Path(output)
    refuse_unwritable(output, "a checkpoint")
    key = request.key()
    if resume and (finished := _finished(output, key)) is not None:
        progress.note(f"{str(output)!r} is finished: nothing to resume")
        return finished
    start = request.start()
    if start.subject.note:
        progress.note(start.subject.note)
    options = _fitting_batch(options, len(request.splits["train"]), progress)
    manifest = Manifest(
        kind="checkpoint",
        key=key,
        model=start.subject.spec,
        preprocess=start.subject.preprocess,
        options=options.key(),
        parents=request.parents(),
        producer=f"vitdeploy {environment.versions().get('vitdeploy', '')}".strip(),
        versions=environment.versions(),
        environment=environment.current(),
    )
    _run(start, manifest, options, output, request.splits, resume=resume, progress=progress)
    return read_checkpoint(output)


def train_key(
    data: str,
    *,
    model: str = "vit",
    weights: Path | None = None,
    arguments: Mapping[str, Any] | None = None,
    options: TrainOptions = DEFAULTS,
    preprocess: Preprocess | None = None,
) -> str:
    """Return the freshness key of the checkpoint that ``train`` would write; needs no torch."""
    return TrainRequest(data, model, weights, _complete(arguments, options), options, preprocess).key()


@dataclass(frozen=True)
class TrainRequest:
    """What ``train`` is asked for; options and parents of the stage, and so its freshness, need no torch."""

    data: str
    model: str
    weights: Path | None
    arguments: dict[str, Any]
    options: TrainOptions
    preprocess: Preprocess | None

    @cached_property
    def splits(self) -> dict[str, Dataset]:
        return open_splits(self.data)

    @cached_property
    def further(self) -> bool:
        """Whether a trained model is trained further."""
        return brings_weights(self.model, self.weights)

    @cached_property
    def subject(self) -> Subject:
        return choose_subject(self.model, self.arguments, self.splits["train"], self.preprocess)

    def start(self) -> Start:
        if not self.further:
            return fresh_start(self.subject, self.options.seed)
        if self.preprocess is not None:
            raise UsageError("a trained model keeps the preprocessing that it was trained with: leave preprocess out")
        return trained_start(self.model, self.weights, self.arguments, self.splits["train"], seed=self.options.seed)

    def parents(self) -> dict[str, str]:
        """Return the digests of the data, and of the weights and the teacher that are taken."""
        parents = {"data": sha256_of({name: dataset.digest for name, dataset in self.splits.items()})}
        if self.further:
            parents["weights"] = source_digest(self.model, self.weights)
        if self.options.distillation is not None:
            parents["teacher"] = source_digest(self.options.distillation.teacher)
        return parents

    def decisive(self) -> dict[str, Any]:
        """Return everything else that decides the result, as JSON values."""
        if self.further:
            model = {"name": self.model if self.weights is not None else "", "arguments": self.arguments}
            return {"options": self.options.key(), "model": model}
        return {
            "options": self.options.key(),
            "model": self.subject.spec.model_dump(mode="json"),
            "preprocess": self.subject.preprocess.model_dump(mode="json"),
        }

    def key(self) -> str:
        """Return the freshness key."""
        return stage_key("train", self.decisive(), self.parents())


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
    start: Start,
    manifest: Manifest,
    options: TrainOptions,
    output: Path,
    splits: Mapping[str, Dataset],
    *,
    resume: bool,
    progress: Progress,
) -> None:
    from vitdeploy.training.launch import launch
    from vitdeploy.training.loop import Job

    distillation = options.distillation
    teacher = None if distillation is None else open_teacher(distillation.teacher, start.subject)
    unfinished = state_path(output)
    if unfinished.exists() and not resume:
        progress.note(f"starting anew; the state of an unfinished training, {str(unfinished)!r}, is dropped")
        unfinished.unlink()
    job = Job(
        module=start.module,
        manifest=manifest,
        options=options,
        output=output,
        train=splits["train"],
        validation=splits["validation"],
        test=splits.get("test"),
        teacher=teacher,
        resume=resume and unfinished.exists(),
    )
    launch(job, progress)


def _is_helping_process() -> bool:
    """Whether torchrun, a cluster or Lightning Fabric has started this process beside a first one."""
    ranks = (os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    return any(rank not in {None, "", "0"} for rank in ranks)


def _complete(arguments: Mapping[str, Any] | None, options: TrainOptions) -> dict[str, Any]:
    """Return the model's arguments with the drop path that the options ask for."""
    extra = {} if options.drop_path is None else {"drop_path": options.drop_path}
    return {**(arguments or {}), **extra}


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
        DataError: There are too few images to divide into accumulation steps, or to mix.
    """
    if options.batch <= images:
        return options
    step = options.accumulate * (2 if options.augmentation.mixes else 1)
    batch = images - images % step
    if batch == 0:
        raise DataError(f"the training split has {images} images, expected at least {step} for one update")
    progress.note(f"batch {batch} instead of {options.batch}: the training split has {images} images")
    return replace(options, batch=batch)


def _listed(classes: tuple[str, ...]) -> str:
    shown = ", ".join(map(repr, classes[:5]))
    return shown if len(classes) <= 5 else f"{shown} and {len(classes) - 5} more"
