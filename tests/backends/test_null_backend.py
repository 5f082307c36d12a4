from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conformance import SessionConformance
from small_vit import images

from vitdeploy.artifacts import Artifact, OnnxModel
from vitdeploy.backends import get_backend
from vitdeploy.errors import BackendError, BuildError
from vitdeploy.sessions import BuildTarget

BACKEND = get_backend("null")


class TestNullSession(SessionConformance):
    tolerance = None

    @pytest.fixture
    def session(self, model: OnnxModel):
        with BACKEND.open(model) as session:
            yield session


def test_logits_and_times_are_the_same_every_time(model: OnnxModel) -> None:
    with BACKEND.open(model) as one, BACKEND.open(model) as other:
        feed = {"input": images(3)}
        np.testing.assert_array_equal(one.run(feed)["logits"], other.run(feed)["logits"])
        np.testing.assert_array_equal(one.time(feed, warmup=1, iterations=4), np.full(4, 3.0))


def test_other_images_give_other_logits(model: OnnxModel) -> None:
    with BACKEND.open(model) as session:
        first, second = (session.run({"input": images(1, seed)})["logits"] for seed in (1, 2))
    assert not np.allclose(first, second)


def test_it_needs_an_artifact_with_inputs_and_builds_nothing(model: OnnxModel, engine_path: Path) -> None:
    with pytest.raises(BackendError, match="opens checkpoints, ONNX models and engines, got 'calibration-table'"):
        BACKEND.open(Artifact(model.path, model.manifest.model_copy(update={"kind": "calibration-table"})))
    with pytest.raises(BuildError, match="null builds no engine"):
        BACKEND.build(model, engine_path, BuildTarget())
