"""Weights of any make become a checkpoint of ours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_checkpoint import TINY

from vitdeploy.artifacts import open_artifact
from vitdeploy.errors import ArtifactError, UsageError
from vitdeploy.sources.load import load_source
from vitdeploy.sources.source import SourceOptions
from vitdeploy.stages.convert import convert
from vitdeploy.stages.export import ExportOptions


def test_foreign_weights_become_an_artifact_that_computes_the_same(tmp_path: Path) -> None:
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(2)
    module = timm.create_model("vit_tiny_patch16_224").eval()
    save_file(module.state_dict(), tmp_path / "timm.safetensors")
    options = SourceOptions(weights=tmp_path / "timm.safetensors")
    checkpoint = convert("vit_tiny_patch16_224", tmp_path / "ours.safetensors", options=options)
    assert open_artifact(checkpoint.path).digest == checkpoint.digest
    assert checkpoint.manifest.preprocess.size == (224, 224)
    loaded = load_source(str(checkpoint.path))
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.allclose(loaded.module(x), module(x), atol=1e-5)


def test_random_weights_can_be_kept(tmp_path: Path) -> None:
    options = SourceOptions(random_weights=True, arguments=TINY, seed=3)
    first = convert("vit", tmp_path / "a.safetensors", options=options)
    second = convert("vit", tmp_path / "b.safetensors", options=options)
    assert first.digest == second.digest
    assert first.manifest.key == second.manifest.key
    for name, array in first.tensors().items():
        np.testing.assert_array_equal(array, second.tensors()[name])


@pytest.mark.parametrize("source", ["torchvision:squeezenet1_1", "timm:test_vit", "timm:test_efficientnet"])
def test_a_model_of_another_package_keeps_its_layout_and_opens_again(tmp_path: Path, source: str) -> None:
    options = SourceOptions(random_weights=True, seed=5)
    checkpoint = convert(source, tmp_path / "a.safetensors", options=options)
    assert checkpoint.manifest.model.family == source.partition(":")[0]
    x = torch.randn(1, 3, 160, 160)
    with torch.no_grad():
        expected = load_source(source, random_weights=True, seed=5).module(x)
        assert torch.equal(load_source(checkpoint).module(x), expected)


def test_options_of_export_are_refused(tmp_path: Path) -> None:
    options = ExportOptions(random_weights=True, arguments=TINY, reference="digits")
    with pytest.raises(UsageError, match="convert takes SourceOptions and was handed ExportOptions, which has more"):
        convert("vit", tmp_path / "x.safetensors", options=options)


def test_a_folder_is_no_place_for_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is a folder, expected the name of a checkpoint"):
        convert("vit", tmp_path, options=SourceOptions(random_weights=True, arguments=TINY))
