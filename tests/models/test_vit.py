from __future__ import annotations

import collections
import functools
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime
import pytest
import timm.models.vision_transformer as timm_vit
import torch
import torchvision.models.vision_transformer as torchvision_vit
from redrawing import redraw
from timm.models import group_parameters
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vitdeploy.catalog import list_models
from vitdeploy.catalog.variant import Variant
from vitdeploy.errors import ModelError
from vitdeploy.models import create_model
from vitdeploy.models.vit import VisionTransformer

pytestmark = pytest.mark.slow

TINY: dict[str, Any] = {
    "image_size": 8,
    "patch": 2,
    "channels": 1,
    "num_classes": 10,
    "width": 16,
    "depth": 2,
    "heads": 4,
}
STEM = ["Conv", "Reshape", "Transpose"]
BLOCK = [
    *["LayerNormalization", "MatMul", "Add", "Split"],
    *["Reshape", "Transpose"] * 3,
    *["Mul", "MatMul", "Softmax", "MatMul", "Transpose", "Reshape", "MatMul", "Add", "Add"],
    *["LayerNormalization", "MatMul", "Add", "Gelu", "MatMul", "Add", "Add"],
]
SCALED_BLOCK = [*BLOCK[:18], "Mul", *BLOCK[18:-1], "Mul", "Add"]


@pytest.mark.parametrize("variant", list_models("vit"), ids=lambda variant: variant.name)
def test_variant_has_the_published_parameters_and_gmacs(variant: Variant) -> None:
    with torch.device("meta"):
        model = create_model(variant.name).eval()
        image = torch.empty(1, 3, *variant.preprocess.size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image)
    assert sum(value.numel() for value in model.parameters()) == variant.parameters
    assert counter.get_total_flops() / 2e9 == pytest.approx(variant.gmacs, abs=6e-4)


def test_the_catalogue_has_every_row_of_the_standard_table() -> None:
    names = {variant.name for variant in list_models("vit")}
    for size in (224, 384):
        assert {f"vit_{shape}_{size}" for shape in ("tiny_patch16", "small_patch32", "small_patch16")} <= names
        assert {f"vit_{shape}_{size}" for shape in ("base_patch32", "base_patch16", "large_patch16")} <= names
    assert {"vit_base_patch8_224", "vit_large_patch32_384", "vit_huge_patch14_224"} <= names


def size_of(model: nn.Module) -> tuple[int, int]:
    """Return height and width of the images that a model takes."""
    height, width = cast(VisionTransformer, model).image_size
    return height, width


CONFORMANCE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "standard": ({}, {}),
    "rectangular": ({"image_size": [8, 12]}, {"img_size": (8, 12)}),
    "no qkv bias": ({"qkv_bias": False}, {"qkv_bias": False}),
    "eps": ({"eps": 0.5}, {"norm_layer": functools.partial(nn.LayerNorm, eps=0.5)}),
    "deit-iii": (
        {"layer_scale": 0.1, "class_token_position": False},
        {"init_values": 0.1, "no_embed_class": True},
    ),
    "mean": (
        {"pool": "mean"},
        {"global_pool": "avg", "class_token": False, "fc_norm": False},
    ),
}


@pytest.mark.parametrize("case", CONFORMANCE)
def test_timm_gives_the_same_logits_from_the_same_keys(case: str) -> None:
    ours, theirs = CONFORMANCE[case]
    model = redraw(VisionTransformer(**{**TINY, **ours})).eval()
    shared = {"img_size": 8, "patch_size": 2, "in_chans": 1, "num_classes": 10}
    reference = timm_vit.VisionTransformer(**{**shared, "embed_dim": 16, "depth": 2, "num_heads": 4, **theirs}).eval()
    reference.load_state_dict(model.state_dict())
    image = torch.randn(3, 1, *size_of(model))
    with torch.no_grad():
        torch.testing.assert_close(model(image), reference(image), atol=1e-5, rtol=1e-5)


def test_parallel_blocks_give_the_logits_of_timm() -> None:
    model = redraw(VisionTransformer(**TINY, parallel=2, layer_scale=0.1)).eval()
    reference = timm_vit.VisionTransformer(
        img_size=8,
        patch_size=2,
        in_chans=1,
        num_classes=10,
        embed_dim=16,
        depth=2,
        num_heads=4,
        init_values=0.1,
        block_fn=timm_vit.ParallelThingsBlock,
    ).eval()
    reference.load_state_dict(model.state_dict())
    image = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(model(image), reference(image), atol=1e-5, rtol=1e-5)


def test_pre_logits_and_free_head_width_give_the_logits_of_torchvision() -> None:
    """torchvision has pre_logits; the head's width is checked against an attention written out in float64."""
    reference = torchvision_vit.VisionTransformer(
        image_size=8, patch_size=2, num_layers=1, num_heads=4, hidden_dim=16, mlp_dim=64, num_classes=5,
        representation_size=12,
    )  # fmt: skip
    redraw(reference).eval()
    model = VisionTransformer(**{**TINY, "channels": 3, "num_classes": 5, "depth": 1}, representation_size=12).eval()
    source = reference.state_dict()
    renamed = {
        "class_token": "cls_token",
        "encoder.pos_embedding": "pos_embed",
        "conv_proj.": "patch_embed.proj.",
        "encoder.ln.": "norm.",
        "encoder.layers.encoder_layer_0.": "blocks.0.",
        "ln_1": "norm1",
        "ln_2": "norm2",
        "self_attention.in_proj_": "attn.qkv.",
        "self_attention.out_proj": "attn.proj",
        "mlp.0": "mlp.fc1",
        "mlp.3": "mlp.fc2",
        "heads.head": "head",
        "heads.pre_logits": "pre_logits.fc",
    }
    target = {}
    for key, value in source.items():
        for old, new in renamed.items():
            key = key.replace(old, new)
        target[key] = value
    model.load_state_dict(target)
    image = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(model(image), reference(image), atol=1e-5, rtol=1e-5)


def test_head_width_is_free_of_width() -> None:
    model = redraw(VisionTransformer(**{**TINY, "heads": 3}, head_width=8)).eval()
    attention = model.blocks[0].attn
    assert attention.qkv.weight.shape == (3 * 3 * 8, 16)
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    attention.double()
    q, k, v = attention.qkv(x).view(2, 5, 3, 3, 8).permute(2, 0, 3, 1, 4)
    expected = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 5, 24)
    torch.testing.assert_close(attention(x), attention.proj(expected))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 9}, "image_size 9×9 does not divide by patch 2"),
        ({"image_size": [8, 8, 8]}, r"image_size is \[8, 8, 8\], expected"),
        ({"width": 18}, "width 18 does not divide by 4 heads"),
        ({"heads": 0}, "heads is 0, expected a number above 0"),
        ({"depth": -1}, "depth is -1"),
        ({"pool": "max"}, "pool is 'max', expected"),
        ({"init": "zeros"}, "init is 'zeros', expected"),
        ({"drop_path": 1.0}, "drop_path is 1.0, expected at least 0 and below 1"),
        ({"pool": "mean", "class_token_position": False}, "class_token_position=False needs pool='cls'"),
        ({"width": "64"}, "width is '64', expected a"),
        ({"wdith": 64}, "family 'vit' has no argument 'wdith' \\('width' is meant"),
        ({"num_heads": 2}, "no argument 'num_heads' \\('heads' is meant"),
        ({"qqq": 2}, "no argument 'qqq', expected"),
    ],
)
def test_values_that_do_not_fit_are_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        create_model("vit", **{**TINY, **arguments})


def test_an_image_of_another_size_is_refused_by_both_sizes() -> None:
    with pytest.raises(ModelError, match=r"takes images of 8×8, got 16×12: build it with image_size=\[16, 12\]"):
        VisionTransformer(**TINY)(torch.zeros(1, 1, 16, 12))


def export(model: nn.Module) -> torch.onnx.ONNXProgram:
    image = torch.randn(2, 1, *size_of(model))
    dynamic = ({0: torch.export.Dim("batch")},)
    program = torch.onnx.export(
        model, (image,), dynamo=True, opset_version=20, dynamic_shapes=dynamic, input_names=["input"], verbose=False
    )
    assert program is not None
    return program


@pytest.mark.parametrize(
    ("arguments", "head", "block"),
    [
        ({}, [*STEM, "Pad", "Add"], BLOCK),
        ({"pool": "mean"}, [*STEM, "Add"], BLOCK),
        ({"layer_scale": 0.1, "class_token_position": False}, [*STEM, "Pad", "Add"], SCALED_BLOCK),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")  # inside torch.export, for every model
def test_the_graph_has_only_the_nodes_of_the_mathematics_at_any_batch(
    arguments: dict[str, Any], head: list[str], block: list[str], tmp_path: Path
) -> None:
    model = redraw(VisionTransformer(**TINY, **arguments)).eval()
    program = export(model)
    tail = (
        ["LayerNormalization", "ReduceMean", "Gemm"]
        if model.pool == "mean"
        else ["Gather", "LayerNormalization", "Gemm"]
    )
    assert [node.op_type for node in program.model.graph] == head + block * 2 + tail
    program.save(tmp_path / "vit.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "vit.onnx", providers=["CPUExecutionProvider"])
    for batch in (1, 2, 5):
        image = torch.randn(batch, 1, 8, 8)
        (logits,) = session.run(None, {"input": image.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(logits, model(image).numpy(), atol=1e-5, rtol=1e-4)


def test_layers_are_ordered_from_stem_to_head_for_layer_decay() -> None:
    model = VisionTransformer(**TINY)
    groups = group_parameters(model, model.group_matcher(), reverse=True)
    assert groups["pos_embed"] == groups["patch_embed.proj.weight"] == 0
    assert (groups["blocks.0.norm1.weight"], groups["blocks.1.mlp.fc2.bias"]) == (1, 2)
    assert groups["norm.weight"] == 2, "the last norm goes with the last block, as in timm"
    assert groups["head.weight"] == 3
    assert model.no_weight_decay() <= set(dict(model.named_parameters()))


def test_drop_path_grows_linearly_and_acts_only_in_training() -> None:
    model = redraw(VisionTransformer(**{**TINY, "depth": 3}, drop_path=0.5))
    assert [block.drop_path.rate for block in model.blocks] == [0.0, 0.25, 0.5]
    image = torch.randn(64, 1, 8, 8)
    with torch.no_grad():
        dropped = model(image)
        kept = model.eval()(image)
        torch.testing.assert_close(kept, model(image))
    assert collections.Counter((dropped - kept).abs().amax(1).gt(1e-3).tolist())[True] > 10


def test_xavier_fills_tiny_linears_wider_than_std_002() -> None:
    torch.manual_seed(0)
    narrow = VisionTransformer(**TINY)
    wide = VisionTransformer(**TINY, init="xavier", position_std=0.2)
    assert narrow.blocks[0].mlp.fc1.weight.std() < 0.025 < 0.1 < wide.blocks[0].mlp.fc1.weight.std()
    assert 0.15 < wide.pos_embed.std() < 0.2
