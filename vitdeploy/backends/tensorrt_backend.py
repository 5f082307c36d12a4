"""What the ``tensorrt`` and ``tensorrt-rtx`` backends share: build, check, refuse, open."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vitdeploy import __version__, environment
from vitdeploy.artifacts import Artifact, Engine, OnnxModel, write_engine
from vitdeploy.backends.cuda import cuda_missing
from vitdeploy.backends.tensorrt_builder import BuildRequest, build_plan
from vitdeploy.backends.tensorrt_check import compare_golden, unchecked
from vitdeploy.backends.tensorrt_inspector import missing_precision, precision_by_layer
from vitdeploy.backends.tensorrt_session import EngineRequest, EngineSession
from vitdeploy.errors import BackendError, BuildError
from vitdeploy.progress import SILENT, Progress
from vitdeploy.records import BuildInfo, Check, Manifest, stage_key
from vitdeploy.records.report import Device
from vitdeploy.sessions import BuildTarget, SessionOptions, batch_range
from vitdeploy.text import one_line


@dataclass(frozen=True)
class Examination:
    """What a device told about an engine: its checks, its layers by precision, or the reason why neither is known."""

    checks: tuple[Check, ...]
    precision_by_layer: dict[str, int] | None = None
    reason: str = ""


class PlanBackend(ABC):
    """One of the two TensorRT libraries. Nothing is switched process-wide: each instance holds its own module."""

    graph_devices: tuple[Device, ...] = ()
    name: Literal["tensorrt", "tensorrt-rtx"]
    module: str
    install: str

    def unavailable(self) -> str | None:
        try:
            self.library()
        except BackendError as error:
            return str(error)
        return None

    def can_run(self) -> str | None:
        missing = self.unavailable()
        if missing is not None:
            return missing
        if environment.current().gpu is None:
            return f"there is no NVIDIA GPU here, and {self.name} engines run on nothing else"
        return cuda_missing()

    def version(self) -> str:
        return str(self.library().__version__)

    def library(self) -> Any:
        """Return the library's module.

        Raises:
            BackendError: It is not installed, or cannot be loaded; the line has the command that adds it.
        """
        try:
            return importlib.import_module(self.module)
        except ModuleNotFoundError as error:
            raise BackendError(f"{self.name} is not installed: {self.install}") from error
        except (ImportError, OSError, RuntimeError) as error:  # a shared library that is absent or of another CUDA
            raise BackendError(f"{self.name} cannot be loaded ({one_line(error, 200)}): {self.install}") from error

    def build(self, model: OnnxModel, path: Path, target: BuildTarget, progress: Progress = SILENT) -> Engine:
        """Build an engine, check it where a device can run it, and write it; on failure nothing is written.

        Raises:
            BackendError: The library is absent, or known to be unfit for this machine.
            BuildError: The graph, the batch or a compute capability is refused, or the engine computes something else
                than its graph.
        """
        trt = self.library()
        self.refuse_unfit(progress)
        batch_range(target.batch)  # refuses one that is none
        capabilities = self.capabilities(trt, target)
        request = BuildRequest(
            self.name, trt, model.path, target, lambda config: self.configure(trt, config, target, capabilities)
        )
        plan = build_plan(request, progress)
        notes = self.notes(model.manifest, capabilities)
        for note in notes:
            progress.note(note)
        machine = environment.current()
        info = BuildInfo(
            backend=self.name,
            version=str(trt.__version__),
            batch=target.batch,
            compute_capabilities=capabilities,
            gpu=machine.gpu if self.bound_to_gpu(target.options) else None,
            notes=notes,
        )
        manifest = self.manifest(model, target, info)
        found = self.examine(Engine(path, manifest), plan)
        refuse_failed(found.checks, path)
        inspected = found.precision_by_layer is not None
        info = info.model_copy(
            update={
                "inspected": inspected,
                "precision_by_layer": found.precision_by_layer,
                "reason": found.reason,
            }
        )
        return write_engine(path, plan, manifest.model_copy(update={"build": info, "checks": found.checks}))

    def manifest(self, model: OnnxModel, target: BuildTarget, info: BuildInfo) -> Manifest:
        """Return the engine's manifest: the graph's, with what the build adds."""
        options = build_options(self.name, info.version, target)
        parents = {"onnx": model.digest}
        return model.manifest.model_copy(
            update={
                "kind": "engine",
                "key": stage_key("build", options, parents),
                "build": info,
                "checks": (),
                "metrics": {},
                "parents": parents,
                "options": options,
                "producer": f"vitdeploy {__version__}",
                "versions": environment.versions(),
                "environment": environment.current(),
                "golden_sha256": None,
                "golden": model.golden.to_text() if model.golden is not None else None,
            }
        )

    def examine(self, engine: Engine, plan: bytes | None = None) -> Examination:
        """Run the engine's golden samples and read its inspector; where no device can, say why not.

        For an engine that was built elsewhere this is the first check it gets, so ``bench`` and ``verify`` call it.
        """
        manifest = engine.manifest
        reason = self.can_run() or self.difference(manifest)
        if reason is not None:
            return Examination((unchecked("golden", reason), unchecked("layer precision", reason)), None, reason)
        with self.session(engine, SessionOptions(), plan) as session:
            golden = compare_golden(session, engine)
            layers = precision_by_layer(session.inspector_json())
        missing = missing_precision(layers, manifest.precision) if self.keeps_precision(manifest) else None
        if missing is not None:
            layer_check = Check(name="layer precision", status="failed", detail=missing)
        elif "opaque" in layers or "unknown" in layers:
            layer_check = unchecked("layer precision", "the engine hides the kernels of some layers")
        else:
            layer_check = Check(name="layer precision", status="passed")
        return Examination((golden, layer_check), layers)

    def open(self, artifact: Artifact, options: SessionOptions = SessionOptions()) -> EngineSession:
        """Open an engine that was built by this library in this version for a GPU like this one.

        Raises:
            BackendError: It is no engine, there is no GPU, or the engine was built elsewhere or by another version:
                found before the plan is deserialized.
        """
        if not isinstance(artifact, Engine):
            raise BackendError(
                f"{self.name} opens engines, {str(artifact.path)!r} is of kind {artifact.manifest.kind!r}: "
                f"build one with 'vitdeploy build {artifact.path} -o {artifact.path.with_suffix('.engine')}'"
            )
        for reason in (self.mismatch(artifact), self.can_run()):
            if reason is not None:
                raise BackendError(reason)
        self.refuse_unfit(SILENT)
        return self.session(artifact, options)

    def session(self, engine: Engine, options: SessionOptions, plan: bytes | None = None) -> EngineSession:
        """Deserialize the plan and make a session of it."""
        if options.provider is not None:
            raise BackendError(f"{self.name} has no providers, got {options.provider!r}")
        if options.device == "cpu":
            raise BackendError(
                f"{self.name} runs on the GPU only, got device 'cpu': onnxruntime runs the graph on a CPU"
            )
        data = engine.plan() if plan is None else plan
        return EngineSession(EngineRequest(self.name, self.library(), engine.path, self.make_context), data, options)

    def mismatch(self, engine: Engine) -> str | None:
        """Return why this engine cannot run here, by its manifest alone; None where it can."""
        missing = self.unavailable()
        if missing is not None:
            return missing
        difference = self.difference(engine.manifest)
        if difference is None:
            return None
        path = str(engine.path)
        return f"{path!r} {difference}: build it again here with 'vitdeploy build MODEL.onnx -o {path}'"

    def difference(self, manifest: Manifest) -> str | None:
        """Return how this machine differs from what an engine needs, after the engine's name; None if it does not."""
        built, options = manifest.build, manifest.options.get("options", {})
        if built is None:
            return "does not say in its manifest how it was built"
        if built.backend != self.name:
            return f"was built by {built.backend}, asked was {self.name}"
        if built.version != self.version() and options.get("version_compatible") != "true":
            return f"was built by {self.name} {built.version}, installed is {self.version()}"
        return self.gpu_mismatch(built, options)

    @abstractmethod
    def refuse_unfit(self, progress: Progress) -> None:
        """Refuse a release that is known to compute wrongly here, and note what else is known.

        Raises:
            BackendError: As said.
        """

    def bound_to_gpu(self, options: Mapping[str, str]) -> bool:
        """Return whether the plan runs on this model of GPU alone."""
        return False

    def keeps_precision(self, manifest: Manifest) -> bool:
        """Return whether the library computes in the precision that the graph asks for."""
        return True

    def notes(self, manifest: Manifest, capabilities: tuple[str, ...]) -> tuple[str, ...]:
        """Return what the user should know about an engine of this graph."""
        return ()

    @abstractmethod
    def capabilities(self, trt: Any, target: BuildTarget) -> tuple[str, ...]:
        """Return the compute capabilities that the engine will run on."""

    @abstractmethod
    def configure(self, trt: Any, config: Any, target: BuildTarget, capabilities: tuple[str, ...]) -> None:
        """Set what only this library has."""

    @abstractmethod
    def gpu_mismatch(self, built: BuildInfo, options: Mapping[str, str]) -> str | None:
        """Return how this machine's GPU differs from what the engine was built for."""

    @abstractmethod
    def make_context(self, trt: Any, engine: Any) -> Any:
        """Return an execution context, None where memory is short."""


def build_options(backend: str, version: str, target: BuildTarget) -> dict[str, Any]:
    """Return what decides a build besides the graph, as the freshness key takes it.

    The version counts, because a plan of another version cannot be opened; so does the GPU that is here, where the
    engine is for it.
    """
    return {
        "backend": backend,
        "version": version,
        "batch": list(target.batch),
        "compute_capabilities": list(target.compute_capabilities),
        "here": None if target.compute_capabilities else environment.current().compute_capability,
        "workspace_bytes": target.workspace_bytes,
        "tf32": target.tf32,
        "options": dict(sorted(target.options.items())),
    }


def refuse_failed(checks: tuple[Check, ...], path: Path) -> None:
    """Raise where a check failed, so that a wrong engine is never written.

    Raises:
        BuildError: As said; the line has the measured value and the limit.
    """
    for check in checks:
        if check.status == "failed":
            raise BuildError(f"{str(path)!r} was not written, its {check.name} check failed: {check.detail}")
