"""Open an artifact with the backend that belongs to its kind."""

from __future__ import annotations

from vitdeploy.artifacts import Artifact, Checkpoint, Engine, OnnxModel
from vitdeploy.backends import get_backend
from vitdeploy.errors import ArtifactError, BackendError
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
        name = artifact.manifest.build.backend
    else:
        raise ArtifactError(f"{str(artifact.path)!r} is a {artifact.manifest.kind}, which does not run")
    backend = get_backend(name)
    reason = backend.unavailable() or backend.can_run()
    if reason is not None:
        raise BackendError(f"{str(artifact.path)!r} cannot run here: {reason}")
    return backend.open(artifact, options)
