"""Hybrid R+ViT: timm's files, and Google's .npz as timm's own reader understands them."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from google_npz import google_arrays
from numpy.typing import NDArray
from redrawing import redraw
from timm.layers import GroupNormAct, HybridEmbed, StdConv2dSame
from timm.models.resnetv2 import ResNetV2, create_resnetv2_stem
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vitdeploy.checkpoints import LoadRequest, load_foreign
from vitdeploy.errors import CheckpointError

CLOSE = 1e-5
SAID = LoadRequest(arguments={"heads": 3, "groups": 8})


def timms(units: list[int], patch: int = 1) -> nn.Module:
    parts: dict[str, Any] = {
        "stem_type": "same",
        "preact": False,
        "conv_layer": partial(StdConv2dSame, eps=1e-8),
        "norm_layer": partial(GroupNormAct, num_groups=8),
    }
    backbone = create_resnetv2_stem(3, 16, **parts)
    if units:
        widths = tuple(64 * 2**index for index in range(len(units)))
        backbone = ResNetV2(units, widths, num_classes=0, global_pool="", stem_chs=16, **parts)
    model = VisionTransformer(
        img_size=64, patch_size=patch, num_classes=7, embed_dim=24, depth=2, num_heads=3,
        embed_layer=partial(HybridEmbed, backbone=backbone),
    )  # fmt: skip
    return redraw(model).eval()


def assert_same(ours: nn.Module, theirs: nn.Module, size: int = 64) -> None:
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        expected = theirs(x)
        assert (ours(x) - expected).abs().max() <= CLOSE * (expected.max() - expected.min())


@pytest.mark.parametrize(("units", "patch"), [([1, 2], 1), ([], 8)], ids=["stages", "stem alone"])
def test_timms_weights_load(tmp_path: Path, units: list[int], patch: int) -> None:
    theirs = timms(units, patch)
    torch.save(theirs.state_dict(), tmp_path / "hybrid.pth")
    loaded = load_foreign(tmp_path / "hybrid.pth", "hybrid", SAID)
    assert (loaded.dialect, loaded.spec.family) == ("timm", "hybrid")
    assert loaded.spec.arguments["units"] == units
    assert_same(loaded.module, theirs)


def test_a_published_variant_is_told_from_its_shapes(tmp_path: Path) -> None:
    theirs = redraw(timm.create_model("vit_tiny_r_s16_p8_224")).eval()
    torch.save(theirs.state_dict(), tmp_path / "hybrid.pth")
    loaded = load_foreign(tmp_path / "hybrid.pth")
    assert loaded.spec.name == "vit_tiny_r_s16_p8_224"
    assert loaded.preprocess.resize_size == 248
    assert_same(loaded.module, theirs, 224)


def hybrid_as_google(state: dict[str, torch.Tensor]) -> dict[str, NDArray[Any]]:
    """Write timm's weights as Google's JAX code names and lays them out."""
    out = google_arrays({key: value for key, value in state.items() if "backbone" not in key})
    for key, tensor in state.items():
        if found := re.match(r"patch_embed\.backbone\.(?:stem\.)?(?:stages\.(\d)\.blocks\.(\d)\.)?(.*)\.\w+$", key):
            place = f"block{int(found[1]) + 1}/unit{int(found[2]) + 1}/" if found[1] else ""
            part = found[3].replace("norm", "gn").replace("downsample.", "")
            part = part if re.search(r"\d", part) else f"{part}_{'proj' if found[1] else 'root'}"
            if part.startswith("conv"):
                out[f"{place}{part}/kernel"] = tensor.numpy().transpose(2, 3, 1, 0)
            else:
                kind = "scale" if key.endswith("weight") else "bias"
                out[f"{place}{part}/{kind}"] = tensor.numpy().reshape(1, 1, 1, -1)
    return out


@pytest.mark.parametrize(("units", "patch"), [([1, 2], 1), ([], 8)], ids=["stages", "stem alone"])
def test_googles_weights_load_as_timm_reads_them(tmp_path: Path, units: list[int], patch: int) -> None:
    path = tmp_path / "R_Ti.npz"
    np.savez(path, **dict[str, Any](hybrid_as_google(timms(units, patch).state_dict())))
    theirs = timms(units, patch)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.zero_()
    theirs.load_pretrained(str(path))
    loaded = load_foreign(path, "hybrid", LoadRequest(arguments={"groups": 8}))
    assert (loaded.dialect, loaded.spec.arguments["heads"]) == ("Google JAX", 3)
    assert "Google JAX" in loaded.preprocess.source
    assert_same(loaded.module, theirs)


def test_a_unit_that_is_missing_is_named(tmp_path: Path) -> None:
    state = timms([1, 2]).state_dict()
    del state["patch_embed.backbone.stages.1.blocks.1.conv2.weight"]
    torch.save(state, tmp_path / "hybrid.pth")
    message = r"1 missing \(patch_embed\.backbone\.stages\.1\.blocks\.1\.conv2\.weight"
    with pytest.raises(CheckpointError, match=message):
        load_foreign(tmp_path / "hybrid.pth", "hybrid", SAID)


def test_another_variant_is_refused(tmp_path: Path) -> None:
    torch.save(timms([1, 2]).state_dict(), tmp_path / "hybrid.pth")
    with pytest.raises(CheckpointError, match="does not fit the model"):
        load_foreign(tmp_path / "hybrid.pth", "vit_tiny_r_s16_p8_224", LoadRequest(num_classes=7))


def test_heads_of_a_model_without_a_name_must_be_said(tmp_path: Path) -> None:
    torch.save(timms([1, 2]).state_dict(), tmp_path / "hybrid.pth")
    with pytest.raises(CheckpointError, match=r"do not tell how many heads there are: .*arguments=\{'heads': 8\}"):
        load_foreign(tmp_path / "hybrid.pth", "hybrid", LoadRequest(arguments={"groups": 8}))
