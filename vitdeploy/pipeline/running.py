"""The stages of a run, in order, and what makes each of them fresh."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from vitdeploy.artifacts import Artifact, Checkpoint, Engine, OnnxModel, open_artifact
from vitdeploy.datasets import open_dataset, splits_of
from vitdeploy.errors import ArtifactError, BackendError, RecipeError, TrainingError, VitdeployError
from vitdeploy.pipeline.folder import LOCK, Made, Memory, changes, locked
from vitdeploy.pipeline.recipe import BuildSection, QuantizeSection, Recipe, read_recipe
from vitdeploy.progress import SILENT, Progress
from vitdeploy.records import Report, Row, stage_key

Kind = TypeVar("Kind", bound=Artifact)
FOLDER = Path("vitdeploy-run")
MIB = 1 << 20


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


@dataclass(frozen=True)
class Step:
    """One stage, ready to be done.

    ``key`` is what its artifact's manifest has when it is fresh; None where that cannot be known before it is made.
    ``made`` is what it is told and given, ``otherwise`` what must have changed where neither of these did. ``beside``
    are files that have to be there too.
    """

    name: str
    output: Path
    key: str | None
    made: Made
    otherwise: str
    beside: tuple[Path, ...] = ()


def run(
    recipe: Recipe | Path | str | None = None, folder: Path | str = FOLDER, *, progress: Progress = SILENT
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
        VitdeployError: What the stages raise.
    """
    if not isinstance(recipe, Recipe):
        recipe = read_recipe(recipe)
    folder = Path(folder)
    is_new = not folder.exists()
    try:
        with locked(folder):
            run = _Run(recipe, folder, progress)
            run.refuse_early()
            return run.all()
    except VitdeployError:
        if is_new:
            _remove_unused(folder)
        raise


def _remove_unused(folder: Path) -> None:
    """Remove the folder of a run that wrote nothing but its lock."""
    if folder.is_dir() and [entry.name for entry in folder.iterdir()] == [LOCK]:
        (folder / LOCK).unlink()
        folder.rmdir()


class _Run:
    """One run: recipe, folder, memory, and what became of the stages so far."""

    def __init__(self, recipe: Recipe, folder: Path, progress: Progress) -> None:
        self.recipe = recipe
        self.folder = folder
        self.progress = progress
        self.memory = Memory(folder)
        self.outcomes: list[StageOutcome] = []
        self.not_built: list[Row] = []

    def refuse_early(self) -> None:
        """Open what later stages need, so that a wrong name costs no training."""
        from vitdeploy.quantization.request import open_calibration, open_plan
        from vitdeploy.stages.bench import open_test_data

        source = self.recipe.source
        if source is not None and Path(source).suffix == ".onnx":
            raise RecipeError(
                f"the recipe is not valid: source is the ONNX file {source!r}, and a run starts from weights: "
                f"'vitdeploy export {source} --preprocess … -o model.onnx' adopts it, then quantize, build and bench"
            )
        for section in self.recipe.quantize:
            open_plan(section.options.plan)
            open_calibration(section.calibration)
            if section.options.validation is not None:
                open_dataset(section.options.validation)
        if self.recipe.bench.data is not None:
            open_test_data(self.recipe.bench.data, self.recipe.bench.options)

    def all(self) -> RunResult:
        checkpoint = self.train() if self.recipe.source is None else None
        model = self.export(checkpoint)
        graphs = {section.name: self.quantize(model, section) for section in self.recipe.quantize}
        engines = self.build(model, graphs)
        others = [graphs[section.name] for section in self.recipe.quantize if section.target != "tensorrt"]
        artifacts = [*([checkpoint] if checkpoint else []), model, *others, *engines]
        report = self.bench(artifacts)
        return RunResult(self.folder, report, self.folder / "report.html", tuple(self.outcomes))

    def train(self) -> Checkpoint:
        from vitdeploy.stages.train import train, train_key

        recipe, section = self.recipe, self.recipe.train
        output = self.folder / "model.safetensors"
        asked: dict[str, Any] = {
            "model": section.model,
            "weights": section.weights,
            "arguments": section.arguments,
            "options": section.options,
        }
        told = {"data": recipe.data, **section.model_dump(mode="json")}
        key = train_key(recipe.data, **asked)
        step = Step("train", output, key, Made(options=told), "the data changed")

        def make() -> Checkpoint:
            self.need_torch("train")
            resume = self.can_resume(output, key)
            return train(recipe.data, output, **asked, resume=resume, progress=self.progress)

        return self.do(step, Checkpoint, make)

    def can_resume(self, output: Path, key: str) -> bool:
        """Return whether a killed training left a state from which this one can go on."""
        from vitdeploy.training.paths import state_path
        from vitdeploy.training.state import read_state

        path = state_path(output)
        if not path.exists():
            return False
        try:
            read_state(path, key)
        except TrainingError:
            return False
        self.progress.note("train: going on from where the last one stopped")
        return True

    def export(self, checkpoint: Checkpoint | None) -> OnnxModel:
        from vitdeploy.artifacts.reference import reference_path
        from vitdeploy.stages.export import ExportOptions, export, export_key

        section = self.recipe.export
        test = self.test_data()
        options = ExportOptions(
            opset=section.opset, reference=test if section.reference else None, golden=self.split("validation")
        )
        output = self.folder / "model.onnx"
        if checkpoint is not None:
            source: str = str(checkpoint.path)
            given, key = {"checkpoint": checkpoint.digest}, export_key(checkpoint.digest, options)
        else:
            source = self.recipe.source or ""
            given, key = {"source": self.source_digest(source)}, None
        told = {"source": self.recipe.source, **section.model_dump(mode="json")}
        beside = (reference_path(output),) if section.reference else ()
        step = Step("export", output, key, Made(options=told, parents=given), "the data changed", beside)

        def make() -> OnnxModel:
            self.need_torch("export")
            return export(source, output, options=options, progress=self.progress)

        return self.do(step, OnnxModel, make)

    def quantize(self, model: OnnxModel, section: QuantizeSection) -> OnnxModel:
        from dataclasses import replace

        from vitdeploy.stages.quantize import QuantizeRequest

        output = self.folder / f"model.{section.name}.onnx"
        options, calibration = section.options, section.calibration
        if section.precision in ("int8", "fp8") and calibration is None:
            calibration = self.split("train")
            options = replace(options, samples=min(section.samples, len(open_dataset(calibration))))
        request = QuantizeRequest.open(
            model,
            output,
            precision=section.precision,
            target=section.target,
            calibration=calibration,
            options=options,
        )
        told = {"data": self.recipe.data, **section.model_dump(mode="json")}
        step = Step(
            f"quantize {section.name}",
            output,
            request.key,
            Made(options=told, parents={"onnx": model.digest}),
            "the calibration data changed",
        )
        return self.do(step, OnnxModel, lambda: request.run(self.progress))

    def build(self, model: OnnxModel, graphs: dict[str, OnnxModel]) -> list[Engine]:
        section = self.recipe.build
        known = {"fp32": model, **graphs}
        wanted = [known[precision] for precision in section.precisions if precision in known]
        if not wanted:
            return []
        backend: str | None = section.backend
        if backend is None:
            from vitdeploy.stages.build import default_builder

            try:
                backend = default_builder()
            except BackendError as error:
                self.skip_build(wanted, str(error))
                return []
        return [self.engine(graph, section, backend) for graph in wanted]

    def engine(self, graph: OnnxModel, section: BuildSection, backend: str) -> Engine:
        from vitdeploy.sessions import BuildTarget
        from vitdeploy.stages.build import build, build_key

        target = BuildTarget(
            batch=section.batch,
            compute_capabilities=section.compute_capabilities,
            workspace_bytes=None if section.workspace_mib is None else section.workspace_mib * MIB,
            tf32=section.tf32,
        )
        precision = graph.manifest.precision
        output = self.folder / f"model.{precision}.engine"
        told = {**section.model_dump(mode="json", exclude={"precisions"}), "backend": backend}
        step = Step(
            f"build {precision}",
            output,
            build_key(graph.digest, backend, target),
            Made(options=told, parents={"onnx": graph.digest}),
            f"the version of {backend} or the GPU changed",
        )
        return self.do(
            step, Engine, lambda: build(graph, output, backend=backend, target=target, progress=self.progress)
        )

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
        from vitdeploy.report import read_report, write_report
        from vitdeploy.stages.bench import bench, bench_key

        section = self.recipe.bench
        data = section.data or self.test_data()
        paths = [artifact.path for artifact in artifacts]
        output = self.folder / "report.json"
        told = {"data": data, **section.options.identity(), "baseline": self.recipe.source}
        given = {artifact.path.name: artifact.digest for artifact in artifacts}
        key = stage_key(
            "report",
            {"not_built": [row.model_dump(mode="json") for row in self.not_built]},
            {"bench": bench_key(paths, data, baseline=self.recipe.source, options=section.options)},
        )
        name = "bench"
        reason = self._stale_report(Made(options=told, parents=given), key)
        if reason is None:
            self._fresh(name, output)
            return read_report(output)
        start = self._start(name, reason)
        report = bench(paths, data, baseline=self.recipe.source, options=section.options, progress=self.progress)
        report = report.model_copy(update={"key": key, "rows": (*report.rows, *self.not_built)})
        write_report(report, self.folder)
        self._done(name, reason, output, start, Made(options=told, parents=given))
        return report

    def _stale_report(self, made: Made, key: str) -> str | None:
        from vitdeploy.report import read_report

        files = [self.folder / f"report.{kind}" for kind in ("json", "md", "html")]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            return "not made yet" if self.memory.get("bench") is None else f"{missing[0]} is gone"
        try:
            report = read_report(files[0])
        except ArtifactError as error:
            return str(error)
        return (
            None
            if report.key == key
            else self._what_changed("bench", made, "the data, the machine or a runtime changed")
        )

    def do(self, step: Step, kind: type[Kind], make: Callable[[], Kind]) -> Kind:
        """Return the step's artifact: the one that is there where it is fresh, else a new one."""
        found, reason = self._look(step, kind)
        if found is not None:
            self._fresh(step.name, step.output)
            self.memory.put(step.name, step.made)
            return found
        start = self._start(step.name, reason)
        artifact = make()
        self._done(step.name, reason, step.output, start, step.made)
        return artifact

    def _look(self, step: Step, kind: type[Kind]) -> tuple[Kind | None, str]:
        """Return the fresh artifact of a step, or why there is none."""
        if not step.output.exists():
            return None, "not made yet" if self.memory.get(step.name) is None else f"{step.output.name} is gone"
        for file in step.beside:
            if not file.exists():
                return None, f"{file.name} is gone"
        try:
            artifact = open_artifact(step.output)
        except ArtifactError as error:
            return None, str(error)
        if not isinstance(artifact, kind):
            return None, f"{step.output.name} is a {artifact.manifest.kind}"
        if step.key is not None and artifact.manifest.key != step.key:
            if not artifact.manifest.key:
                return None, "it was interrupted"
            return None, self._what_changed(step.name, step.made, step.otherwise)
        if step.key is None and self.memory.get(step.name) != step.made:
            return None, self._what_changed(step.name, step.made, step.otherwise)
        return artifact, ""

    def _what_changed(self, name: str, made: Made, otherwise: str) -> str:
        before = self.memory.get(name)
        if before is None:
            return "what is there was made by something else"
        return "; ".join(changes(before, made)) or otherwise

    def _fresh(self, name: str, output: Path) -> None:
        self.outcomes.append(StageOutcome(name, "fresh", "", output))
        self.progress.note(f"{name}: fresh")

    def _start(self, name: str, reason: str) -> float:
        self.progress.note(f"{name}: {reason}, so it runs now")
        return time.monotonic()

    def _done(self, name: str, reason: str, output: Path, start: float, made: Made) -> None:
        seconds = time.monotonic() - start
        self.memory.put(name, made)
        self.outcomes.append(StageOutcome(name, "done", reason, output, seconds))
        self.progress.note(f"{name}: done in {seconds:.1f} s")

    def need_torch(self, stage: str) -> None:
        """Raise where torch is absent.

        Raises:
            BackendError: As said, with the command that adds it.
        """
        from vitdeploy.backends import get_backend

        missing = get_backend("pytorch").unavailable()
        if missing is not None:
            raise BackendError(f"the stage {stage!r} has to run, and it needs torch: {missing}")

    def split(self, name: str) -> str:
        """Return the run's data with a split."""
        return f"{self.recipe.data}:{name}"

    def test_data(self) -> str:
        """Return the data of the report: the test split, else validation where the source has splits and no test."""
        own = splits_of(self.recipe.data)
        return self.split("test" if not own or "test" in own else "validation")

    def source_digest(self, source: str) -> str:
        """Return what identifies a model that was not trained here: the content of its file, else its name."""
        from vitdeploy.training.start import source_digest

        return source_digest(source)
