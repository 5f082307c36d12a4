"""A model as a function of batches gives in any number of processes what it gives in one, each image once."""

from __future__ import annotations

import io
import multiprocessing
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitdeploy import load
from vitdeploy.artifacts import OnnxModel
from vitdeploy.datasets import open_dataset
from vitdeploy.errors import ArtifactError, UsageError
from vitdeploy.runtime.batch import BatchPredictor, batch_predictor
from vitdeploy.stages.package import package


@pytest.fixture(scope="module")
def bundle(tiny_onnx: OnnxModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return package([tiny_onnx], tmp_path_factory.mktemp("bundle") / "tiny.bundle").path


@pytest.fixture(scope="module")
def digits() -> list[Image.Image]:
    dataset = open_dataset("digits:test")
    return [dataset.image(index) for index in range(90)]


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def batches(images: list[Any], size: int) -> Iterator[dict[str, Any]]:
    for start in range(0, len(images), size):
        column = np.empty(len(images[start : start + size]), dtype=object)
        column[:] = images[start : start + size]
        yield {"id": np.arange(start, start + len(column)), "image": column}


def joined(results: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: np.concatenate([one[name] for one in results]) for name in results[0]}


def test_two_processes_give_what_one_gives_and_each_image_once(bundle: Path, digits: list[Image.Image]) -> None:
    function = batch_predictor(bundle)
    parts = list(batches([png(image) for image in digits], 16))
    one = joined([function(part) for part in parts])
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        two = joined(pool.map(function, parts, chunksize=1))
    assert list(two) == ["id", "class", "name", "probability", "error"]
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)
    assert sorted(two["id"]) == list(range(90))
    with load(bundle) as model:
        best = [found.classes[0] for found in model.predict(digits, top=1)]
    np.testing.assert_array_equal(one["class"], [entry.index for entry in best])
    np.testing.assert_array_equal(one["name"], [entry.name for entry in best])
    np.testing.assert_allclose(one["probability"], [entry.probability for entry in best], rtol=1e-5)


def test_what_was_used_can_be_pickled(bundle: Path, digits: list[Image.Image]) -> None:
    function = batch_predictor(bundle)
    (part,) = batches([png(image) for image in digits[:4]], 4)
    expected = function(part)
    again = pickle.loads(pickle.dumps(function))
    assert again == function
    assert len(pickle.dumps(function)) < 2000
    np.testing.assert_array_equal(again(part)["probability"], expected["probability"])


def test_columns_may_hold_bytes_paths_or_arrays(bundle: Path, digits: list[Image.Image], tmp_path: Path) -> None:
    for index, image in enumerate(digits[:5]):
        image.save(tmp_path / f"{index}.png")
    function = batch_predictor(bundle, column="x")
    expected = function({"x": [png(image) for image in digits[:5]]})["class"]
    forms: list[Any] = [
        [str(tmp_path / f"{index}.png") for index in range(5)],
        np.stack([np.asarray(image) for image in digits[:5]])[..., None],
        [np.asarray(image) for image in digits[:5]],
        [bytearray(png(image)) for image in digits[:5]],  # as Spark's rows have them
        [{"bytes": png(image), "path": None} for image in digits[:5]],
    ]
    for form in forms:
        np.testing.assert_array_equal(function({"x": form})["class"], expected)


def test_an_unreadable_image_keeps_its_row_and_says_why(bundle: Path, digits: list[Image.Image]) -> None:
    images = [png(digits[0]), b"torn", png(digits[2])]
    found = batch_predictor(bundle)({"image": images, "path": ["a", "b", "c"]})
    assert found["path"] == ["a", "b", "c"]
    assert found["class"][1] == -1
    assert np.isnan(found["probability"][1])
    assert [bool(text) for text in found["error"]] == [False, True, False]
    assert "is not an image" in found["error"][1]
    values = batch_predictor(bundle, features=True)({"image": images})["values"]
    assert values.shape == (3, 32)
    assert np.isnan(values).all(axis=1).tolist() == [False, True, False]
    nothing = batch_predictor(bundle)({"image": [b"torn"]})
    assert (nothing["class"].tolist(), nothing["name"].tolist()) == ([-1], [""])


def test_features_are_those_of_embed(bundle: Path, digits: list[Image.Image]) -> None:
    found = batch_predictor(bundle, features=True)({"image": [png(image) for image in digits[:20]]})
    with load(bundle) as model:
        np.testing.assert_allclose(found["values"], model.embed(digits[:20]), rtol=1e-5, atol=1e-6)


def test_another_model_under_the_same_path_is_refused(
    tiny_onnx: OnnxModel, digits: list[Image.Image], tmp_path: Path
) -> None:
    from vitdeploy.stages.quantize import quantize

    path = tmp_path / "model.onnx"
    shutil.copyfile(tiny_onnx.path, path)
    sent = pickle.dumps(batch_predictor(path))
    quantize(tiny_onnx, path, precision="fp16")
    received: BatchPredictor = pickle.loads(sent)
    with pytest.raises(ArtifactError, match="holds something else here"):
        received({"image": [png(digits[0])]})
    with pytest.raises(UsageError, match=r"the batch has columns 'picture', expected 'image' among them"):
        received({"picture": []})
