"""What all tests share: one thread per library, so that two cores are enough, and one finished run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoint import write_tiny_checkpoint

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # read by the libraries when they are imported, which is later

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


@pytest.fixture(scope="session")
def _shared_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
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
def tiny_checkpoint(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny.safetensors")


@pytest.fixture(scope="session")
def tiny_onnx(tiny_checkpoint):
    from vitdeploy.stages.export import ExportOptions, export

    options = ExportOptions(golden="digits:validation", reference="digits:test")
    return export(tiny_checkpoint.path, tiny_checkpoint.path.with_name("tiny.onnx"), options=options)
