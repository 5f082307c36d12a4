"""Bench: accuracy, fidelity, latency and cost of artifacts, side by side, against a baseline on the same device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from vitdeploy import __version__, environment
from vitdeploy.artifacts import Artifact, CalibrationTable, open_artifact
from vitdeploy.artifacts.files import FilesTogether, together
from vitdeploy.artifacts.outputs import refuse_unwritable_folder
from vitdeploy.benching.baseline import BaselineChoice, Scene, choose_baseline, open_baseline
from vitdeploy.benching.candidates import Candidate, list_candidates, list_checkpoints, list_rivals, with_unique_names
from vitdeploy.benching.command import bench_command
from vitdeploy.benching.endurance import measure_energy, measure_sustained
from vitdeploy.benching.labels import ClassKey, class_key, match_classes, predicts_a_class
from vitdeploy.benching.latency import measure_latency
from vitdeploy.benching.layers import measure_layers
from vitdeploy.benching.lineages import number_models
from vitdeploy.benching.measuring import Entry, match_labels_of, measure_accuracy, measure_processes
from vitdeploy.benching.options import BenchOptions
from vitdeploy.benching.predictions import find_differences, refuse_unwritable_predictions, write_predictions
from vitdeploy.benching.preparation import other_preprocessing
from vitdeploy.benching.samples import write_samples
from vitdeploy.benching.scenarios import measure_scenarios
from vitdeploy.benching.seen import note_seen_images
from vitdeploy.benching.thread_counts import measure_thread_counts
from vitdeploy.benching.throughput import measure_throughput
from vitdeploy.datasets import Dataset, DataSource, evaluation_split, open_dataset, refuse_output_in_data
from vitdeploy.datasets.uri import parse_uri
from vitdeploy.errors import ArtifactError, BackendError, DataError, FidelityWarning, SeenDataWarning, UsageError, warn
from vitdeploy.measure import sensors
from vitdeploy.measure.by_class import class_counts
from vitdeploy.measure.load import OtherLoad, watch_other_load
from vitdeploy.measure.verdict import give_verdict
from vitdeploy.progress import SILENT, Progress
from vitdeploy.records import Baseline, Conditions, Report, Row, stage_key
from vitdeploy.records.report import SAMPLES, Device, SelfCheck
from vitdeploy.sources.source import Source, SourceOptions
from vitdeploy.terminal_progress import AUTO, shown

__all__ = ["BenchOptions", "BenchRequest", "bench", "open_test_data"]

TIMED_LIBRARIES = ("torch", "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx")


def bench(
    artifacts: Sequence[Artifact | Path | str] | Artifact | Path | str,
    data: DataSource | None = None,
    *,
    baseline: Artifact | Path | str | None = None,
    options: BenchOptions = BenchOptions(),
    keep: Path | str | None = None,
    predictions: Path | str | None = None,
    files: FilesTogether | None = None,
    progress: Progress | None = AUTO,
) -> Report:
    """Measure artifacts on ``data`` and return the report; one that fails gives a row that says why.

    Args:
        artifacts: Checkpoints, ONNX models and engines that vitdeploy wrote, opened or their files.
        data: What ``open_dataset`` opens; where it names no split, the test images (see ``evaluation_split``). Images
            that a model was trained or calibrated on are named in its notes and in the verdict. None is the test part
            of the data that the artifacts state they were trained on.
        baseline: An artifact, or a source as ``load_source`` takes it; None for the best there is (see
            ``choose_baseline``).
        options: What is measured, and how.
        keep: A folder for ``report.samples.npz``, the duration of every counted call (docs/measuring.md).
        predictions: A Parquet file with each row's prediction for each image (extra ``parquet``; docs/measuring.md).
        files: Holds both back until its block ends, so that they take their places with what ``write_report`` writes.
        progress: Where to show that it goes on.
    Raises:
        UsageError: There are no artifacts, options contradict each other, or no data is given and the artifacts state
            none, or several.
        ArtifactError: A file is missing, of another kind, or damaged.
        DataError: The data cannot be read, or its labels do not fit a model.
    """
    request = BenchRequest.open(artifacts, data, baseline=baseline, options=options, keep=keep, predictions=predictions)
    return request.run(shown(progress), files)


@dataclass(frozen=True)
class BenchRequest:
    """A bench that is ready to run: artifacts, data and baseline open, labels known to fit.

    ``not_built`` are rows of engines that there are none of, with the reason; the verdict knows them. ``keep`` is the
    folder that gets the single durations, ``predictions`` the file for those.
    """

    artifacts: tuple[Artifact, ...]
    dataset: Dataset
    baseline: Source | Artifact | None
    options: BenchOptions
    not_built: tuple[Row, ...] = ()
    keep: Path | None = None
    predictions: Path | None = None

    @classmethod
    def open(
        cls,
        artifacts: Sequence[Artifact | Path | str] | Artifact | Path | str,
        data: DataSource | None = None,
        *,
        baseline: Source | Artifact | Path | str | None = None,
        options: BenchOptions = BenchOptions(),
        not_built: Sequence[Row] = (),
        keep: Path | str | None = None,
        predictions: Path | str | None = None,
    ) -> BenchRequest:
        """Open artifacts, data and baseline; no runtime is loaded.

        Raises:
            VitdeployError: As ``bench``, where sources or options are unfit.
        """
        several = [artifacts] if isinstance(artifacts, Artifact | Path | str) else artifacts
        opened = _open(several)
        if keep is not None:
            refuse_unwritable_folder(Path(keep), (SAMPLES,))
        if predictions is not None:
            refuse_unwritable_predictions(Path(predictions))
        source = training_data_of(opened) if data is None else data
        if keep is not None:
            refuse_output_in_data(Path(keep), source)
        dataset = open_test_data(source, options)
        if dataset.labels is not None:  # a misfit costs no time when it is found before anything is loaded
            named: dict[ClassKey, Artifact] = {}
            for artifact in opened:
                named.setdefault(class_key(artifact.manifest.model), artifact)
            for artifact in named.values():
                if predicts_a_class(artifact.manifest.model):
                    _match(dataset, artifact, options, alone=len(named) == 1)
        kept, listed = (None if path is None else Path(path) for path in (keep, predictions))
        return cls(opened, dataset, open_baseline(baseline), options, tuple(not_built), kept, listed)

    @property
    def parents(self) -> dict[str, str]:
        """Position → digest of the artifacts."""
        return {str(index): artifact.digest for index, artifact in enumerate(self.artifacts)}

    @property
    def command(self) -> str:
        """The command that measures this again, where the artifacts lie; "" where a name is not all of the baseline."""
        base = self.baseline
        if isinstance(base, Source) and base.options != SourceOptions():
            return ""
        files = [artifact.path for artifact in (*self.artifacts, *([base] if isinstance(base, Artifact) else []))]
        names = {path: path.name for path in files}
        if len(set(names.values())) < len(names):
            names = {path: f"{path.absolute().parent.name}/{path.name}" for path in files}
        named = base.text if isinstance(base, Source) else None if base is None else names[base.path]
        return bench_command([names[one.path] for one in self.artifacts], self.dataset.uri, named, self.options)

    @property
    def values(self) -> dict[str, Any]:
        """What else a number in the report depends on, as JSON: data, options, machine, versions of the runtimes."""
        machine, versions = environment.current(), environment.versions()
        return {
            **self.options.identity(),
            "data": self.dataset.digest,
            "baseline": None if self.baseline is None else self.baseline.digest,
            "machine": [machine.cpu, machine.cores, machine.gpu, machine.driver],
            "versions": {name: versions[name] for name in TIMED_LIBRARIES if name in versions},
            "not_built": [row.model_dump(mode="json") for row in self.not_built],
        }

    @property
    def key(self) -> str:
        """The key that the report would have now: equal keys, nothing to measure."""
        return stage_key("bench", self.values, self.parents)

    def run(self, progress: Progress = SILENT, files: FilesTogether | None = None) -> Report:
        """Measure, write what is kept, in ``files`` where these are given, and return the report, which names it.

        Raises:
            VitdeployError: As ``bench``.
        """
        dataset, options = self.dataset, self.options
        _refuse_absent_gpu(self)
        entries, reference = _plan(self, progress)
        warnings, unlike = note_seen_images(entries, dataset), other_preprocessing(entries)
        for text in (f"data: {len(dataset)} images of {dataset.uri!r}", *dataset.notes):
            progress.note(text)
        for text in warnings:
            warn(text, SeenDataWarning)
        for text in unlike:
            warn(text, FidelityWarning)
        with ExitStack() as stack:
            for entry in entries:
                entry.open(stack, options)
            labels = match_labels_of(entries, dataset, options)
            measure_accuracy(entries, reference, dataset, labels, options, progress)
            differences = find_differences(entries, reference, dataset, labels, thumbnails=options.thumbnails)
            meters = sensors.of_all_devices()
            with watch_other_load() as load:
                checks = [
                    measure_latency(entries, batch, dataset, options, meters, progress) for batch in options.batches
                ]
            idle = measure_energy(entries, meters, options.energy_s, progress) if options.energy_s else {}
            if options.sustained_s:
                measure_sustained(entries, meters, options.sustained_s, progress)
            if options.thread_counts:
                measure_thread_counts(entries, options, progress)
            if options.streams:
                measure_throughput(entries, options, progress)
            if options.scenarios:
                measure_scenarios(entries, dataset, options, progress)
            if options.per_layer:
                measure_layers(entries, options, progress)
        if options.processes:
            measure_processes(entries, options, progress)
        kept: dict[str, str] = {}
        with together(files) as written:
            if self.keep is not None:
                kept[SAMPLES] = write_samples(entries, self.keep, written)
            if self.predictions is not None:
                kept[self.predictions.name] = write_predictions(entries, dataset, labels, self.predictions, written)
        rows = (*(entry.row() for entry in entries), *self.not_built)
        record = _baseline_record(entries, reference)
        conditions = _conditions(dataset, options, load, next((check for check in checks if check), None), idle)
        return Report(
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            producer=f"vitdeploy {__version__}",
            key=self.key,
            command=self.command,
            model=self.artifacts[0].manifest.model.title,
            environment=environment.current(),
            versions=environment.versions(),
            baseline=record,
            conditions=conditions,
            rows=rows,
            differences=differences,
            files=kept,
            verdict=tuple(dict.fromkeys((*warnings, *unlike, *give_verdict(rows, record, conditions)))),
        )


def open_test_data(data: DataSource, options: BenchOptions) -> Dataset:
    """Open what accuracy is measured on: where ``data`` names no split, that of ``evaluation_split``."""
    return open_dataset(data, split=evaluation_split(data), samples=options.samples, seed=options.seed)


def training_data_of(artifacts: Sequence[Artifact]) -> str:
    """Return the data that the artifacts were last trained on, as a URI without a split.

    Raises:
        UsageError: They state none, or several.
    """
    trainings = [artifact.manifest.trained_on[-1].data for artifact in artifacts if artifact.manifest.trained_on]
    stated = sorted({replace(parse_uri(uri), split=None).text for uri in trainings})
    if len(stated) == 1:
        return stated[0]
    reason = f"were trained on {', '.join(map(repr, stated))}" if stated else "do not state what they were trained on"
    raise UsageError(f"the artifacts {reason}: name the data to measure on")


def _match(dataset: Dataset, artifact: Artifact, options: BenchOptions, *, alone: bool) -> None:
    """Pass where the labels fit an artifact's classes; of several models the line names it."""
    try:
        match_classes(dataset, artifact.manifest.model, options)
    except DataError as error:
        if alone:
            raise
        raise DataError(f"{artifact.path.name}: {error}") from error


def _open(artifacts: Sequence[Artifact | Path | str]) -> tuple[Artifact, ...]:
    if not artifacts:
        raise UsageError("there is nothing to bench: name at least one checkpoint, ONNX model or engine")
    by_path: dict[Path, Artifact | Path | str] = {}
    for one in artifacts:
        by_path.setdefault(one.path if isinstance(one, Artifact) else Path(one), one)
    opened = tuple(open_artifact(one) for one in by_path.values())
    for artifact in opened:
        if isinstance(artifact, CalibrationTable):
            raise ArtifactError(
                f"{str(artifact.path)!r} is a calibration table, which does not run: name checkpoints, ONNX models and "
                "engines"
            )
    return opened


def _plan(request: BenchRequest, progress: Progress) -> tuple[list[Entry], BaselineChoice]:
    """Return what is measured in the order of the report, the baseline first."""
    opened, dataset, options = request.artifacts, request.dataset, request.options
    device: Device | None = options.device
    others = list_candidates(opened, options.runtimes, device, options.pinning, options.spinning)
    checkpoints = list_checkpoints(opened, others, device)
    reference = choose_baseline(Scene(opened, others, options.runtimes, device, dataset), request.baseline, progress)
    progress.note(f"baseline: {reference.accuracy_against}")
    first = {_identity(one): one for one in reference.candidates}
    rivals = list_rivals(reference.candidates, options.pytorch)
    rest = [one for one in (*rivals, *checkpoints, *others) if _identity(one) not in first]
    candidates = with_unique_names([*first.values(), *rest])
    entries = [
        Entry(one, is_baseline=index < len(first), model_number=number)
        for index, (one, number) in enumerate(zip(candidates, number_models(candidates), strict=True))
    ]
    for entry in entries:
        if device is not None and entry.candidate.device != device:
            entry.obstacle = f"it runs on device {entry.candidate.device!r}, and only {device!r} was asked for"
        else:
            entry.obstacle = entry.candidate.cannot_run()
    return entries, reference


def _refuse_absent_gpu(request: BenchRequest) -> None:
    """Raise where all that is asked for is on a GPU and there is none; engines alone are rows that say so.

    Raises:
        BackendError: There is no GPU here; the line says why.
    """
    options, reason = request.options, environment.reason_without_gpu()
    if not reason or options.device == "cpu":
        return
    others = list_candidates(request.artifacts, options.runtimes, options.device, options.pinning, options.spinning)
    on_gpu = [one.backend == "onnxruntime" and one.device == "cuda" for one in others]
    if options.device == "cuda" and all(
        gpu or one.cannot_run() is not None for gpu, one in zip(on_gpu, others, strict=True)
    ):
        raise BackendError(f"device 'cuda' was asked for, and {reason}")
    if others and all(on_gpu):
        raise BackendError(f"runtime {', '.join(map(repr, options.runtimes))} was asked for, and {reason}")


def _identity(candidate: Candidate) -> tuple[str, str, Device, str | None, bool | None, bool | None]:
    settings = candidate.pinning, candidate.spinning
    return (candidate.digest, candidate.backend, candidate.device, candidate.provider, *settings)


def _baseline_record(entries: Sequence[Entry], reference: BaselineChoice) -> Baseline:
    baselines = [entry for entry in entries if entry.is_baseline]
    first = baselines[0].candidate if baselines else None
    against = reference.accuracy_against
    if first is not None and all(entry.logits is None for entry in baselines):
        against = f"nothing, as the baseline {first.name} failed"
    timed = {entry.candidate.name: entry.against for entry in entries if entry.against is not None}
    to_baseline = any(entry.candidate.name in timed.values() for entry in baselines)
    timed_against = (
        "the baseline on the same device" if to_baseline else "the FP32 graph on the same runtime and device"
    )
    return Baseline(
        row=first.name if first is not None else None,
        accuracy_against=against,
        latency_against=timed_against if timed else None,
        latency_rows=timed,
        payload_sha256=first.digest if first is not None else None,
    )


def _conditions(
    dataset: Dataset,
    options: BenchOptions,
    load: OtherLoad,
    self_check: SelfCheck | None,
    idle_power_w: dict[Device, float],
) -> Conditions:
    turns = options.turns
    return Conditions(
        data=dataset.uri,
        data_sha256=dataset.digest,
        n_samples=len(dataset),
        chance=None if dataset.labels is None else max(Counter(dataset.labels).values()) / len(dataset),
        classes=class_counts(dataset),
        batches=options.batches,
        threads=options.threads,
        warmup=turns.warmup,
        rounds=turns.rounds,
        iterations=turns.iterations,
        block_s=turns.block_s,
        fill_s=turns.fill_s,
        accuracy_batch=options.accuracy_batch,
        other_load_cores=load.cores,
        tf32=options.tf32,
        seed=options.seed,
        self_check=self_check,
        governor=sensors.governor(),
        idle_power_w=idle_power_w,
    )
