"""Stands in for a backend whose library cannot be imported, so that it can be listed and refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from vitdeploy.artifacts import Artifact, OnnxModel
from vitdeploy.errors import BackendError
from vitdeploy.progress import SILENT, Progress
from vitdeploy.records.report import Device
from vitdeploy.sessions import BuildTarget, SessionOptions


class AbsentBackend:
    """A backend that cannot be used; ``reason`` says why not and names the command that adds it."""

    graph_devices: tuple[Device, ...] = ()

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self._reason = reason

    def unavailable(self) -> str:
        return self._reason

    def can_run(self) -> str:
        return self._reason

    def version(self) -> NoReturn:
        raise BackendError(self._reason)

    def build(self, model: OnnxModel, path: Path, target: BuildTarget, progress: Progress = SILENT) -> NoReturn:
        raise BackendError(self._reason)

    def open(self, artifact: Artifact, options: SessionOptions = SessionOptions()) -> NoReturn:
        raise BackendError(self._reason)
