"""Bench: accuracy, fidelity, latency and cost of artifacts, side by side, against a baseline on the same device."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path

from vitdeploy import __version__, environment
from vitdeploy.artifacts import Artifact, CalibrationTable, open_artifact
from vitdeploy.benching.baseline import BaselineChoice, Scene, choose_baseline
from vitdeploy.benching.candidates import Candidate, list_candidates, list_checkpoints, with_unique_names
from vitdeploy.benching.measuring import Entry, measure_accuracy, measure_latency, measure_processes
from vitdeploy.benching.options import BenchOptions
from vitdeploy.datasets import Dataset, match_labels, open_dataset, splits_of
from vitdeploy.datasets.uri import parse_uri
from vitdeploy.errors import ArtifactError, UsageError
from vitdeploy.measure.load import OtherLoad, watch_other_load
from vitdeploy.measure.verdict import give_verdict
from vitdeploy.progress import SILENT, Progress
from vitdeploy.reading import sha256_of_file
from vitdeploy.records import Baseline, Conditions, Report, stage_key
from vitdeploy.records.report import Device

__all__ = ["BenchOptions", "bench", "bench_key", "open_test_data"]

TIMED_LIBRARIES = ("torch", "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx")


def bench(
    artifacts: Sequence[Path | str],
    data: str,
    *,
    baseline: str | None = None,
    options: BenchOptions = BenchOptions(),
    progress: Progress = SILENT,
) -> Report:
    """Measure artifacts on ``data`` and return the report; one that fails gives a row that says why.

    Args:
        artifacts: Checkpoints, ONNX models and engines that vitdeploy wrote.
        data: What ``open_dataset`` opens; of data with splits the test split, else validation, unless one is named.
        baseline: A SOURCE; None for the best there is (see ``choose_baseline``).
        options: What is measured, and how.
        progress: Where to show that it goes on.
    Raises:
        UsageError: There are no artifacts, or options contradict each other.
        ArtifactError: A file is missing, of another kind, or damaged.
        DataError: The data cannot be read, or its labels do not fit a model.
    """
    opened = _open(artifacts)
    dataset = open_test_data(data, options)
    _refuse_unfit_labels(opened, dataset, options)
    entries, reference = _plan(opened, dataset, baseline, options, progress)
    with ExitStack() as stack:
        for entry in entries:
            entry.open(stack, options)
        measure_accuracy(entries, reference, dataset, options, progress)
        with watch_other_load() as load:
            for batch in options.batches:
                measure_latency(entries, batch, options, progress)
    if options.processes:
        measure_processes(entries, options, progress)
    rows = tuple(entry.row() for entry in entries)
    record = _baseline_record(entries, reference)
    conditions = _conditions(dataset, options, load)
    return Report(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        producer=f"vitdeploy {__version__}",
        key=_key(opened, dataset, baseline, options),
        model=opened[0].manifest.model.name,
        environment=environment.current(),
        versions=environment.versions(),
        baseline=record,
        conditions=conditions,
        rows=rows,
        verdict=give_verdict(rows, record, conditions),
    )


def bench_key(
    artifacts: Sequence[Path | str], data: str, *, baseline: str | None = None, options: BenchOptions = BenchOptions()
) -> str:
    """Return the key that the report of these would have now, without measuring: equal keys, nothing to do.

    It covers the artifacts' payloads, the data, the options, the machine and the versions of the runtimes.
    """
    return _key(_open(artifacts), open_test_data(data, options), baseline, options)


def open_test_data(data: str, options: BenchOptions) -> Dataset:
    """Open what accuracy is measured on: of data with splits the test split, else validation; else all of it."""
    splits = splits_of(data)
    split = None
    if parse_uri(data).split is None:
        split = next((name for name in ("test", "validation") if name in splits), None)
    return open_dataset(data, split=split, samples=options.samples, seed=options.seed)


def _refuse_unfit_labels(opened: Sequence[Artifact], dataset: Dataset, options: BenchOptions) -> None:
    """Match labels with classes once before anything is loaded, so that a misfit costs no time."""
    if dataset.labels is not None:
        for classes in dict.fromkeys(artifact.manifest.model.classes for artifact in opened):
            match_labels(dataset, classes, label_map=options.label_map, by_order=options.labels_by_order)


def _open(artifacts: Sequence[Path | str]) -> list[Artifact]:
    if not artifacts:
        raise UsageError("there is nothing to bench: name at least one checkpoint, ONNX model or engine")
    paths = dict.fromkeys(Path(path) for path in artifacts)
    opened = [open_artifact(path) for path in paths]
    for artifact in opened:
        if isinstance(artifact, CalibrationTable):
            raise ArtifactError(
                f"{str(artifact.path)!r} is a calibration table, which does not run: name checkpoints, ONNX models and "
                "engines"
            )
    return opened


def _plan(
    opened: Sequence[Artifact], dataset: Dataset, baseline: str | None, options: BenchOptions, progress: Progress
) -> tuple[list[Entry], BaselineChoice]:
    """Return what is measured in the order of the report, the baseline first."""
    device: Device | None = options.device
    others = list_candidates(opened, options.runtimes, device)
    checkpoints = list_checkpoints(opened, others, device)
    reference = choose_baseline(Scene(opened, others, options.runtimes, device, dataset), baseline, progress)
    progress.note(f"baseline: {reference.accuracy_against}")
    first = {_identity(one): one for one in reference.candidates}
    rest = [one for one in (*checkpoints, *others) if _identity(one) not in first]
    entries = [
        Entry(one, is_baseline=index < len(first))
        for index, one in enumerate(with_unique_names([*first.values(), *rest]))
    ]
    _note_calibration_images(entries, dataset)
    for entry in entries:
        if device is not None and entry.candidate.device != device:
            entry.why_not = f"it runs on device {entry.candidate.device!r}, and only {device!r} was asked for"
        else:
            entry.why_not = entry.candidate.cannot_run()
    return entries, reference


def _note_calibration_images(entries: Sequence[Entry], dataset: Dataset) -> None:
    """Say of each artifact that was calibrated on the very data it is judged on: it then looks better than it is."""
    for entry in entries:
        artifact = entry.candidate.artifact
        calibration = artifact.manifest.calibration if artifact is not None else None
        if calibration is not None and calibration.set_sha256 == dataset.digest:
            entry.notes.append("its ranges were calibrated on the same images as it is judged on here")


def _identity(candidate: Candidate) -> tuple[str, str, Device, str | None]:
    return (candidate.digest, candidate.backend, candidate.device, candidate.provider)


def _baseline_record(entries: Sequence[Entry], reference: BaselineChoice) -> Baseline:
    baselines = [entry for entry in entries if entry.is_baseline]
    first = baselines[0].candidate if baselines else None
    against = reference.accuracy_against
    if first is not None and all(entry.logits is None for entry in baselines):
        against = f"nothing, as the baseline {first.name} failed"
    timed = {entry.candidate.name: entry.against for entry in entries if entry.against is not None}
    to_baseline = any(entry.candidate.name in timed.values() for entry in baselines)
    how = "the baseline on the same device" if to_baseline else "the FP32 graph on the same runtime and device"
    return Baseline(
        row=first.name if first is not None else None,
        accuracy_against=against,
        latency_against=how if timed else None,
        latency_rows=timed,
        payload_sha256=first.digest if first is not None else None,
    )


def _conditions(dataset: Dataset, options: BenchOptions, load: OtherLoad) -> Conditions:
    turns = options.turns
    return Conditions(
        data=dataset.uri,
        data_sha256=dataset.digest,
        n_samples=len(dataset),
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
    )


def _key(opened: Sequence[Artifact], dataset: Dataset, baseline: str | None, options: BenchOptions) -> str:
    machine = environment.current()
    versions = environment.versions()
    named = baseline
    if baseline is not None and Path(baseline).is_file():
        named = sha256_of_file(Path(baseline))
    identity = {
        **options.identity(),
        "data": dataset.digest,
        "baseline": named,
        "machine": [machine.cpu, machine.cores, machine.gpu, machine.driver],
        "versions": {name: versions[name] for name in TIMED_LIBRARIES if name in versions},
    }
    return stage_key("bench", identity, {str(index): artifact.digest for index, artifact in enumerate(opened)})
