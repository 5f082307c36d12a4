"""Heads as people change them, and what stands beside a backbone: taken, refused, or left out by request."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from timm_vit import HEADS, assert_loads, vit, with_prefix
from torch import nn

from vitdeploy.checkpoints import LoadRequest, load_foreign
from vitdeploy.errors import CheckpointError
from vitdeploy.sources.load import load, load_source
from vitdeploy.sources.source import SourceOptions, open_source

HEAD_SHAPES = {
    "a linear": lambda w, b: {"head.weight": w, "head.bias": b},
    "after dropout": lambda w, b: {"head.1.weight": w, "head.1.bias": b},
    "without a bias": lambda w, _: {"head.0.weight": w},
    "named": lambda w, b: {"head.fc.weight": w, "head.fc.bias": b},
}


@pytest.mark.parametrize("kind", HEAD_SHAPES)
def test_heads_as_people_change_them(kind: str, tmp_path: Path) -> None:
    reference = vit()
    state = reference.state_dict()
    weight, bias = state.pop("head.weight"), state.pop("head.bias")
    if kind == "without a bias":
        bias = torch.zeros_like(bias)
        reference.head.bias.data = bias
    torch.save({**state, **HEAD_SHAPES[kind](weight, bias)}, tmp_path / "m.pth")
    assert_loads(tmp_path / "m.pth", reference)


@pytest.mark.parametrize(
    ("beside", "listed"),
    [
        ("a", "head.a beside"),
        ("abc", "head.a, head.b, head.c beside"),
        ("abcde", "head.a, head.b, head.c and 2 more beside"),
    ],
)
def test_what_stands_in_a_head_beside_its_linear_is_listed(beside: str, listed: str, tmp_path: Path) -> None:
    state = {**vit().state_dict(), **{f"head.{name}": torch.ones(7) for name in beside}}
    state["head.1.weight"], state["head.1.bias"] = state.pop("head.weight"), state.pop("head.bias")
    torch.save(state, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=f"its head has {listed} the linear 'head.1'"):
        load_foreign(tmp_path / "m.pth", "vit", HEADS)


@pytest.mark.parametrize("extra", [{"head.3.weight": torch.ones(5, 7)}, {"head.0.weight": torch.ones(24)}])
def test_a_head_that_keys_do_not_tell_is_refused_and_the_advice_works(extra: dict[str, Any], tmp_path: Path) -> None:
    state = vit().state_dict()
    weight, bias = state.pop("head.weight"), state.pop("head.bias")
    torch.save({**state, "head.1.weight": weight, "head.1.bias": bias, **extra}, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=r"taken whole: its head has .*reset_head=True with .*'num_classes'"):
        load_foreign(tmp_path / "m.pth", "vit", HEADS)
    request = LoadRequest(arguments={"heads": 3}, num_classes=4, reset_head=True)
    assert load_foreign(tmp_path / "m.pth", "vit", request).module(torch.zeros(1, 3, 32, 32)).shape == (1, 4)


def dino(state):
    """Return what the script of DINO leaves: a backbone and a projection head that classifies nothing."""
    projection = {
        f"head.{name}": torch.ones(5, 24 if name == "mlp.0.weight" else 5)
        for name in ("mlp.0.weight", "mlp.2.weight", "mlp.4.weight", "last_layer.weight_v")
    }
    backbone = {name: value for name, value in state.items() if not name.startswith("head.")}
    return {**with_prefix(backbone, "backbone."), **projection}


def test_a_backbone_with_a_projection_is_taken_for_its_features(tmp_path: Path) -> None:
    reference = vit()
    stored = {
        "teacher": dino(reference.state_dict()),
        "student": with_prefix(dino(vit(1).state_dict()), "module."),
        "dino_loss": {"center": torch.ones(1, 9)}, "epoch": 3, "args": argparse.Namespace(arch="vit_small"),
    }  # fmt: skip
    torch.save(stored, tmp_path / "dino.pth")
    with pytest.raises(CheckpointError, match="no classification head: task='features' takes it as it is"):
        load_foreign(tmp_path / "dino.pth", "vit", HEADS)
    options = SourceOptions(weights=tmp_path / "dino.pth", arguments={"heads": 3}, task="features")
    loaded = load(open_source("vit", options))
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = reference.forward_head(reference.forward_features(x), pre_logits=True)
        torch.testing.assert_close(loaded.module(x), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("place", ["1", "probe", "module.my_output.linear"])
def test_the_only_linear_beside_a_backbone_is_its_head_whatever_it_is_called(tmp_path: Path, place: str) -> None:
    backbone, linear = vit(num_classes=0), nn.Linear(24, 5)
    beside = {f"{place}.weight": linear.weight.detach(), f"{place}.bias": linear.bias.detach()}
    torch.save({**with_prefix(backbone.state_dict(), "0."), **beside}, tmp_path / "w.pth")
    loaded = assert_loads(tmp_path / "w.pth", nn.Sequential(backbone, linear))
    assert f"took {place!r}, which stands beside the model, for its head" in loaded.notes


@pytest.mark.parametrize(
    "beside",
    [
        {"projector.weight": torch.ones(5, 24), "projector.bias": torch.ones(5)},
        {"out.weight": torch.ones(5, 23), "out.bias": torch.ones(5)},
        {name: torch.ones(24, 24)[:, : 24 if "w" in name else 1] for name in ("a.weight", "b.weight")},
    ],
    ids=["a projection", "another width", "two layers"],
)
def test_what_stands_beside_a_backbone_and_is_no_head_is_none(tmp_path: Path, beside: dict[str, Any]) -> None:
    torch.save({**with_prefix(vit(num_classes=0).state_dict(), "encoder."), **beside}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="has no classification head"):
        load_foreign(tmp_path / "w.pth", "vit", HEADS)


@pytest.mark.parametrize(
    ("name", "config", "taken"),
    [("vit", {}, False), ("deit", {}, False), ("vit", {"architectures": ["ViTForImageClassification"]}, True)],
)
def test_a_pooler_before_a_head_of_ones_own_is_not_passed_by_in_silence(
    tmp_path: Path, name: str, config: dict[str, Any], taken: bool
) -> None:
    from transformers import DeiTConfig, DeiTModel, ViTConfig, ViTModel

    size = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 48}
    size |= {"image_size": 32, "patch_size": 8}
    backbone = ViTModel(ViTConfig(**size)) if name == "vit" else DeiTModel(DeiTConfig(**size))
    state = {**with_prefix(backbone.state_dict(), f"{name}."), "classifier.weight": torch.ones(5, 24)}
    state["classifier.bias"] = torch.ones(5)
    folder = tmp_path / "folder"
    folder.mkdir()
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": name, **size, **config}))
    if taken:
        assert load_foreign(folder).spec.arguments["num_classes"] == 5
        return
    with pytest.raises(CheckpointError, match="keys do not tell whether the head reads it"):
        load_foreign(folder)
    assert load_source(folder, arguments={"num_classes": 2}, reset_head=True).spec.arguments["num_classes"] == 2
