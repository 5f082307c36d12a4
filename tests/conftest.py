"""What all tests share: one thread per library, so that two cores are enough, and one finished run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from tiny_checkpoint import write_tiny_checkpoint

from vitdeploy.artifacts import Checkpoint, OnnxModel, read_checkpoint, read_onnx

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # read by the libraries when they are imported, which is later


@pytest.fixture(autouse=True)
def _caches_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what tests leave in the cache folder away from the user's."""
    monkeypatch.setenv("VITDEPLOY_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


QUICK: Mapping[str, Any] = {
    "train.options.epochs": 2,
    "bench.options.rounds": 1,
    "bench.options.iterations": 2,
    "bench.options.samples": 50,
    "bench.options.processes": False,
}
"""Changes to the default recipe that make a run short; its accuracy means nothing."""


@pytest.fixture(scope="session")
def quick_changes() -> dict[str, Any]:
    """Changes to the default recipe that make a run take seconds."""
    return dict(QUICK)


hypothesis.settings.register_profile("untimed", deadline=None)  # how fast a machine is decides nothing
hypothesis.settings.load_profile("untimed")

MADE = os.environ.get("VITDEPLOY_TEST_ARTIFACTS")
"""A folder with ``run/`` and ``tiny.safetensors``, ``tiny.onnx`` … made elsewhere, for tests where torch is absent."""


@pytest.fixture(scope="session")
def _shared_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if MADE is not None:
        return Path(MADE, "run")
    from vitdeploy.pipeline import read_recipe, run

    folder = tmp_path_factory.mktemp("shared") / "run"
    run(read_recipe(None, QUICK), folder)
    return folder


@pytest.fixture
def finished_run(_shared_run: Path, tmp_path: Path) -> Path:
    """A folder that a quick run on the digits has finished, a copy for each test."""
    folder = tmp_path / "run"
    shutil.copytree(_shared_run, folder)
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A small checkpoint with redrawn weights, made once."""
    folder = tmp_path_factory.mktemp("tiny")
    if MADE is not None:
        for file in Path(MADE).glob("tiny.*"):
            shutil.copy(file, folder)
        return read_checkpoint(folder / "tiny.safetensors")
    return write_tiny_checkpoint(folder / "tiny.safetensors")


@pytest.fixture(scope="session")
def tiny_onnx(tiny_checkpoint: Checkpoint) -> OnnxModel:
    """The graph of ``tiny_checkpoint``, with the logits of PyTorch on the test digits beside it."""
    from vitdeploy.stages.export import ExportOptions, export

    path = tiny_checkpoint.path.with_name("tiny.onnx")
    if MADE is not None:
        return read_onnx(path)
    return export(
        tiny_checkpoint.path, path, options=ExportOptions(golden="digits:validation", reference="digits:test")
    )
