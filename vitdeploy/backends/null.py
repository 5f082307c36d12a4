"""No device at all: outputs that depend on the input alone and times that are always the same, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from vitdeploy.artifacts import Artifact, Checkpoint, Engine, OnnxModel
from vitdeploy.backends.session import Arrays, CheckedSession
from vitdeploy.backends.threads import refuse_thread_settings
from vitdeploy.errors import BackendError, BuildError
from vitdeploy.progress import SILENT, Progress
from vitdeploy.records.report import Device
from vitdeploy.sessions import BuildTarget, SessionOptions, TensorSpec

LATENCY_MS = 1.0
DEFAULT_CLASSES = 10


class NullBackend:
    """Opens any artifact and computes nothing."""

    name = "null"
    graph_devices: tuple[Device, ...] = ("cpu",)

    def unavailable(self) -> str | None:
        return None

    def can_run(self) -> str | None:
        return None

    def version(self) -> str:
        return "0"

    def build(self, model: OnnxModel, path: Path, target: BuildTarget, progress: Progress = SILENT) -> NoReturn:
        """Refuse: there is no device to build for.

        Raises:
            BuildError: Always.
        """
        raise BuildError("null builds no engine: it is for tests")

    def open(self, artifact: Artifact, options: SessionOptions = SessionOptions()) -> NullSession:
        """Open an artifact of any kind; input and classes come from its manifest.

        Raises:
            BackendError: The artifact is of no kind that has inputs.
        """
        refuse_thread_settings(self.name, options)
        if not isinstance(artifact, (Checkpoint, Engine, OnnxModel)):
            raise BackendError(f"null opens checkpoints, ONNX models and engines, got {artifact.manifest.kind!r}")
        spec, preprocess = artifact.manifest.model, artifact.manifest.preprocess
        size = (
            (None, None, None)
            if preprocess is None
            else (preprocess.channels, *(preprocess.pixel_size or (None, None)))
        )
        classes = spec.arguments.get("num_classes") or len(spec.classes) or DEFAULT_CLASSES
        return NullSession((None, *size), int(classes))


class NullSession(CheckedSession):
    """logits[i, c] = mean of image i × (c + 1): another image or another order gives other logits."""

    def __init__(self, input_shape: tuple[int | None, ...], classes: int) -> None:
        image = TensorSpec("input", np.dtype(np.float32), input_shape)
        super().__init__("null", "null", [image], [TensorSpec("logits", np.dtype(np.float32), (None, classes))])
        self._weights = np.arange(1, classes + 1, dtype=np.float32)

    def _run(self, arrays: Arrays) -> Arrays:
        images = arrays["input"]
        means = images.reshape(len(images), -1).mean(axis=1, dtype=np.float32)
        return {"logits": means[:, None] * self._weights}

    def _time_end_to_end(self, arrays: Arrays, warmup: int, iterations: int) -> NDArray[np.float64]:
        """Return ``LATENCY_MS`` per image in the batch, however fast this machine is."""
        return np.full(iterations, LATENCY_MS * len(arrays["input"]), np.float64)

    def _release(self) -> None:
        pass
