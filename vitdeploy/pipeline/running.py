"""The stages of a run, in order, and what makes each of them fresh."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Literal, Protocol, TypeVar

from vitdeploy.artifacts import Artifact, Checkpoint, Engine, OnnxModel, read_checkpoint, read_engine, read_onnx
from vitdeploy.artifacts.files import FilesTogether
from vitdeploy.artifacts.locks import remove_left_lock
from vitdeploy.artifacts.outputs import refuse_unwritable_folder
from vitdeploy.artifacts.run_record import RUN, Provenance
from vitdeploy.backends.timing_place import TimingPlace
from vitdeploy.datasets import refuse_output_in_data
from vitdeploy.errors import ArtifactError, BackendError
from vitdeploy.pipeline.folder import Memory, changes, locked
from vitdeploy.pipeline.recipe import QuantizeSection, Recipe, read_recipe
from vitdeploy.pipeline.sources import RunSources
from vitdeploy.preprocess import preprocess_from
from vitdeploy.progress import SILENT, Progress
from vitdeploy.records import Report, Row
from vitdeploy.records.report import REPORT_FILES, SAMPLES
from vitdeploy.terminal_progress import AUTO, shown

if TYPE_CHECKING:
    from vitdeploy.stages.bench import BenchRequest

FOLDER = Path("vitdeploy-run")
PREDICTIONS = "predictions.parquet"
MIB = 1 << 20
FILES_CHANGED = "the data or a file that the recipe names changed"
Result = TypeVar("Result", Artifact, Checkpoint, OnnxModel, Engine, Report)
Result_co = TypeVar("Result_co", covariant=True)


@dataclass(frozen=True)
class StageOutcome:
    """What became of one stage; ``reason`` says why it ran, or why it was skipped."""

    stage: str
    status: Literal["fresh", "done", "skipped"]
    reason: str = ""
    path: Path | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class RunResult:
    """A finished run: the report, where its page is, and what became of each stage."""

    folder: Path
    report: Report
    page: Path
    stages: tuple[StageOutcome, ...]


class Request(Protocol[Result_co]):
    """A stage that is ready to run: its sources are open, and its key says what its result would be."""

    @property
    def key(self) -> str: ...
    def run(self, progress: Progress = SILENT) -> Result_co: ...


@dataclass(frozen=True)
class Step(Generic[Result]):
    """One stage of a run.

    ``read`` opens the output of an earlier run, whose key is compared with the request's. ``provenance`` is options and
    parents, which say in words what has changed; ``fallback_reason`` is what must have changed where neither of these
    did. ``beside`` are files that have to be there too.
    """

    name: str
    request: Request[Result]
    output: Path
    read: Callable[[Path], Result]
    provenance: Provenance
    fallback_reason: str
    beside: tuple[Path, ...] = ()
    needs_torch: bool = False


def run(
    recipe: Recipe | Path | str | None = None, folder: Path | str = FOLDER, *, progress: Progress | None = AUTO
) -> RunResult:
    """Carry out a recipe in ``folder``: train, export, quantize, build, bench, report.

    A stage whose artifact is whole and has the key that the recipe gives it now is skipped, and a note says so. Killed
    at any point and started again, it goes on: artifacts appear under their names only when they are complete, and a
    training goes on from its last saved state.

    Args:
        recipe: A recipe, the file of one, or None for the default.
        folder: Where everything is written; made where it is not there.
        progress: Shows bars, and a note per stage.
    Raises:
        RecipeError: The recipe is not valid.
        BackendError: A stage needs torch, or a backend that the recipe names, and it is not installed.
        GateError: A candidate lost more top-1 than the limits of ``bench`` allow; everything is written all the same.
        UsageError: ``folder`` lies inside the data.
        VitdeployError: What the stages raise.
    """
    if not isinstance(recipe, Recipe):
        recipe = read_recipe(recipe)
    result = carry_out(recipe, Path(folder), shown(progress))
    recipe.bench.hold(result.report)
    return result


def carry_out(recipe: Recipe, folder: Path, progress: Progress) -> RunResult:
    """Carry out a recipe as ``run`` does, and leave it to the caller to hold the report to the recipe's limit.

    Raises:
        VitdeployError: As ``run``, but no ``GateError`` of the report.
    """
    memory = Memory(folder)
    names = (*REPORT_FILES, RUN, *_outputs(recipe))
    refuse_unwritable_folder(folder, names, ours=memory.is_of_a_run)
    refuse_output_in_data(folder, *recipe.data_sources)
    with locked(folder):
        return _Run(recipe, folder, memory, progress).all()


def _outputs(recipe: Recipe) -> list[str]:
    """Return the names of the artifacts that a run of a recipe writes."""
    graphs = [f"model.{section.name}.onnx" for section in recipe.quantize]
    engines = [f"model.{precision}.engine" for precision in recipe.build.precisions]
    return ["model.safetensors", "model.onnx", *graphs, *engines]


class _Run:
    """One run: recipe, folder, memory, and what became of the stages so far."""

    def __init__(self, recipe: Recipe, folder: Path, memory: Memory, progress: Progress) -> None:
        self.recipe = recipe
        self.folder = folder
        self.memory = memory
        self.progress = progress
        self.sources = RunSources(recipe)
        self.outcomes: list[StageOutcome] = []
        self.not_built: list[Row] = []

    def all(self) -> RunResult:
        if self.recipe.bench.data is not None:
            _ = self.sources.bench  # what is not there is found before anything is trained
        if self.predictions is not None:
            from vitdeploy.benching.predictions import refuse_unwritable_predictions

            refuse_unwritable_predictions(self.predictions)
        for section in self.recipe.quantize:
            if section.options.time_on is not None:
                TimingPlace.parse(section.options.time_on).require()
        checkpoint = self.train() if self.sources.model is None else None
        model = self.export(checkpoint)
        graphs = {section.name: self.quantize(model, section) for section in self.recipe.quantize}
        engines = self.build(model, graphs)
        others = [graphs[section.name] for section in self.recipe.quantize if section.target != "tensorrt"]
        artifacts = [*([checkpoint] if checkpoint else []), model, *others, *engines]
        report = self.bench(artifacts)
        return RunResult(self.folder, report, self.folder / "report.html", tuple(self.outcomes))

    @property
    def predictions(self) -> Path | None:
        """The file of each row's prediction for each image, None where the recipe wants none."""
        return self.folder / PREDICTIONS if self.recipe.bench.predictions else None

    def train(self) -> Checkpoint:
        from vitdeploy.stages.train import TrainRequest

        section, output = self.recipe.train, self.folder / "model.safetensors"
        request = TrainRequest.open(
            self.sources.splits,
            output,
            model=section.model,
            weights=section.weights,
            random_weights=section.random_weights,
            arguments=section.arguments,
            options=section.complete,
            preprocess=None if section.preprocess is None else preprocess_from(section.preprocess),
            resume="auto",
        )
        provenance = Provenance(options={"data": self.recipe.data, **section.model_dump(mode="json")})
        step = Step("train", request, output, read_checkpoint, provenance, FILES_CHANGED, needs_torch=True)
        checkpoint = self.run_step(step, key_of)
        remove_left_lock(output)  # of a training that was killed when it was done, which is fresh now
        return checkpoint

    def export(self, checkpoint: Checkpoint | None) -> OnnxModel:
        from vitdeploy.artifacts.reference import reference_path
        from vitdeploy.stages.export import ExportOptions, ExportRequest

        section, output = self.recipe.export, self.folder / "model.onnx"
        source = checkpoint if checkpoint is not None else self.sources.model
        assert source is not None
        options = ExportOptions(
            opset=section.opset,
            reference=self.sources.test if section.reference else None,
            golden=self.sources.split("validation"),
        )
        request = ExportRequest.open(source, output, options=options)
        named = self.recipe.model_dump(mode="json", include={"source", "weights", "arguments", "preprocess", "labels"})
        provenance = Provenance(options={**named, **section.model_dump(mode="json")}, parents=request.parents)
        beside = (reference_path(output),) if section.reference else ()
        step = Step("export", request, output, read_onnx, provenance, FILES_CHANGED, beside, needs_torch=True)
        return self.run_step(step, key_of)

    def quantize(self, model: OnnxModel, section: QuantizeSection) -> OnnxModel:
        from vitdeploy.report.budget import render_front
        from vitdeploy.stages.quantize import QuantizeRequest

        output = self.folder / f"model.{section.name}.onnx"
        calibration, options = self.sources.quantization(section)
        request = QuantizeRequest.open(
            model,
            output,
            precision=section.precision,
            target=section.target,
            calibration=calibration,
            options=options,
        )
        request = replace(request, front_page=render_front)
        provenance = Provenance(
            options={"data": self.recipe.data, **section.model_dump(mode="json")}, parents={"onnx": model.digest}
        )
        step = Step(f"quantize {section.name}", request, output, read_onnx, provenance, "the calibration data changed")
        if section.options.max_drop is None:
            return self.run_step(step, key_of)
        return self.within_budget(step)

    def within_budget(self, step: Step[OnnxModel]) -> OnnxModel:
        """Return the result of a search; the page of one that is fresh is written again, by the newest rules."""
        from vitdeploy.quantization.budget_run import front_path
        from vitdeploy.report import write_front_page

        found = self.run_step(step, key_of)
        if front_path(step.output).is_file():
            write_front_page(front_path(step.output))
        return found

    def build(self, model: OnnxModel, graphs: dict[str, OnnxModel]) -> list[Engine]:
        from vitdeploy.backends.opening import default_builder

        section = self.recipe.build
        known = {"fp32": model, **graphs}
        wanted = [known[precision] for precision in section.precisions if precision in known]
        if not wanted:
            return []
        try:
            backend = section.backend or default_builder()
        except BackendError as error:
            self.skip_build(wanted, str(error))
            return []
        return [self.engine(graph, backend) for graph in wanted]

    def engine(self, graph: OnnxModel, backend: str) -> Engine:
        from vitdeploy.stages.build import BuildRequest

        section = self.recipe.build
        precision = graph.manifest.precision
        output = self.folder / f"model.{precision}.engine"
        request = BuildRequest.open(graph, output, backend=backend, target=section.target)
        options = {**section.model_dump(mode="json", exclude={"precisions"}), "backend": backend}
        provenance = Provenance(options=options, parents=request.parents)
        reason = f"the version of {backend} or the GPU changed"
        return self.run_step(Step(f"build {precision}", request, output, read_engine, provenance, reason), key_of)

    def skip_build(self, wanted: list[OnnxModel], reason: str) -> None:
        """Leave the engines out, with the reason in a note and in a row of the report for each."""
        for graph in wanted:
            precision = graph.manifest.precision
            self.outcomes.append(StageOutcome(f"build {precision}", "skipped", reason))
            self.progress.note(f"build {precision}: skipped, {reason}")
            self.not_built.append(
                Row(
                    name=f"model.{precision}.engine",
                    backend="tensorrt",
                    device="cuda",
                    target="tensorrt",
                    precision=precision,
                    status="skipped",
                    reason=reason,
                )
            )

    def bench(self, artifacts: list[Artifact]) -> Report:
        from vitdeploy.artifacts.pages import other_pages
        from vitdeploy.artifacts.report_json import pages_beside
        from vitdeploy.report import write_report
        from vitdeploy.stages.bench import BenchRequest

        options = self.recipe.bench.options
        request = BenchRequest.open(
            artifacts,
            self.sources.bench,
            baseline=self.sources.model,
            options=options,
            not_built=self.not_built,
            keep=self.folder,
            predictions=self.predictions,
        )
        provenance = Provenance(
            options={"data": self.sources.bench.uri, **options.identity(), "baseline": self.recipe.source},
            parents={artifact.path.name: artifact.digest for artifact in artifacts},
        )
        output = self.folder / "report.json"
        beside = (self.folder / SAMPLES, *(() if self.predictions is None else (self.predictions,)))
        reason = "the data, the machine, a runtime or the engines that could not be built changed"
        reporting = _Reporting(request, self.folder)
        step = Step("bench", reporting, output, _read_whole_report, provenance, reason, beside)
        report = self.run_step(step, lambda report: report.key)
        pages = pages_beside(output)
        if other_pages(output, pages) or not all(page.is_file() for page in pages):
            write_report(report, self.folder)  # a kill came between its files
        return report

    def run_step(self, step: Step[Result], key_of: Callable[[Result], str]) -> Result:
        """Return the result of a step: the one that is there where it is fresh, else a new one."""
        found, reason = self._look(step, key_of)
        if found is not None:
            self.outcomes.append(StageOutcome(step.name, "fresh", "", step.output))
            self.progress.note(f"{step.name}: fresh")
            self.memory.put(step.name, step.provenance)
            return found
        self.progress.note(f"{step.name}: {reason}, so it runs now")
        start = time.monotonic()
        if step.needs_torch:
            need_torch(step.name)
        result = step.request.run(self.progress)
        seconds = time.monotonic() - start
        self.memory.put(step.name, step.provenance)
        self.outcomes.append(StageOutcome(step.name, "done", reason, step.output, seconds))
        self.progress.note(f"{step.name}: done in {seconds:.1f} s")
        return result

    def _look(self, step: Step[Result], key_of: Callable[[Result], str]) -> tuple[Result | None, str]:
        """Return the fresh result of a step, or why there is none."""
        before = self.memory.get(step.name)
        for file in (step.output, *step.beside):
            if not file.is_file():
                return None, "not made yet" if before is None else f"{file.name} is gone"
        try:
            result = step.read(step.output)
        except ArtifactError as error:
            return None, str(error)
        key = key_of(result)
        if key == step.request.key:
            return result, ""
        if not key:
            return None, "it was interrupted"
        if before is None:
            return None, "what is there was made by something else"
        return None, "; ".join(changes(before, step.provenance)) or step.fallback_reason


@dataclass(frozen=True)
class _Reporting:
    """A bench whose report takes its place in a folder with all else that the bench writes there."""

    request: BenchRequest
    folder: Path

    @property
    def key(self) -> str:
        return self.request.key

    def run(self, progress: Progress = SILENT) -> Report:
        from vitdeploy.report import write_report

        with FilesTogether() as files:
            report = self.request.run(progress, files)
            write_report(report, self.folder, files=files)
        return report


def _read_whole_report(path: Path) -> Report:
    """Return a report that the files beside it belong to.

    Raises:
        ArtifactError: It cannot be read, or one of them is of another bench.
    """
    from vitdeploy.artifacts.pages import other_files
    from vitdeploy.artifacts.report_json import read_report_alone

    report = read_report_alone(path)
    if others := other_files(path, report.files):
        raise ArtifactError(f"{others[0].name} is of another bench")
    return report


def key_of(artifact: Artifact) -> str:
    """Return the freshness key with which an artifact was made."""
    return artifact.manifest.key


def need_torch(stage: str) -> None:
    """Raise where torch is absent.

    Raises:
        BackendError: It is; the line has the command that adds it.
    """
    from vitdeploy.backends import get_backend

    missing = get_backend("pytorch").unavailable()
    if missing is not None:
        raise BackendError(f"the stage {stage!r} has to run, and it needs torch: {missing}")
