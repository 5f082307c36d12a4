"""What all tests share: one thread per library, so that two cores are enough, and one finished run."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from filelock import FileLock
from lean_libraries import read_operators_once, use_one_thread
from quick_run import QUICK
from tiny_checkpoint import write_tiny_checkpoint

from vitdeploy.artifacts import Checkpoint, OnnxModel, read_checkpoint, read_onnx
from vitdeploy.measure import pairs
from vitdeploy.measure.timing import TurnOptions

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # read by the libraries when they are imported, which is later


@pytest.fixture(scope="session", autouse=True)
def _lean_libraries() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        use_one_thread(patch)
        read_operators_once(patch)
        yield


@pytest.fixture(autouse=True)
def _caches_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what tests leave in the cache folder away from the user's."""
    monkeypatch.setenv("VITDEPLOY_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def _numbers_of_its_own(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give a test the same random numbers whatever ran before it in its file."""
    if hasattr(request.module, "RNG"):
        monkeypatch.setattr(request.module, "RNG", np.random.default_rng(0))


FROZEN_AT = 100_000
"""Objects that have outlived two collections; so many are modules and test items, which stay."""
atexit.register(gc.unfreeze)


@pytest.fixture(scope="module", autouse=True)
def _collected_once() -> None:
    """Let garbage collection, which the package asks for after each trial, pass over all modules and test items."""
    if len(gc.get_objects(generation=2)) > FROZEN_AT:
        gc.collect()
        gc.freeze()


@pytest.fixture(scope="session")
def quick_changes() -> dict[str, Any]:
    """Changes to the default recipe that make a run take seconds."""
    return dict(QUICK)


hypothesis.settings.register_profile("untimed", deadline=None)  # how fast a machine is decides nothing
hypothesis.settings.load_profile("untimed")

MADE = os.environ.get("VITDEPLOY_TEST_ARTIFACTS")
"""A folder with ``run/`` and ``tiny.safetensors``, ``tiny.onnx`` … made elsewhere, for tests where torch is absent."""


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """A function (name, make) → folder that lets ``make`` fill it once, over all processes that run tests."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    shared.mkdir(exist_ok=True)

    def folder_of(name: str, make: Callable[[Path], object]) -> Path:
        folder, whole = shared / name, shared / f"{name}.whole"
        with FileLock(shared / f"{name}.lock"):
            if not whole.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a process that failed
                make(folder)
                whole.touch()
        return folder

    return folder_of


@pytest.fixture(scope="session", autouse=True)
def _no_time_decides() -> Iterator[None]:
    """Time pairs of graphs for one round, which has no interval: nothing is called faster or slower by it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "TURNS", TurnOptions(rounds=1, warmup=1, iterations=1, fill_s=0.0))
        yield


@pytest.fixture(scope="session")
def _shared_run(once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    if MADE is not None:
        return Path(MADE, "run")
    from vitdeploy.pipeline import read_recipe, run

    return once("run", lambda folder: run(read_recipe(None, QUICK), folder))


@pytest.fixture(scope="session")
def small_export(once: Callable[[str, Callable[[Path], object]], Path]) -> Callable[[str], OnnxModel]:
    """A function family → the graph of its small model with redrawn weights; it is exported once, and only read."""
    from small_families import small_checkpoint

    from vitdeploy.stages.export import export

    def make(family: str, folder: Path) -> None:
        folder.mkdir()
        checkpoint = small_checkpoint(family, folder / "model.safetensors")
        export(checkpoint, folder / "model.onnx", progress=None)

    return lambda family: read_onnx(once(f"small-{family}", partial(make, family)) / "model.onnx")


@pytest.fixture
def finished_run(_shared_run: Path, tmp_path: Path) -> Path:
    """A folder that a quick run on the digits has finished, a copy for each test."""
    folder = tmp_path / "run"
    shutil.copytree(_shared_run, folder)
    return folder


@pytest.fixture(scope="session")
def _tiny(once: Callable[[str, Callable[[Path], object]], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(folder: Path) -> None:
        from vitdeploy.stages.export import ExportOptions, export

        folder.mkdir()
        checkpoint = write_tiny_checkpoint(folder / "tiny.safetensors")
        chosen = ExportOptions(golden="digits:validation", reference="digits:test")
        export(checkpoint.path, folder / "tiny.onnx", options=chosen)

    folder = tmp_path_factory.mktemp("tiny")
    for file in (Path(MADE) if MADE is not None else once("tiny", make)).glob("tiny.*"):
        shutil.copy(file, folder)
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoint(_tiny: Path) -> Checkpoint:
    """A small checkpoint with redrawn weights, made once."""
    return read_checkpoint(_tiny / "tiny.safetensors")


@pytest.fixture(scope="session")
def tiny_onnx(_tiny: Path) -> OnnxModel:
    """The graph of ``tiny_checkpoint``, with the logits of PyTorch on the test digits beside it."""
    return read_onnx(_tiny / "tiny.onnx")
