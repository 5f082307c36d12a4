"""``build``: from an ONNX model to an engine, with the backend that this machine has."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from vitdeploy import environment
from vitdeploy.artifacts import Artifact, Engine, OnnxModel, open_onnx, sidecar_of
from vitdeploy.artifacts.naming import output_beside
from vitdeploy.artifacts.outputs import refuse_unwritable
from vitdeploy.backends import get_backend
from vitdeploy.backends.opening import default_builder
from vitdeploy.backends.tensorrt_backend import build_options
from vitdeploy.backends.tensorrt_options import equivalent_command
from vitdeploy.errors import BackendError, BuildError, UsageError
from vitdeploy.progress import SILENT, Progress
from vitdeploy.records import stage_key
from vitdeploy.sessions import BuildTarget
from vitdeploy.terminal_progress import AUTO, shown

BUILDERS = ("tensorrt", "tensorrt-rtx")


def build(
    model: Artifact | Path | str,
    output: Path | str | None = None,
    *,
    backend: str | None = None,
    target: BuildTarget = BuildTarget(),
    progress: Progress | None = AUTO,
) -> Engine:
    """Build an engine from an FP32, FP16, INT8 or FP8 graph and write it with its manifest beside it.

    Precision is in the graph; nothing here can change it. Where a GPU is at hand the engine runs its golden samples and
    is inspected before it is written; else both are recorded as unchecked, with the reason. A failed build writes
    nothing.

    Args:
        model: An artifact, or the file of one.
        output: The engine's file, ``NAME.engine`` beside the model where it is None; its manifest is ``<output>.json``.
        backend: ``tensorrt`` or ``tensorrt-rtx``; None takes ``tensorrt`` where it is installed and a GPU is there,
            else ``tensorrt-rtx``, and notes which.
        target: Profiles, compute capabilities, workspace, and the builder's other options.
        progress: Shows the builder's phases.
    Raises:
        ArtifactError: ``model`` is missing, damaged or without a manifest, or ``output`` cannot be written.
        BackendError: The library is absent (the line has the pip command) or unfit for this machine.
        BuildError: Graph, batch or compute capability is refused; the line names node and operator.
        UsageError: The batch range or the backend's name makes no sense.
    """
    return BuildRequest.open(model, output, backend=backend, target=target).run(shown(progress))


@dataclass(frozen=True)
class BuildRequest:
    """A build that is ready to run: the graph open, the backend chosen; no TensorRT library is loaded yet.

    ``is_default`` says that the backend was chosen here, which is then noted.
    """

    model: OnnxModel
    output: Path
    backend: str
    target: BuildTarget
    is_default: bool = False

    @classmethod
    def open(
        cls,
        model: Artifact | Path | str,
        output: Path | str | None = None,
        *,
        backend: str | None = None,
        target: BuildTarget = BuildTarget(),
    ) -> BuildRequest:
        """Open the graph and choose the backend.

        Raises:
            VitdeployError: As ``build``, where the graph or the backend's name is unfit or the output cannot be
                written.
        """
        graph = open_onnx(model)
        output = Path(output) if output is not None else output_beside(graph.path, ".engine")
        refuse_unwritable(output, "an engine file", inputs=(graph,), beside=(sidecar_of(output),))
        if backend is None:
            return cls(graph, output, default_builder(), target, is_default=True)
        if backend not in BUILDERS:
            raise UsageError(f"backend {backend!r} builds no engine, expected one of {', '.join(BUILDERS)}")
        return cls(graph, output, backend, target)

    @property
    def parents(self) -> dict[str, str]:
        """Role → digest of the graph."""
        return {"onnx": self.model.digest}

    @property
    def key(self) -> str:
        """The freshness key of the result; no TensorRT library is loaded for it.

        Raises:
            BackendError: The library is not installed.
        """
        version = environment.versions().get(self.backend) or get_backend(self.backend).version()
        return stage_key("build", build_options(self.backend, version, self.target), self.parents)

    def run(self, progress: Progress = SILENT) -> Engine:
        """Build the engine, check it as far as this machine can, and write it.

        Raises:
            VitdeployError: As ``build``.
        """
        refuse_unsigned(self.model)
        if self.is_default:
            note_default(self.backend, progress)
        elif (missing := get_backend(self.backend).unavailable()) is not None:
            raise BackendError(missing)
        note_target(self.model, progress)
        engine = get_backend(self.backend).build(self.model, self.output, self.target, progress)
        if engine.manifest.build is not None and engine.manifest.build.reason:
            progress.note(f"{self.output.name} was not run here: {engine.manifest.build.reason}")
        return engine

    def equivalent_command(self, engine: Engine) -> str:
        """Return the command of NVIDIA's own tool that builds the same engine: trtexec, or tensorrt_rtx."""
        import onnx

        build = engine.manifest.build
        assert build is not None
        graph = onnx.load(self.model.path, load_external_data=False).graph
        inputs = {
            value.name: [size.dim_value or -1 for size in value.type.tensor_type.shape.dim] for value in graph.input
        }
        target = replace(self.target, compute_capabilities=build.compute_capabilities)
        return equivalent_command(self.backend, build.version, (self.model.path, self.output), inputs, target)


def note_default(name: str, progress: Progress) -> None:
    """Say which backend was chosen, and why."""
    if name == "tensorrt":
        reason = f"a GPU is here and tensorrt is {environment.versions().get('tensorrt')}"
    elif "tensorrt" in environment.versions():
        reason = "tensorrt is installed, but needs a GPU to build on"
    else:
        reason = "tensorrt is not installed"
    progress.note(f"building with {name} ({reason}); backend= chooses another")


def refuse_unsigned(model: OnnxModel) -> None:
    """Refuse a graph whose activations are unsigned, as INT8 graphs for a CPU are; TensorRT's are signed around 0.

    Raises:
        BuildError: It is such a graph.
    """
    target = model.manifest.target
    if target in (None, "tensorrt"):
        return
    from vitdeploy.graph.precisions import has_unsigned_activations

    if has_unsigned_activations(model.load()):
        raise BuildError(
            f"{str(model.path)!r} was quantized for {target}, with unsigned activations that TensorRT does not take: "
            "quantize its FP32 graph again with vd.quantize(..., target='tensorrt')"
        )


def note_target(model: OnnxModel, progress: Progress) -> None:
    """Say so where the graph was quantized for another runtime, whose high-precision remainder is slow in an engine."""
    target = model.manifest.target
    if target is not None and target != "tensorrt":
        progress.note(
            f"{model.path.name} was quantized for {target}, whose remainder is FP32: "
            "vd.quantize(..., target='tensorrt') keeps it in FP16, which is faster in an engine"
        )
