"""Which backend opens an artifact, which builds an engine here, and what a session makes of a graph."""

from __future__ import annotations

from vitdeploy import environment
from vitdeploy.artifacts import Artifact, Checkpoint, Engine, OnnxModel
from vitdeploy.backends import get_backend
from vitdeploy.backends.tensorrt import TensorRTBackend
from vitdeploy.backends.tensorrt_lean import TensorRTLeanBackend
from vitdeploy.errors import ArtifactError, BackendError
from vitdeploy.records import OperatorCensus
from vitdeploy.sessions import Session, SessionOptions


def open_session(artifact: Artifact, options: SessionOptions = SessionOptions()) -> Session:
    """Open an artifact with the backend that belongs to its kind.

    Raises:
        ArtifactError: It is of a kind that does not run.
        BackendError: The runtime is not installed, or cannot run it on this machine.
    """
    if isinstance(artifact, Checkpoint):
        name = "pytorch"
    elif isinstance(artifact, OnnxModel):
        name = "onnxruntime"
    elif isinstance(artifact, Engine) and artifact.manifest.build is not None:
        name = engine_backend(artifact)
    else:
        raise ArtifactError(f"{str(artifact.path)!r} is a {artifact.manifest.kind}, which does not run")
    backend = get_backend(name)
    reason = backend.unavailable() or backend.can_run()
    if reason is not None:
        raise BackendError(f"{str(artifact.path)!r} cannot run here: {reason}")
    return backend.open(artifact, options)


def census_of(model: OnnxModel, backend: str, session: Session) -> OperatorCensus | None:
    """Return which 8-bit products of a graph the runtime of an open session computes in integers.

    None where the graph has none, or the runtime does not tell.

    Raises:
        BackendError: The runtime failed to tell.
    """
    from vitdeploy.measure.census import take_census

    kernels = session.kernels()
    if kernels is None:
        return None
    found = take_census(model.load(), kernels, backend, get_backend(backend).version())
    return found if found.planned else None


def engine_backend(engine: Engine) -> str:
    """Return the backend that runs an engine here: the one that built it, or the lean runtime where that one cannot.

    Raises:
        ArtifactError: Its manifest does not say how it was built.
    """
    build = engine.manifest.build
    if build is None:
        raise ArtifactError(f"{str(engine.path)!r} does not say in its manifest how it was built: build it again")
    if build.backend != "tensorrt" or not build.version_compatible:
        return build.backend
    full, lean = TensorRTBackend(), TensorRTLeanBackend()
    if full.mismatch(engine) is not None and lean.unavailable() is None and lean.version_mismatch(build) is None:
        return lean.name
    return build.backend


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
