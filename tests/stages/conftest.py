"""Fixtures of the bench: scripted backends in the place of real ones, a machine with a GPU, a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from digits_linear import WEIGHT, ScriptedBackend, linear_manifest

from vitdeploy import backends, environment
from vitdeploy.artifacts import Checkpoint, write_checkpoint


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that puts scripted backends in the place of real ones."""
    real = backends.get_backend

    def replace(*scripted: ScriptedBackend) -> None:
        by_name = {one.name: one for one in scripted}
        monkeypatch.setattr(backends, "get_backend", lambda name: by_name.get(name) or real(name))

    return replace


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this machine one with a GPU, for whoever asks ``environment``."""
    machine = environment.current().model_copy(update={"gpu": "Scripted GPU", "compute_capability": "8.9"})
    monkeypatch.setattr(environment, "current", lambda: machine)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return write_checkpoint(tmp_path / "linear.safetensors", {"weight": WEIGHT}, linear_manifest(kind="checkpoint"))
