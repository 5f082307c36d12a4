from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from small_vit import small_vit, write_small_vit

from vitdeploy.artifacts import OnnxModel


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    """The FP32 graph as an artifact; tests only read it."""
    return write_small_vit(tmp_path_factory.mktemp("model") / "vit.onnx")


@pytest.fixture(scope="session")
def expected() -> Callable[[Any], Any]:
    """Images → logits of the FP32 graph, by ONNX Runtime itself."""
    session = onnxruntime.InferenceSession(small_vit().SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"input": images})[0]


@pytest.fixture
def engine_path(tmp_path: Path) -> Path:
    return tmp_path / "vit.engine"
