"""What the TensorRT backends share: build, check, refuse, open."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from vitdeploy import __version__, environment
from vitdeploy.artifacts import Artifact, Engine, OnnxModel, write_engine
from vitdeploy.artifacts.lineage import find_parent
from vitdeploy.backends.cuda import cuda_problem
from vitdeploy.backends.tensorrt_builder import PlanRequest, build_plan
from vitdeploy.backends.tensorrt_caches import cache_path, read_cache, refuse_foreign, write_cache
from vitdeploy.backends.tensorrt_check import compare_golden, unchecked
from vitdeploy.backends.tensorrt_inspector import judge_precision, precision_by_layer, read_layers
from vitdeploy.backends.tensorrt_options import check_target
from vitdeploy.backends.tensorrt_refit import refit
from vitdeploy.backends.tensorrt_session import EngineRequest, EngineSession
from vitdeploy.backends.threads import refuse_thread_settings
from vitdeploy.errors import BackendError, BuildError
from vitdeploy.progress import SILENT, Progress
from vitdeploy.records import BuildInfo, Check, Examination, Manifest, stage_key
from vitdeploy.records.report import Device
from vitdeploy.sessions import BuildTarget, SessionOptions
from vitdeploy.text import one_line

BackendName = Literal["tensorrt", "tensorrt-rtx", "tensorrt-lean"]


class PlanBackend(ABC):
    """A library that runs plans. Nothing is switched process-wide: each instance holds its own module."""

    graph_devices: tuple[Device, ...] = ()
    name: BackendName
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
        if reason := environment.reason_without_gpu():
            return f"{reason}, and {self.name} engines run on nothing else"
        return self.wrong_cuda() or cuda_problem()

    def wrong_cuda(self) -> str | None:
        """Return why the installed library does not fit the driver's CUDA, with the command that changes it."""
        driver_cuda, library_cuda = environment.current().cuda, environment.cuda_of(self.name)
        if driver_cuda is None or library_cuda is None or int(driver_cuda.split(".")[0]) >= int(library_cuda):
            return None
        return (
            f"the installed {self.name} is for CUDA {library_cuda} and the driver serves CUDA {driver_cuda}: "
            f"{self.install} after 'pip uninstall {self.name}-cu{library_cuda}', or renew the driver"
        )

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

    def examine(self, engine: Engine, plan: bytes | None = None) -> Examination:
        """Run the engine's golden samples and read its inspector; where no device can, say why not.

        For an engine that was built elsewhere this is the first check it gets, so ``bench`` and ``verify`` call it.
        """
        manifest = engine.manifest
        reason = self.can_run() or self.difference(manifest)
        if reason is not None:
            return not_examined(reason)
        try:
            session = self.session(engine, SessionOptions(cuda_graph=False), plan)
        except BackendError as error:
            if plan is None or "memory" not in str(error).lower():
                raise
            return not_examined(str(error))
        with session:
            return self.examine_session(session, engine)

    def examine_session(self, session: EngineSession, engine: Engine) -> Examination:
        """Examine an engine that is open."""
        golden = compare_golden(session, engine)
        if golden.status == "failed" and golden.value is None and session.lost:
            return Examination(
                checks=(golden, unchecked("layer precision", "the GPU stopped working")), reason=golden.detail
            )
        try:
            layers = read_layers(session.inspector_json())
        except BackendError as error:
            return Examination(checks=(golden, unchecked("layer precision", str(error))), reason=str(error))
        check = judge_precision(layers, engine.manifest)
        if check.status == "failed" and not self.keeps_precision(engine.manifest):
            check = unchecked("layer precision", f"{self.name} documents INT8 as weight-only: {check.detail}")
        return Examination(checks=(golden, check), precision_by_layer=precision_by_layer(layers))

    def open(self, artifact: Artifact, options: SessionOptions = SessionOptions()) -> EngineSession:
        """Open an engine that this library can run, for a GPU like this one.

        Raises:
            BackendError: It is no engine, there is no GPU, or the engine was built elsewhere or by another version:
                found before the plan is deserialized.
        """
        if not isinstance(artifact, Engine):
            raise BackendError(
                f"{self.name} opens engines, {str(artifact.path)!r} is of kind {artifact.manifest.kind!r}: "
                f"build one with vd.build({str(artifact.path)!r}, {str(artifact.path.with_suffix('.engine'))!r})"
            )
        refuse_thread_settings(self.name, options)
        reason = self.mismatch(artifact) or self.can_run()
        if reason is not None:
            raise BackendError(reason)
        self.refuse_unfit(SILENT)
        session = self.session(artifact, options)
        if any(check.status == "unchecked" for check in artifact.manifest.checks):
            try:
                self.check_first_open(session, artifact)
            except BaseException:
                session.close()
                raise
        return session

    def check_first_open(self, session: EngineSession, engine: Engine) -> None:
        """Examine an engine that could not be examined when it was built; what was found is kept for the next open.

        Raises:
            BackendError: It computes something else than its graph.
        """
        machine, manifest = environment.current(), engine.manifest
        path = cache_path(
            "examined", self.name, self.version(), manifest.payload_sha256, machine.gpu, machine.driver, manifest.key
        )
        kept = read_cache(path, _silent)
        found = Examination.model_validate_json(kept) if kept else self.examine_session(session, engine)
        for check in found.checks:
            if check.status == "failed":
                raise BackendError(
                    f"{str(engine.path)!r} must not be used, its {check.name} check failed: {check.detail}"
                )
        session.examination = found
        if not kept:
            write_cache(path, found.model_dump_json().encode(), _silent)

    def session(self, engine: Engine, options: SessionOptions, plan: bytes | None = None) -> EngineSession:
        """Deserialize the plan and make a session of it."""
        if options.provider is not None:
            raise BackendError(f"{self.name} has no providers, got {options.provider!r}")
        if options.device == "cpu":
            raise BackendError(
                f"{self.name} runs on the GPU only, got device 'cpu': onnxruntime runs the graph on a CPU"
            )
        data = engine.plan() if plan is None else plan
        return EngineSession(self.request(engine, data, options), data, options)

    def request(self, engine: Engine, plan: bytes, options: SessionOptions) -> EngineRequest:
        """Return how a plan is deserialized and run."""
        trt = self.library()

        def deserialize(runtime: Any, data: bytes) -> Any:
            opened = self.deserialize(runtime, engine.manifest, data)
            stripped = engine.manifest.build is not None and engine.manifest.build.stripped
            if opened is not None and stripped:
                refit(self.name, trt, opened, weights_of(engine))
            return opened

        return EngineRequest(self.name, trt, engine.path, deserialize, lambda _, opened: self.make_context(opened))

    def deserialize(self, runtime: Any, manifest: Manifest, plan: bytes) -> Any:
        """Return the engine, None where the library refuses the plan.

        The core of a deep-learning accelerator is the runtime's to choose: an engine that was built for core 1 would
        else run on core 0.
        """
        loaded = self.runtime_for(runtime, manifest)
        core = manifest.options.get("dla_core")
        if isinstance(core, int):
            loaded.DLA_core = core
        return loaded.deserialize_cuda_engine(plan)

    def mismatch(self, engine: Engine) -> str | None:
        """Return why this engine cannot run here, by its manifest alone; None where it can."""
        missing = self.unavailable()
        if missing is not None:
            return missing
        difference = self.difference(engine.manifest)
        if difference is None:
            return None
        path = str(engine.path)
        return f"{path!r} {difference}: build it again here with vd.build('MODEL.onnx', {path!r})"

    def difference(self, manifest: Manifest) -> str | None:
        """Return how this machine differs from what an engine needs, after the engine's name; None if it does not."""
        built = manifest.build
        if built is None:
            return "does not say in its manifest how it was built"
        return self.version_mismatch(built) or self.gpu_mismatch(built)

    def keeps_precision(self, manifest: Manifest) -> bool:
        """Return whether the library computes in the precision that the graph asks for."""
        return True

    def runtime_for(self, runtime: Any, manifest: Manifest) -> Any:
        """Return the runtime that deserializes this plan."""
        return runtime

    def make_context(self, opened: Any) -> Any:
        """Return an execution context, None where memory is short."""
        return opened.create_execution_context()

    @abstractmethod
    def refuse_unfit(self, progress: Progress) -> None:
        """Refuse a release that is known to compute wrongly here, and note what else is known.

        Raises:
            BackendError: In one line, with the reason.
        """

    @abstractmethod
    def version_mismatch(self, built: BuildInfo) -> str | None:
        """Return why the installed library cannot run an engine of another backend or version."""

    @abstractmethod
    def gpu_mismatch(self, built: BuildInfo) -> str | None:
        """Return how this machine's GPU differs from what the engine was built for."""


class BuildingBackend(PlanBackend):
    """A library that builds plans too."""

    name: Literal["tensorrt", "tensorrt-rtx"]

    def build(self, model: OnnxModel, path: Path, target: BuildTarget, progress: Progress = SILENT) -> Engine:
        """Build an engine, check it where a device can run it, and write it; on failure nothing is written.

        Raises:
            BackendError: The library is absent, or known to be unfit for this machine.
            BuildError: The graph, the batch or a compute capability is refused, or the engine computes something else
                than its graph.
            UsageError: Options contradict themselves.
        """
        check_target(target)
        trt = self.library()
        self.refuse_unfit(progress)
        capabilities = self.capabilities(trt, target)

        def configure(builder: Any, config: Any) -> None:
            self.configure(trt, builder, config, target, capabilities)
            if target.dla_core is not None and model.manifest.precision == "fp32":
                raise BuildError(
                    f"a deep-learning accelerator (DLA) computes in FP16 and INT8, and {str(model.path)!r} is FP32, so "
                    "all of it would run on the GPU: take its FP16 or INT8 graph"
                )

        request = PlanRequest(
            self.name,
            trt,
            model.path,
            target,
            configure,
            self.timing_cache(target),
        )
        plan = build_plan(request, progress)
        notes = (*self.notes(model.manifest), *target_notes(target))
        for note in notes:
            progress.note(note)
        info = self.build_info(target, capabilities, notes)
        manifest = self.manifest(model, target, info)
        found = (
            self.examine(Engine(path, manifest), plan.data)
            if not target.strip
            else self.examine_stripped(model, Engine(path, manifest), plan.data)
        )
        refuse_failed(found.checks, path)
        info = info.model_copy(
            update={
                "inspected": found.precision_by_layer is not None,
                "precision_by_layer": found.precision_by_layer,
                "reason": found.reason,
            }
        )
        return write_engine(path, plan.data, manifest.model_copy(update={"build": info, "checks": found.checks}))

    def examine_stripped(self, model: OnnxModel, engine: Engine, plan: bytes) -> Examination:
        """Examine an engine whose weights are those of the model that is at hand, not of a file beside the engine."""
        reason = self.can_run()
        if reason is not None:
            return not_examined(reason)
        request = self.request(engine, plan, SessionOptions())

        def deserialize(runtime: Any, data: bytes) -> Any:
            opened = self.deserialize(runtime, engine.manifest, data)
            if opened is not None:
                refit(self.name, self.library(), opened, model.path)
            return opened

        with EngineSession(
            replace(request, deserialize=deserialize), plan, SessionOptions(cuda_graph=False)
        ) as session:
            return self.examine_session(session, engine)

    def build_info(self, target: BuildTarget, capabilities: tuple[str, ...], notes: tuple[str, ...]) -> BuildInfo:
        """Return what the manifest says of a build."""
        profiles = target.profiles
        hull = (min(one[0] for one in profiles), profiles[0][1], max(one[2] for one in profiles))
        return BuildInfo(
            backend=self.name,
            version=self.version(),
            batch=hull,
            profiles=profiles if len(profiles) > 1 else (),
            compute_capabilities=capabilities,
            gpu=environment.current().gpu if self.bound_to_gpu(target) else None,
            hardware_compatibility=target.hardware_compatibility,
            version_compatible=target.version_compatible,
            stripped=target.strip,
            notes=notes,
        )

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

    def timing_cache(self, target: BuildTarget) -> Path | None:
        """Return the file of kernel timings that a build reads and renews; None for none.

        Raises:
            UsageError: The file that is named is another program's, as trtexec's.
        """
        if target.timing_cache == "off":
            return None
        if isinstance(target.timing_cache, Path):
            refuse_foreign(target.timing_cache)
            return target.timing_cache
        machine = environment.current()
        return cache_path("timing", self.name, self.version(), machine.gpu, machine.compute_capability, machine.driver)

    def bound_to_gpu(self, target: BuildTarget) -> bool:
        """Return whether the plan runs on this model of GPU alone."""
        return False

    def notes(self, manifest: Manifest) -> tuple[str, ...]:
        """Return what the user should know about an engine of this graph."""
        return ()

    @abstractmethod
    def capabilities(self, trt: Any, target: BuildTarget) -> tuple[str, ...]:
        """Return the compute capabilities that the engine will run on."""

    @abstractmethod
    def configure(
        self, trt: Any, builder: Any, config: Any, target: BuildTarget, capabilities: tuple[str, ...]
    ) -> None:
        """Set what only this library has."""


def _silent(text: str) -> None:
    """A cache that cannot be used costs time alone."""


def not_examined(reason: str) -> Examination:
    """Return an examination that was not made, and why."""
    return Examination(checks=(unchecked("golden", reason), unchecked("layer precision", reason)), reason=reason)


def weights_of(engine: Engine) -> Path:
    """Return the ONNX model that a stripped engine takes its weights from: the one it was built from, beside it.

    Raises:
        BackendError: It is not there.
    """
    parent = find_parent(engine, "onnx")
    if not isinstance(parent, OnnxModel):
        wanted = engine.manifest.parents.get("onnx", "")
        raise BackendError(
            f"{str(engine.path)!r} carries no weights: put the ONNX model that it was built from (digest "
            f"{wanted[:12]}) beside it, or build it again, with its weights: vd.build('MODEL.onnx')"
        )
    return parent.path


def target_notes(target: BuildTarget) -> tuple[str, ...]:
    """Return what a receiver of such an engine should know."""
    found = []
    if target.profiling != "detailed":
        found.append(
            "built without profiling detail: its receiver learns less about the model, and precision by layer cannot "
            "be "
            "read back"
        )
    if target.strip:
        found.append("it carries no weights: the ONNX model has to lie beside it wherever it is opened")
    return tuple(found)


def build_options(backend: str, version: str, target: BuildTarget) -> dict[str, Any]:
    """Return what decides a build besides the graph, as the freshness key takes it.

    The version counts, because a plan of another version cannot be opened; so does the GPU that is here, where the
    engine is for it. Timing caches do not count: they make a build faster.
    """
    return {
        "backend": backend,
        "version": version,
        "profiles": [list(profile) for profile in target.profiles],
        "compute_capabilities": list(target.compute_capabilities),
        "here": None if target.compute_capabilities else environment.current().compute_capability,
        "workspace_bytes": target.workspace_bytes,
        "tf32": target.tf32,
        "optimization_level": target.optimization_level,
        "hardware_compatibility": target.hardware_compatibility,
        "version_compatible": target.version_compatible,
        "profiling": target.profiling,
        "refit": target.refit,
        "strip": target.strip,
        "dla_core": target.dla_core,
    }


def refuse_failed(checks: tuple[Check, ...], path: Path) -> None:
    """Raise where a check failed, so that a wrong engine is never written.

    Raises:
        BuildError: In one line, with the measured value and the limit.
    """
    for check in checks:
        if check.status == "failed":
            raise BuildError(f"{str(path)!r} was not written, its {check.name} check failed: {check.detail}")
