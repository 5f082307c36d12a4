"""Hybrid R+ViT against timm: logits, eps of each kind, padding at odd sizes, catalogue, graph, engine."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import pytest
import timm
import torch
from proof import exported, gmacs, logits_of, relative_difference, shrink_norm_inputs, unnoticed
from redrawing import redraw
from rtx import built_for_sm89
from timm.layers import GroupNormAct, HybridEmbed, StdConv2dSame
from timm.models.resnetv2 import ResNetV2, create_resnetv2_stem
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional as F

from vitdeploy.catalog import list_models
from vitdeploy.catalog.variant import Variant
from vitdeploy.errors import ModelError
from vitdeploy.models import create_model
from vitdeploy.models.hybrid import SamePool, StandardisedConv

pytestmark = pytest.mark.slow

CLOSE = 1e-5
TINY: dict[str, Any] = {
    "units": [1, 2, 1], "stem_width": 16, "groups": 8, "width": 24, "depth": 2, "heads": 3, "num_classes": 7,
}  # fmt: skip


def reference(image_size: tuple[int, int], units: list[int], patch: int, channels: int = 3) -> nn.Module:
    """A small model of timm's parts, put together as timm does for R26+S/32 (or R+Ti/16, which has the stem alone)."""
    parts = {
        "stem_type": "same",
        "preact": False,
        "conv_layer": partial(StdConv2dSame, eps=1e-8),
        "norm_layer": partial(GroupNormAct, num_groups=8),
    }
    if units:
        widths = tuple(64 * 2**index for index in range(len(units)))
        backbone = ResNetV2(
            units, widths, num_classes=0, in_chans=channels, global_pool="", stem_chs=16, **parts
        )  # fmt: skip
    else:
        backbone = create_resnetv2_stem(channels, 16, **parts)
    model = VisionTransformer(
        img_size=image_size, patch_size=patch, in_chans=channels, num_classes=7, embed_dim=24, depth=2, num_heads=3,
        embed_layer=partial(HybridEmbed, backbone=backbone),
    )  # fmt: skip
    redraw(model)
    return model.eval()


def pair(
    image_size: tuple[int, int] = (64, 64), units: list[int] = TINY["units"], patch: int = 1
) -> tuple[nn.Module, nn.Module]:
    theirs = reference(image_size, units, patch)
    ours = create_model("hybrid", **{**TINY, "image_size": list(image_size), "units": units, "patch": patch})
    ours.load_state_dict(theirs.state_dict())
    return ours.eval(), theirs


@pytest.mark.parametrize(
    ("image_size", "units", "patch"),
    [((64, 64), [1, 2, 1], 1), ((50, 68), [1, 2, 1], 1), ((50, 86), [1, 1], 1), ((64, 96), [], 8)],
    ids=["square", "odd feature maps", "odd stem", "stem alone"],
)
def test_logits_are_those_of_timm(image_size: tuple[int, int], units: list[int], patch: int) -> None:
    ours, theirs = pair(image_size, units, patch)
    x = torch.randn(2, 3, *image_size)
    assert relative_difference(logits_of(ours, x), logits_of(theirs, x)) <= CLOSE


def test_layer_norm_eps_is_that_of_timm() -> None:
    ours, theirs = pair()
    shrink_norm_inputs(ours)
    shrink_norm_inputs(theirs)
    x = torch.randn(2, 3, 64, 64)
    assert relative_difference(logits_of(ours, x), logits_of(theirs, x)) <= CLOSE
    for module in ours.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-5
    assert relative_difference(logits_of(ours, x), logits_of(theirs, x)) > 100 * CLOSE


def test_group_norm_eps_is_that_of_timm() -> None:
    ours, theirs = pair()
    for model in (ours, theirs):
        for module in model.modules():
            if isinstance(module, nn.GroupNorm):
                module.register_forward_pre_hook(lambda _, inputs: (inputs[0] * 1e-3,))
    x = torch.randn(2, 3, 64, 64)
    assert relative_difference(logits_of(ours, x), logits_of(theirs, x)) <= CLOSE
    for module in ours.modules():
        if isinstance(module, nn.GroupNorm):
            module.eps = 1e-6
    assert relative_difference(logits_of(ours, x), logits_of(theirs, x)) > 100 * CLOSE


def test_eps_of_weight_standardisation_is_that_of_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Filters with a variance near eps, as no training leaves them, make it visible."""
    ours, theirs = pair()
    state = {
        name: value * 1e-3 if "conv" in name and value.dim() == 4 else value
        for name, value in theirs.state_dict().items()
    }
    ours.load_state_dict(state)
    theirs.load_state_dict(state)
    x = torch.randn(2, 3, 64, 64)
    assert relative_difference(logits_of(ours, x), logits_of(theirs, x)) <= CLOSE
    monkeypatch.setattr("vitdeploy.models.hybrid.STANDARDISATION_EPS", 1e-6)
    assert relative_difference(logits_of(ours, x), logits_of(theirs, x)) > 100 * CLOSE


def test_the_comparison_notices_every_parameter() -> None:
    ours, _ = pair()
    assert unnoticed(ours, torch.randn(2, 3, 64, 64)) == set()


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (8, 9), (9, 8)])
def test_pool_is_the_same_padded_one(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size)
    pads = [pad for side in reversed(size) for pad in ((1, 1) if side % 2 else (0, 1))]
    padded = F.pad(x, pads, value=-torch.inf)
    torch.testing.assert_close(SamePool()(x), F.max_pool2d(padded, 3, stride=2), rtol=0, atol=0)


def test_training_learns_the_raw_filters() -> None:
    conv = StandardisedConv(4, 8, 3).train()
    conv(torch.randn(2, 4, 8, 8)).square().sum().backward()
    assert conv.weight.grad.abs().sum() > 0
    assert list(conv.state_dict()) == ["weight"]


@pytest.mark.parametrize("variant", list_models("hybrid"), ids=lambda variant: variant.name)
def test_variant_has_timms_parameters_names_and_preprocessing_and_the_published_gmacs(variant: Variant) -> None:
    with torch.device("meta"):
        ours, theirs = create_model(variant.name), timm.create_model(variant.name)
    assert {name: value.shape for name, value in ours.state_dict().items()} == {
        name: value.shape for name, value in theirs.state_dict().items()
    }
    assert sum(value.numel() for value in ours.parameters()) == variant.parameters
    assert gmacs(ours, 3, variant.preprocess.size) == pytest.approx(variant.gmacs, abs=6e-4)
    config = timm.data.resolve_data_config({}, model=theirs)
    record = variant.preprocess
    assert (record.mean, record.std, record.interpolation) == (config["mean"], config["std"], config["interpolation"])
    assert record.resize_size == int(config["input_size"][1] / config["crop_pct"])


def test_the_catalogue_has_every_row_of_the_hybrid_table() -> None:
    assert {variant.name for variant in list_models("hybrid")} == {
        *(
            f"vit_{shape}_{size}"
            for shape in ("tiny_r_s16_p8", "small_r26_s32", "large_r50_s32")
            for size in (224, 384)
        ),
        "vit_base_r50_s16_384",
    }


def test_a_published_variant_gives_timms_logits() -> None:
    theirs = timm.create_model("vit_tiny_r_s16_p8_224")
    redraw(theirs)
    ours = create_model("vit_tiny_r_s16_p8_224")
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 224, 224)
    assert relative_difference(logits_of(ours, x), logits_of(theirs, x)) <= CLOSE


def test_graph_has_plain_convolutions_with_constant_weights_and_is_right_at_every_batch(tmp_path: Path) -> None:
    ours, _ = pair()
    operators = Counter(exported(ours, torch.randn(2, 3, 64, 64), tmp_path / "hybrid.onnx"))
    convolutions = 1 + 3 * 4 + 3 + 1  # stem; three in each of four units; three shortcuts; the projection
    assert operators["Conv"] == convolutions
    assert operators["InstanceNormalization"] == convolutions - 1
    assert operators["MaxPool"] == 1
    assert not {"BatchNormalization", "ReduceMean", "Sqrt", "Reciprocal"} & set(operators)
    assert operators["Pad"] == 1  # the row of the class token; those of SAME are attributes of the convolutions
    graph = onnx.load(tmp_path / "hybrid.onnx").graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    filters = [
        onnx.numpy_helper.to_array(stored[node.input[1]]) for node in graph.node if node.op_type == "Conv"
    ]  # fmt: skip
    for weight in filters[:-1]:
        rows = weight.reshape(len(weight), -1)
        assert abs(rows.mean(axis=1)).max() < 1e-6
        assert abs(rows.std(axis=1) - 1).max() < 1e-5


def test_graph_of_odd_feature_maps_is_right_and_builds_an_engine(tmp_path: Path) -> None:
    ours, _ = pair((50, 86), [1, 1])
    exported(ours, torch.randn(2, 3, 50, 86), tmp_path / "hybrid.onnx")
    assert built_for_sm89(tmp_path / "hybrid.onnx") > 10_000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 72, "units": [], "patch": 8}, "feature map of 18×18, which does not divide by patch 8"),
        ({"stem_width": 20}, "stem_width 20 does not divide by 8 groups"),
        ({"units": [1, 0]}, r"units is \[1, 0\], expected a number above 0 for each stage"),
        ({"heads": 5}, "width 24 does not divide by 5 heads"),
    ],
)
def test_values_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        create_model("hybrid", **{**TINY, "image_size": 64, **changes})


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ModelError, match="the model takes images of 64×64, got 64×32"):
        pair()[0](torch.zeros(1, 3, 64, 32))
