"""``train``: from a dataset to a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from vitdeploy import environment
from vitdeploy.artifacts import Artifact, Checkpoint, read_checkpoint
from vitdeploy.artifacts.locks import hold_file
from vitdeploy.artifacts.outputs import refuse_unwritable
from vitdeploy.datasets import (
    Dataset,
    DataSource,
    Split,
    labelled_splits_of,
    open_dataset,
    overlap_text,
    rename_classes,
    require_labels,
    splits_of,
)
from vitdeploy.datasets.class_names import read_class_names
from vitdeploy.errors import ArtifactError, DataError, SeenDataWarning, TrainingError, warn
from vitdeploy.progress import SILENT, Progress
from vitdeploy.records import Manifest, Preprocess, SampleSet, TrainingData, sha256_of, stage_key
from vitdeploy.sources.source import Source, SourceOptions, brings_weights, open_source
from vitdeploy.terminal_progress import AUTO, shown
from vitdeploy.training.options import DEFAULTS, Distillation, TrainOptions
from vitdeploy.training.paths import last_path, metrics_path, state_path
from vitdeploy.training.start import Start, fresh_start, open_teacher, trained_start
from vitdeploy.training.subject import Subject, choose_subject, detail_note


def train(
    data: DataSource | Mapping[Split, Dataset],
    output: Path | str,
    *,
    model: Artifact | Path | str | None = None,
    weights: Checkpoint | Path | str | None = None,
    random_weights: bool = False,
    arguments: Mapping[str, Any] | None = None,
    options: TrainOptions = DEFAULTS,
    preprocess: Preprocess | None = None,
    labels: Path | str | None = None,
    resume: bool | Literal["auto"] = False,
    progress: Progress | None = AUTO,
) -> Checkpoint:
    """Train a model on a dataset's training split and write the weights that are best on its validation split.

    The test split is looked at once, at the end, and its top-1 stands in the manifest beside that on validation.
    While it runs, ``NAME.state.pt`` beside the output holds what ``resume`` needs, and ``NAME.metrics.jsonl`` has a
    line per epoch.

    Args:
        data: ``digits``, a folder of class folders, or another dataset with labels; or the splits themselves, opened:
            ``train``, ``validation`` and, if there is one, ``test``.
        output: The checkpoint, ``NAME.safetensors``.
        model: A catalogue name, or a family, of which a small member is taken for small images; or a trained model, as
            ``export`` takes it, which is trained further. By default what ``weights`` say themselves, else ``vit``.
        weights: Weights to start from, for a model that is a name.
        random_weights: Fresh weights for a model of timm or torchvision, whose published ones are fetched otherwise.
        arguments: Of the model's constructor; replace those of the variant. Those of a trained model may ask for
            another image size, for which tables of positions are resized, and for what changes no weight, as
            ``drop_path``.
        options: Length, learning rate, augmentation, devices and so on.
        preprocess: By default that of the variant or of the trained model, else what the dataset suggests.
        labels: A file of names for the dataset's classes, in their order, in place of those of its folders.
        resume: Go on from the state of an interrupted training; where the output is already finished, return it.
            ``auto`` goes on where there is a state that fits, and starts anew otherwise.
        progress: Shows epoch, loss and top-1 on validation.

    Raises:
        DataError: The dataset has no labels, fewer than two classes, or splits with other classes.
        ModelError: The model's name or arguments are wrong.
        UsageError: Options contradict each other, or the dataset.
        ArtifactError: The output cannot be written, or weights to start from are missing or damaged.
        TrainingError: The loss is not a number, or the state does not fit.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the output has the best weights so far, and ``resume`` goes on.
    """
    request = TrainRequest.open(
        data,
        output,
        model=model,
        weights=weights,
        random_weights=random_weights,
        arguments=arguments,
        options=options,
        preprocess=preprocess,
        labels=labels,
        resume=resume,
    )
    return request.run(shown(progress))


@dataclass(frozen=True)
class TrainRequest:
    """A training that is ready to run: splits, teacher and starting weights found and checked; no torch yet.

    Either ``subject`` is trained from fresh weights, or ``source`` further.
    """

    splits: Mapping[Split, Dataset]
    output: Path
    subject: Subject | None
    source: Source | None
    teacher: Source | None
    arguments: Mapping[str, Any]
    options: TrainOptions
    resume: bool | Literal["auto"] = False

    @classmethod
    def open(
        cls,
        data: DataSource | Mapping[Split, Dataset],
        output: Path | str,
        *,
        model: Artifact | Path | str | None = None,
        weights: Checkpoint | Path | str | None = None,
        random_weights: bool = False,
        arguments: Mapping[str, Any] | None = None,
        options: TrainOptions = DEFAULTS,
        preprocess: Preprocess | None = None,
        labels: Path | str | None = None,
        resume: bool | Literal["auto"] = False,
    ) -> TrainRequest:
        """Open the splits and find the weights; torch is not needed.

        Raises:
            VitdeployError: As ``train``, where data, model or options are unfit or the output cannot be written.
        """
        output = Path(output)
        refuse_unwritable(
            output,
            "a checkpoint",
            inputs=(model, weights, None if options.distillation is None else options.distillation.teacher),
            beside=(state_path(output), metrics_path(output), *([last_path(output)] if options.keep_last else [])),
        )
        splits = data if isinstance(data, Mapping) else open_splits(data)
        _refuse_unfit_splits(splits)
        if labels is not None:
            names = read_class_names(Path(labels))
            splits = {name: rename_classes(dataset, names) for name, dataset in splits.items()}
        extra = {} if options.drop_path is None else {"drop_path": options.drop_path}
        complete = {**(arguments or {}), **extra}
        teacher = None if options.distillation is None else _open_teacher(options.distillation)
        if model is None:
            model, weights = ("vit", None) if weights is None else (weights, None)
        if brings_weights(model, weights):
            chosen = SourceOptions(
                weights=weights, random_weights=random_weights, arguments=complete, preprocess=preprocess
            )
            source = open_source(model, chosen)
            return cls(splits, output, None, source, teacher, complete, options, resume)
        subject = choose_subject(str(model), complete, splits["train"], preprocess)
        return cls(splits, output, subject, None, teacher, complete, options, resume)

    @cached_property
    def parents(self) -> dict[str, str]:
        """Role → digest of the data, and of the weights and the teacher that are taken."""
        parents = {"data": sha256_of({name: dataset.digest for name, dataset in self.splits.items()})}
        if self.source is not None:
            parents["weights"] = self.source.digest
        if self.teacher is not None:
            parents["teacher"] = self.teacher.digest
        return parents

    @property
    def values(self) -> dict[str, Any]:
        """Everything else that decides the result, as JSON values."""
        if self.subject is None:
            assert self.source is not None
            return {
                "options": self.options.key(),
                "model": {"name": self.source.name, "arguments": dict(self.arguments)},
                **{name: value for name, value in self.source.values.items() if name == "preprocess"},
            }
        return {
            "options": self.options.key(),
            "model": self.subject.spec.model_dump(mode="json"),
            "preprocess": self.subject.preprocess.model_dump(mode="json"),
        }

    @property
    def key(self) -> str:
        """The freshness key of the result."""
        return stage_key("train", self.values, self.parents)

    def run(self, progress: Progress = SILENT) -> Checkpoint:
        """Train, and write the best weights.

        Raises:
            VitdeployError, KeyboardInterrupt: As ``train``.
        """
        if environment.is_helping_process():
            progress = SILENT
        if self.resume and (finished := self._finished()) is not None:
            progress.note(f"{str(self.output)!r} is finished: nothing to resume")
            with nullcontext() if environment.is_helping_process() else hold_file(self.output):
                pass  # a lock that a killed training left is removed
            return finished
        resume = self._state_fits(progress) if self.resume == "auto" else self.resume
        left_out = (note for dataset in self.splits.values() for note in dataset.notes)
        self._warn_of_shared_images()
        start, train = self._start(), self.splits["train"]
        detail = "" if self.source is not None else detail_note(start.subject, train)
        for note in dict.fromkeys((*left_out, *start.subject.note.splitlines(), detail)):
            if note:
                progress.note(note)
        options = _fitting_batch(self.options, len(train), progress)
        manifest = Manifest(
            kind="checkpoint",
            key=self.key,
            model=start.subject.spec,
            preprocess=start.subject.preprocess,
            trained_on=(*start.trained_on, self._training_data()),
            options=options.key(),
            parents=self.parents,
            producer=f"vitdeploy {environment.versions().get('vitdeploy', '')}".strip(),
            versions=environment.versions(),
            environment=environment.current(),
        )
        with nullcontext() if environment.is_helping_process() else hold_file(self.output):
            self._launch(start, manifest, options, progress, resume=resume)
        return read_checkpoint(self.output)

    def _warn_of_shared_images(self) -> None:
        for name, dataset in self.splits.items():
            if name != "train" and (text := overlap_text(dataset, self.splits["train"])):
                warn(
                    f"{text}: the top-1 on {name} is better than on new images; take them out of one of the two",
                    SeenDataWarning,
                )

    def _training_data(self) -> TrainingData:
        """Return what the manifest says of the images that the weights are fitted to and chosen by."""
        train, validation = self.splits["train"], self.splits["validation"]
        seen = (SampleSet.of(dataset.sample_ids) for dataset in (train, validation))
        return TrainingData(data=train.uri, train=next(seen), validation=next(seen))

    def _start(self) -> Start:
        if self.source is None:
            assert self.subject is not None
            return fresh_start(self.subject, self.options.seed)
        return trained_start(self.source, self.splits["train"], seed=self.options.seed)

    def _state_fits(self, progress: Progress) -> bool:
        """Return whether a killed training left a state from which this one can go on."""
        from vitdeploy.training.identity import Identity
        from vitdeploy.training.state import read_state

        path = state_path(self.output)
        if not path.exists():
            return False
        try:
            read_state(path, Identity(self.key))
        except TrainingError:
            return False
        progress.note("train: going on from where the last one stopped")
        return True

    def _launch(
        self, start: Start, manifest: Manifest, options: TrainOptions, progress: Progress, *, resume: bool
    ) -> None:
        from vitdeploy.training.launch import launch
        from vitdeploy.training.loop import Job

        unfinished = state_path(self.output)
        if resume and not unfinished.exists():
            progress.note(f"there is no state to resume, {str(unfinished)!r}: the training starts anew")
        if unfinished.exists() and not resume:
            progress.note(f"starting anew; the state of an unfinished training, {str(unfinished)!r}, is dropped")
            unfinished.unlink()
        job = Job(
            module=start.module,
            manifest=manifest,
            options=options,
            output=self.output,
            train=self.splits["train"],
            validation=self.splits["validation"],
            test=self.splits.get("test"),
            teacher=None if self.teacher is None else open_teacher(self.teacher, start.subject),
            resume=resume and unfinished.exists(),
        )
        launch(job, progress)

    def _finished(self) -> Checkpoint | None:
        """Return the checkpoint if it is whole and what this training would give."""
        try:
            checkpoint = read_checkpoint(self.output)
        except ArtifactError:
            return None
        return checkpoint if checkpoint.manifest.key == self.key else None


def _open_teacher(distillation: Distillation) -> Source:
    options = SourceOptions(weights=distillation.weights, arguments=distillation.arguments)
    return open_source(distillation.teacher, options)


def open_splits(data: DataSource) -> dict[Split, Dataset]:
    """Return train and validation, and test where the source has one.

    Raises:
        DataError: A split is missing or empty.
    """
    return {name: open_dataset(data, split=name) for name in names_of_splits(data)}


def names_of_splits(data: DataSource) -> tuple[Split, ...]:
    """Return the splits that a training uses: test too, unless its source has splits and no labelled test."""
    test = not splits_of(data) or "test" in labelled_splits_of(data)
    return ("train", "validation", "test") if test else ("train", "validation")


def _refuse_unfit_splits(splits: Mapping[Split, Dataset]) -> None:
    """Pass where there are a training and a validation split, and all splits have the same labelled classes.

    Raises:
        DataError: They have not.
    """
    for name in ("train", "validation"):
        if name not in splits:
            raise DataError(f"the data has the splits {', '.join(splits) or 'none'}, expected {name!r} among them")
    for dataset in splits.values():
        require_labels(dataset)
        if dataset.classes != splits["train"].classes:
            raise DataError(
                f"{dataset.uri!r} has the classes {_listed(dataset.classes)}, but the training split has "
                f"{_listed(splits['train'].classes)}: give all splits the same class folders"
            )


def _fitting_batch(options: TrainOptions, images: int, progress: Progress) -> TrainOptions:
    """Return the options with a batch that the training split can fill.

    Raises:
        DataError: There are too few images to divide into accumulation steps and among devices, or to mix.
    """
    if options.batch <= images:
        return options
    hardware = options.hardware
    devices = hardware.devices * hardware.num_nodes if isinstance(hardware.devices, int) else 1
    step = options.accumulate * max(1, devices) * (2 if options.augmentation.mixes else 1)
    batch = images - images % step
    if batch == 0:
        raise DataError(f"the training split has {images} images, expected at least {step} for one update")
    progress.note(f"batch {batch} instead of {options.batch}: the training split has {images} images")
    return replace(options, batch=batch)


def _listed(classes: tuple[str, ...]) -> str:
    shown = ", ".join(map(repr, classes[:5]))
    return shown if len(classes) <= 5 else f"{shown} and {len(classes) - 5} more"
