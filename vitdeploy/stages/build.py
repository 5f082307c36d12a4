"""``build``: from an ONNX model to an engine, with the backend that this machine has."""

from __future__ import annotations

from pathlib import Path

from vitdeploy import environment
from vitdeploy.artifacts import Engine, OnnxModel, read_onnx
from vitdeploy.artifacts.files import refuse_unwritable
from vitdeploy.backends import get_backend
from vitdeploy.backends.tensorrt_backend import build_options
from vitdeploy.errors import BackendError, UsageError
from vitdeploy.progress import SILENT, Progress
from vitdeploy.records import stage_key
from vitdeploy.sessions import BuildTarget

BUILDERS = ("tensorrt", "tensorrt-rtx")


def build(
    model: OnnxModel | Path | str,
    output: Path | str,
    *,
    backend: str | None = None,
    target: BuildTarget = BuildTarget(),
    progress: Progress = SILENT,
) -> Engine:
    """Build an engine from an FP32, FP16, INT8 or FP8 graph and write it with its manifest beside it.

    Precision is in the graph; nothing here can change it. Where a GPU is at hand the engine runs its golden samples and
    is inspected before it is written; else both are recorded as unchecked, with the reason. A failed build writes
    nothing.

    Args:
        model: An artifact, or the file of one.
        output: The engine's file; its manifest is ``<output>.json``.
        backend: ``tensorrt`` or ``tensorrt-rtx``; None takes ``tensorrt`` where it is installed and a GPU is there,
            else ``tensorrt-rtx``, and notes which.
        target: Batch range, compute capabilities, workspace, TF32.
        progress: Shows the builder's phases.
    Raises:
        ArtifactError: ``model`` is missing, damaged or without a manifest, or ``output`` cannot be written.
        BackendError: The library is absent (the line has the pip command) or unfit for this machine.
        BuildError: Graph, batch or compute capability is refused; the line names node and operator.
        UsageError: The batch range or the backend's name makes no sense.
    """
    if not isinstance(model, OnnxModel):
        model = read_onnx(Path(model))
    output = Path(output)
    refuse_unwritable(output, "an engine file")
    name = choose_builder(backend, progress)
    note_target(model, progress)
    engine = get_backend(name).build(model, output, target, progress)
    if engine.manifest.build is not None and engine.manifest.build.reason:
        progress.note(f"{output.name} was not run here: {engine.manifest.build.reason}")
    return engine


def build_key(onnx_digest: str, backend: str | None = None, target: BuildTarget = BuildTarget()) -> str:
    """Return the freshness key that ``build`` would give an engine of this graph now; no TensorRT library is loaded.

    Raises:
        BackendError: No library that builds engines is installed.
    """
    name = backend if backend is not None else default_builder()
    version = environment.versions().get(name) or get_backend(name).version()
    return stage_key("build", build_options(name, version, target), {"onnx": onnx_digest})


def choose_builder(backend: str | None, progress: Progress = SILENT) -> str:
    """Return the name of the backend to build with; a choice that was made here is noted.

    Raises:
        UsageError: The backend builds no engines.
        BackendError: It is not installed; the line has the command that adds it.
    """
    if backend is None:
        name = default_builder()
        why = f"a GPU is here and tensorrt is {environment.versions().get('tensorrt')}" if name == "tensorrt" else ""
        progress.note(f"building with {name} ({why or rtx_reason()}); --backend chooses another")
        return name
    if backend not in BUILDERS:
        raise UsageError(f"backend {backend!r} builds no engine, expected one of {', '.join(BUILDERS)}")
    missing = get_backend(backend).unavailable()
    if missing is not None:
        raise BackendError(missing)
    return backend


def default_builder() -> str:
    """Return ``tensorrt`` where it is installed and has a GPU to build on, else ``tensorrt-rtx``.

    Raises:
        BackendError: Neither is installed.
    """
    installed = environment.versions()
    has_tensorrt = "tensorrt" in installed or get_backend("tensorrt").unavailable() is None
    if has_tensorrt and (environment.current().gpu is not None or "tensorrt-rtx" not in installed):
        return "tensorrt"
    if "tensorrt-rtx" in installed:
        return "tensorrt-rtx"
    raise BackendError(
        "no library that builds engines is installed: pip install 'vitdeploy[tensorrt]' on the machine with the GPU, "
        "or pip install 'vitdeploy[tensorrt-rtx]' on any x86-64 machine"
    )


def rtx_reason() -> str:
    """Return why ``tensorrt-rtx`` is the default here."""
    if "tensorrt" in environment.versions():
        return "tensorrt is installed, but needs a GPU to build on"
    return "tensorrt is not installed"


def note_target(model: OnnxModel, progress: Progress) -> None:
    """Say so where the graph was quantized for another runtime, whose high-precision remainder is slow in an engine."""
    target = model.manifest.target
    if target is not None and target != "tensorrt":
        progress.note(
            f"{model.path.name} was quantized for {target}, whose remainder is FP32: "
            f"'vitdeploy quantize --target tensorrt' keeps it in FP16, which is faster in an engine"
        )
