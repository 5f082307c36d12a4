"""The measuring of a bench, entry by entry; a failure of one is kept as its reason, the others go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from vitdeploy import environment
from vitdeploy.artifacts import Engine, OnnxModel
from vitdeploy.artifacts.lineage import ancestors
from vitdeploy.backends.opening import census_of
from vitdeploy.benching import probe
from vitdeploy.benching.baseline import BaselineChoice
from vitdeploy.benching.candidates import Candidate
from vitdeploy.benching.labels import ClassKey, class_key, match_classes, predicts_a_class
from vitdeploy.benching.options import BenchOptions
from vitdeploy.datasets import Dataset
from vitdeploy.errors import VitdeployError
from vitdeploy.measure.accuracy import Accuracy, collect_logits, judge
from vitdeploy.measure.by_class import class_of_each
from vitdeploy.measure.process import ProcessCost, measure_in_child
from vitdeploy.measure.sensors import Reading
from vitdeploy.progress import Progress
from vitdeploy.records import BuildInfo, LayerProfile, OperatorCensus, Row, Timing
from vitdeploy.records.report import Sustained, ThreadTiming, Throughput, TimedScope
from vitdeploy.records.scenario import ScenarioResult
from vitdeploy.sessions import Feed, Session
from vitdeploy.text import one_line
from vitdeploy.wording import adoption

WITH_INTEGERS = ("int8", "mixed")


@dataclass
class Entry:
    """A candidate while it is measured."""

    candidate: Candidate
    is_baseline: bool
    model_number: int = 1
    obstacle: str | None = None
    session: Session | None = None
    provider: str | None = None
    failure: str | None = None
    accuracy: Accuracy = field(default_factory=Accuracy)
    logits: NDArray[np.float32] | None = None
    blocks: dict[tuple[int, TimedScope], list[NDArray[np.float64]]] = field(default_factory=dict)
    readings: dict[tuple[int, TimedScope], list[Reading]] = field(default_factory=dict)
    feeds: dict[int, Feed] = field(default_factory=dict)
    timings: list[Timing] = field(default_factory=list)
    by_threads: list[ThreadTiming] = field(default_factory=list)
    energy_mj_per_image: float | None = None
    sustained: Sustained | None = None
    layer_profile: LayerProfile | None = None
    throughput: list[Throughput] = field(default_factory=list)
    scenarios: list[ScenarioResult] = field(default_factory=list)
    against: str | None = None
    census: OperatorCensus | None = None
    cost: ProcessCost = field(default_factory=ProcessCost)
    notes: list[str] = field(default_factory=list)

    @property
    def build(self) -> BuildInfo | None:
        """How the engine was built; None for what is no engine."""
        return self.candidate.artifact.manifest.build if self.candidate.artifact is not None else None

    @property
    def alive(self) -> bool:
        """Return whether the session was opened and has not failed since."""
        return self.session is not None and self.failure is None

    def open(self, stack: ExitStack, options: BenchOptions) -> None:
        """Open the session, which the stack closes; a failure is kept as this row's."""
        if self.obstacle is not None:
            return
        if self.candidate.preprocess is None:
            artifact = self.candidate.artifact
            file = "MODEL.onnx" if artifact is None else artifact.path
            self.failure = f"its manifest has no preprocessing: {adoption(file)} adds it"
            return
        try:
            self.session = stack.enter_context(
                self.candidate.open(
                    threads=options.threads,
                    tf32=options.tf32,
                    cuda_graph=options.cuda_graph,
                    cpu_fallback=options.cpu_fallback,
                )
            )
            self.provider = self.session.provider
            if isinstance(self.candidate.artifact, OnnxModel) and self.candidate.precision in WITH_INTEGERS:
                self.census = census_of(self.candidate.artifact, self.candidate.backend, self.session)
        except Exception as error:  # any runtime's own exception type; the candidate fails, the bench goes on
            self.failure = _failure_text(error, "opening it failed")

    def row(self) -> Row:
        """Return what is known about it."""
        candidate, artifact, build = self.candidate, self.candidate.artifact, self.build
        layers = build.precision_by_layer if build is not None else None
        examined = self.session.examination if self.session is not None else None
        unchecked: tuple[str, ...] = ()
        if examined is not None:
            layers = layers or examined.precision_by_layer
            unchecked = tuple(f"{one.name}: {one.detail}" for one in examined.checks if one.status == "unchecked")
        if self.failure is not None:
            status, reason = "failed", self.failure
        elif self.obstacle is not None:
            status, reason = "built" if isinstance(artifact, Engine) else "skipped", self.obstacle
        else:
            status, reason = "ok", ""
        return Row.model_validate(
            {
                "name": candidate.name,
                "backend": candidate.backend,
                "provider": self.provider or candidate.provider,
                "device": candidate.device,
                "pinning": candidate.pinning,
                "spinning": candidate.spinning,
                "target": candidate.target,
                "precision": candidate.precision,
                "status": status,
                "reason": reason,
                **asdict(self.accuracy),
                "timings": tuple(self.timings),
                "by_threads": tuple(self.by_threads),
                "load_ms": self.cost.load_ms,
                "first_inference_ms": self.cost.first_inference_ms,
                "size_bytes": candidate.size_bytes(),
                "peak_memory_bytes": self.cost.peak_memory_bytes,
                "energy_mj_per_image": self.energy_mj_per_image,
                "sustained": self.sustained,
                "inspected": None if build is None else layers is not None,
                "precision_by_layer": layers,
                "census": self.census,
                "throughput": tuple(self.throughput),
                "scenarios": tuple(self.scenarios),
                "layer_profile": self.layer_profile,
                "error_profile": None if artifact is None else artifact.manifest.error_profile,
                "payload_sha256": candidate.digest,
                "model_number": self.model_number,
                "notes": (*candidate.notes(), *self.notes, *unchecked, *(self.session.notes if self.session else ())),
            }
        )


def measure_accuracy(
    entries: Sequence[Entry],
    reference: BaselineChoice,
    dataset: Dataset,
    labels: Mapping[ClassKey, NDArray[np.int64]],
    options: BenchOptions,
    progress: Progress,
) -> None:
    """Run all entries over the data, and judge their logits by the labels and by the baseline's logits.

    ``labels`` are what ``match_labels_of`` gives.
    """
    classes, compared = class_of_each(dataset), compared_model(entries, reference)
    for preprocess in dict.fromkeys(entry.candidate.preprocess for entry in entries if entry.alive):
        assert preprocess is not None
        group = {e.candidate.name: e for e in entries if e.alive and e.candidate.preprocess == preprocess}
        outputs = collect_logits(
            {name: entry.session for name, entry in group.items() if entry.session is not None},
            dataset,
            preprocess,
            batch=options.accuracy_batch,
            limits={name: entry.candidate.limits for name, entry in group.items()},
            progress=progress,
        )
        for name, entry in group.items():
            entry.logits = outputs.logits.get(name)
            entry.failure = outputs.failures.get(name, entry.failure)
    for entry in entries:
        if entry.logits is not None:
            against = reference_logits(entry, entries, reference)
            if against is not None and against.shape != entry.logits.shape:
                entry.notes.append(
                    f"it has {entry.logits.shape[1]} classes and the baseline {against.shape[1]}: not compared"
                )
                against = None
            model = entry.candidate.model
            entry.accuracy = judge(entry.logits, labels.get(class_key(model)), against, model, classes)
            if against is not None and entry.model_number != compared:
                entry.notes.append("another model than the baseline: only their top-1 is compared")
                entry.accuracy = replace(entry.accuracy, agreement=None, logits_sqnr_db=None, logits_identical=None)


def compared_model(entries: Sequence[Entry], reference: BaselineChoice) -> int:
    """Return the number of the model whose logits are the baseline's; of stored ones, that of their graph."""
    if reference.logits is None:
        return next((entry.model_number for entry in entries if entry.is_baseline), 1)
    from_it = (entry for entry in entries if entry.candidate.artifact is not None and _has_ancestor(entry, reference))
    return next((entry.model_number for entry in from_it), 1)


def _has_ancestor(entry: Entry, reference: BaselineChoice) -> bool:
    assert entry.candidate.artifact is not None
    return any(one.digest == reference.logits_of for one in ancestors([entry.candidate.artifact]))


def match_labels_of(
    entries: Sequence[Entry], dataset: Dataset, options: BenchOptions
) -> dict[ClassKey, NDArray[np.int64]]:
    """Return the dataset's labels as indices of each model's classes; empty for a dataset without labels."""
    if dataset.labels is None:
        return {}
    models = {class_key(entry.candidate.model): entry.candidate.model for entry in entries}
    return {key: match_classes(dataset, model, options) for key, model in models.items() if predicts_a_class(model)}


def reference_logits(entry: Entry, entries: Sequence[Entry], reference: BaselineChoice) -> NDArray[np.float32] | None:
    """Return the logits that an entry is compared with: stored ones, else the baseline's, on its device if possible."""
    if reference.logits is not None:
        return reference.logits
    measured = [one for one in entries if one.is_baseline and one.logits is not None]
    if entry.is_baseline or not measured:
        return None
    beside = [one for one in measured if one.candidate.device == entry.candidate.device]
    return (beside or measured)[0].logits


def measure_processes(entries: Sequence[Entry], options: BenchOptions, progress: Progress) -> None:
    """Take load time, first inference and peak memory of each entry in a process of its own."""
    alive = [entry for entry in entries if entry.alive]
    with progress.task("Load time and memory", total=len(alive)) as task:
        for entry in alive:
            task.describe(entry.candidate.name)
            batch = next((batch for batch, _ in entry.blocks), (entry.candidate.limits or (1, 1))[0])
            request = probe.request_of(entry.candidate, batch=batch, options=options)
            entry.cost = measure_in_child(probe.MODULE, request, timeout_s=options.timeout_s)
            if entry.candidate.device == "cuda" and environment.current().jetpack is not None:
                entry.notes.append(
                    "its peak memory is that of its process: on a Jetson, which has one memory for both, what the GPU "
                    "takes may not be in it"
                )
            if entry.cost.reason:
                entry.notes.append(f"load time and memory are unknown: {entry.cost.reason}")
            task.advance()


def _failure_text(error: Exception, activity: str) -> str:
    return (
        one_line(error)
        if isinstance(error, VitdeployError)
        else f"{activity}: {type(error).__name__}: {one_line(error)}"
    )
