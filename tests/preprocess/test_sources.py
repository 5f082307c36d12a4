"""A preprocessing that somebody names, or one line that says what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from foreign_onnx import write_foreign
from safetensors.numpy import save_file

from vitdeploy.artifacts import Checkpoint, OnnxModel
from vitdeploy.errors import ArtifactError, DataError
from vitdeploy.preprocess import DIGITS_PREPROCESS, IMAGENET_MEAN, IMAGENET_STD, preprocess_from
from vitdeploy.records import Preprocess

SHORTEST = Preprocess(size=(224, 224), resize_size=248, mean=IMAGENET_MEAN, std=IMAGENET_STD)


def test_a_record_in_a_json_file_is_taken_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(SHORTEST.model_dump(mode="json")))
    assert preprocess_from(str(file)) == SHORTEST
    assert preprocess_from("digits") == DIGITS_PREPROCESS


@pytest.mark.parametrize("more", [{}, {"resize": "shortest"}, {"resize_size": None}])
def test_a_size_to_resize_to_that_is_left_out_is_that_of_the_input(tmp_path: Path, more: dict[str, Any]) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"size": [32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, **more}))
    record = preprocess_from(str(file))
    assert (record.size, record.resize, record.resize_size) == ((32, 32), "shortest", 32)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", r"holds no JSON object, expected a Preprocess record or a preprocessor_config\.json"),
        ("{", r"is not JSON"),
        ('{"sise": [8, 8]}', r"has the unknown key 'sise', expected channel_order, channels, crop"),
        ('{"size": [8, 8], "mean": [0.5], "std": [0.5]}', r"is not a valid Preprocess: mean .*need 3 entries"),
        ('{"size": [8, 8], "mean": [0.5, 0.5, 0.5]}', r"is not a valid Preprocess: std: Field required"),
        ('{"pretrained_cfg": {"input_size": [3, 8]}}', r"input_size is \[3, 8\], expected channels, height and width"),
    ],
)
def test_a_file_that_says_no_preprocessing_is_refused_in_one_line(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "p.json"
    file.write_text(content)
    with pytest.raises((ArtifactError, DataError), match=message) as caught:
        preprocess_from(str(file))
    assert "\n" not in str(caught.value)


def test_missing_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"there is no file '.*x\.json'"):
        preprocess_from(str(tmp_path / "x.json"))
    with pytest.raises(DataError, match=r"there is no folder 'someone/vit' with a preprocessor_config\.json"):
        preprocess_from("hf:someone/vit")
    with pytest.raises(DataError, match=r"timm has no model 'vit_smal_patch16_224'"):
        preprocess_from("timm:vit_smal_patch16_224")
    with pytest.raises(DataError, match=r"timm knows no configuration 'vit_small_patch16_224\.nope'"):
        preprocess_from("timm:vit_small_patch16_224.nope")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"architecture": "x", "pretrained_cfg": {"input_size": [3, 48, 48], "crop_pct": 0.96}}, (48, 50)),
        ({"model_type": "convnext"}, (32, 36)),
        ({"model_type": "vit"}, (32, None)),
    ],
)
def test_the_config_beside_the_processor_counts(
    tmp_path: Path, config: dict[str, Any], expected: tuple[int | None, ...]
) -> None:
    """timm's folders have all in config.json; without a class in the processor's file the model's type decides."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    if "pretrained_cfg" not in config:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": 32, "do_normalize": False}))
    for source in (f"hf:{tmp_path}", str(tmp_path)):
        spec = preprocess_from(source)
        assert (spec.size[0], spec.resize_size) == expected
    if "pretrained_cfg" in config:
        assert preprocess_from(str(tmp_path / "config.json")) == spec


def test_an_artifact_names_its_own_preprocessing(
    tmp_path: Path, tiny_onnx: OnnxModel, tiny_checkpoint: Checkpoint
) -> None:
    edited = onnx.load(tiny_onnx.path)
    edited.graph.initializer[0].raw_data = bytes(len(edited.graph.initializer[0].raw_data))
    onnx.save(edited, tmp_path / "edited.onnx")
    assert preprocess_from(str(tiny_onnx.path)) == tiny_onnx.manifest.preprocess
    assert preprocess_from(str(tiny_checkpoint.path)) == tiny_checkpoint.manifest.preprocess
    assert preprocess_from(str(tmp_path / "edited.onnx")) == tiny_onnx.manifest.preprocess


def test_an_artifact_that_states_none_and_a_foreign_file_are_refused(tmp_path: Path) -> None:
    foreign = write_foreign(tmp_path / "foreign.onnx")
    with pytest.raises(DataError, match=r"foreign\.onnx' states no preprocessing: name the file that it was made from"):
        preprocess_from(str(foreign))
    save_file({"head.weight": np.zeros((2, 2), np.float32)}, tmp_path / "w.safetensors")
    with pytest.raises(ArtifactError, match=r"w\.safetensors"):
        preprocess_from(str(tmp_path / "w.safetensors"))
    (tmp_path / "cut.onnx").write_bytes(foreign.read_bytes()[:50])
    with pytest.raises(ArtifactError, match=r"cut\.onnx' is not an ONNX file, or is damaged"):
        preprocess_from(str(tmp_path / "cut.onnx"))
