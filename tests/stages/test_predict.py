"""Predict gives the same classes by every artifact of a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitdeploy.artifacts import Checkpoint, OnnxModel
from vitdeploy.datasets import open_dataset
from vitdeploy.errors import ArtifactError, BackendError, DataError, UsageError
from vitdeploy.stages.predict import predict


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory):
    folder, dataset = tmp_path_factory.mktemp("images"), open_dataset("digits:test")
    paths = []
    for index in range(18):
        paths.append(folder / f"{index}.png")
        dataset.image(index).save(paths[-1])
    return paths


@pytest.mark.torch
def test_checkpoint_and_graph_predict_the_same(tiny_checkpoint: Checkpoint, tiny_onnx: OnnxModel, images) -> None:
    by_torch = predict(tiny_checkpoint.path, images, top=3)
    by_onnx = predict(tiny_onnx, images, top=3)
    assert [p.image for p in by_torch] == [str(path) for path in images]
    for ours, theirs in zip(by_torch, by_onnx, strict=True):
        assert [c.index for c in ours.classes] == [c.index for c in theirs.classes]
        np.testing.assert_allclose(
            [c.probability for c in ours.classes], [c.probability for c in theirs.classes], rtol=1e-3, atol=1e-6
        )
        assert len(ours.classes) == 3


def test_probabilities_are_those_of_the_stored_logits(tiny_onnx: OnnxModel, images) -> None:
    from vitdeploy.artifacts.reference import load_reference

    logits = load_reference(tiny_onnx).logits[0].astype(np.float64)
    expected = np.exp(logits) / np.exp(logits).sum()
    classes = predict(tiny_onnx, images[:1], top=10)[0].classes
    assert sum(c.probability for c in classes) == pytest.approx(1.0)
    assert [c.probability for c in classes] == sorted((c.probability for c in classes), reverse=True)
    for one in classes:
        assert one.name == str(one.index)
        assert one.probability == pytest.approx(expected[one.index], rel=1e-3, abs=1e-6)


def test_five_classes_unless_another_number_is_named(tiny_onnx: OnnxModel, images) -> None:
    assert [len(found.classes) for found in predict(tiny_onnx, images[:3])] == [5, 5, 5]


def test_more_classes_than_there_are_give_all(tiny_onnx: OnnxModel, images) -> None:
    assert len(predict(tiny_onnx, images[:1], top=99)[0].classes) == 10


def test_bad_input_is_refused(tmp_path: Path, tiny_onnx: OnnxModel, images) -> None:
    with pytest.raises(UsageError, match="top is 0, expected at least 1"):
        predict(tiny_onnx, images, top=0)
    with pytest.raises(UsageError, match="no images were given"):
        predict(tiny_onnx, [])
    with pytest.raises(DataError, match="there is no image"):
        predict(tiny_onnx, [tmp_path / "missing.png"])
    Image.new("L", (9, 8)).save(tmp_path / "wide.png")
    with pytest.raises(DataError, match=r"wide\.png': an image of 9×8 pixels does not fit the input"):
        predict(tiny_onnx, [tmp_path / "wide.png"])
    with pytest.raises(ArtifactError, match="there is no file"):
        predict(tmp_path / "missing.onnx", images)


def test_an_engine_without_its_gpu_says_why(tmp_path: Path, tiny_onnx: OnnxModel, images) -> None:
    from vitdeploy.artifacts import write_engine
    from vitdeploy.backends import get_backend
    from vitdeploy.records import BuildInfo

    if get_backend("tensorrt-rtx").can_run() is None:
        pytest.skip("this machine has a GPU that runs engines")
    build = BuildInfo(backend="tensorrt-rtx", version="1.0", batch=(1, 1, 1))
    manifest = tiny_onnx.manifest.model_copy(update={"kind": "engine", "build": build, "golden_sha256": None})
    engine = write_engine(tmp_path / "x.engine", b"plan", manifest)
    with pytest.raises(BackendError, match=r"x.engine' cannot run here: "):
        predict(engine, images)
