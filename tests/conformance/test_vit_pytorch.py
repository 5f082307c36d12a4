"""vit-pytorch's ViT: the installed version, and by arithmetic what older versions meant by the same keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from proof import exported, logits_of, relative_difference, shrink_norm_inputs, unnoticed
from redrawing import redraw
from rtx import built_for_sm89
from torch import nn
from torch.nn import functional as F
from vit_pytorch import ViT

from vitdeploy.errors import ModelError
from vitdeploy.models import create_model

pytestmark = pytest.mark.slow

TINY = {
    "image_size": [16, 24], "patch": 8, "channels": 2, "width": 20, "depth": 2, "heads": 3, "head_width": 12,
    "hidden": 28, "num_classes": 7,
}  # fmt: skip
CLOSE = 1e-5
RENAMED = {
    "pos_embedding": "pos_embed",
    "to_patch_embedding.1.": "patch_embed.norm1.",
    "to_patch_embedding.2.": "patch_embed.proj.",
    "to_patch_embedding.3.": "patch_embed.norm2.",
    "transformer.norm.": "norm.",
    "transformer.layers.": "blocks.",
    ".0.norm.": ".norm1.",
    ".0.to_qkv.": ".attn.qkv.",
    ".0.to_out.0.": ".attn.proj.",
    ".1.net.0.": ".norm2.",
    ".1.net.1.": ".mlp.fc1.",
    ".1.net.4.": ".mlp.fc2.",
    "mlp_head.": "head.",
}


def pair(**changes: Any) -> tuple[nn.Module, nn.Module]:
    arguments = {**TINY, **changes}
    reference = ViT(
        image_size=tuple(arguments["image_size"]), patch_size=8, channels=2, num_classes=7, dim=arguments["width"],
        depth=2, heads=arguments["heads"], dim_head=arguments["head_width"], mlp_dim=28,
        pool=arguments.get("pool", "cls"),
    )  # fmt: skip
    redraw(reference)
    target = {}
    for key, value in reference.state_dict().items():
        for old, new in RENAMED.items():
            key = key.replace(old, new)
        target[key] = value
    for key in ("cls_token", "pos_embed"):
        target[key] = target[key][None]
    if not target["cls_token"].numel():
        del target["cls_token"]
    ours = create_model("vit_pytorch", **arguments)
    ours.load_state_dict(target)
    return ours, reference


@pytest.mark.parametrize("changes", [{}, {"pool": "mean"}, {"heads": 1, "head_width": 20}])
def test_logits_and_eps_are_those_of_the_installed_version(changes: dict[str, Any]) -> None:
    ours, reference = pair(**changes)
    x = torch.randn(2, 2, 16, 24)
    assert relative_difference(logits_of(ours, x), logits_of(reference, x)) <= CLOSE
    shrink_norm_inputs(ours)
    shrink_norm_inputs(reference)
    assert relative_difference(logits_of(ours, x), logits_of(reference, x)) <= CLOSE
    for module in ours.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6
    assert relative_difference(logits_of(ours, x), logits_of(reference, x)) > 100 * CLOSE


def test_the_comparison_notices_every_parameter() -> None:
    ours, _ = pair()
    assert unnoticed(ours, torch.randn(2, 2, 16, 24)) == set()


def redrawn(**changes: Any) -> nn.Module:
    model = create_model("vit_pytorch", **{**TINY, **changes})
    redraw(model)
    return model.eval()


def test_older_versions_scale_attention_by_the_width() -> None:
    attention = redrawn(scale_by_width=True).blocks[0].attn
    x = torch.randn(2, 5, 20)
    q, k, v = attention.qkv(x).view(2, 5, 3, 3, 12).permute(2, 0, 3, 1, 4)
    expected = F.scaled_dot_product_attention(q, k, v, scale=20**-0.5).transpose(1, 2).reshape(2, 5, 36)
    torch.testing.assert_close(attention(x), attention.proj(expected))


def test_older_versions_project_a_single_head_too() -> None:
    assert isinstance(redrawn(heads=1, head_width=20).blocks[0].attn.proj, nn.Identity)
    assert isinstance(redrawn(heads=1, head_width=20, project_out=True).blocks[0].attn.proj, nn.Linear)


@pytest.mark.parametrize("after", [True, False])
def test_older_versions_count_the_class_token_in_the_mean_and_may_norm_it_afterwards(after: bool) -> None:
    model = redrawn(pool="mean", class_token=True, norm_after_pool=after)
    x = torch.randn(2, 2, 16, 24)
    tokens = torch.cat([model.cls_token.expand(2, 1, 20), model.patch_embed(x)], dim=1) + model.pos_embed
    tokens = model.blocks(tokens)
    expected = model.norm(tokens.mean(1)) if after else model.norm(tokens).mean(1)
    torch.testing.assert_close(model(x), model.head(expected))


def test_without_norms_on_pixels_the_patches_are_a_convolution() -> None:
    """Rows, columns, channels: the order of a patch's pixels in the old Linear."""
    model = redrawn(pixel_norm=False)
    x = torch.randn(2, 2, 16, 24)
    pixels = x.view(2, 2, 2, 8, 3, 8).permute(0, 2, 4, 3, 5, 1).reshape(2, 6, 128)
    weight = model.patch_embed.proj.weight.permute(0, 2, 3, 1).reshape(20, 128)
    torch.testing.assert_close(
        model.patch_embed(x), F.linear(pixels, weight, torch.as_tensor(model.patch_embed.proj.bias))
    )


def test_graph_is_small_and_right_at_every_batch(tmp_path: Path) -> None:
    operators = exported(redrawn(), torch.randn(2, 2, 16, 24), tmp_path / "model.onnx")
    assert operators[:3] == ["Reshape", "Transpose", "Reshape"]
    assert len(operators) <= 70
    assert built_for_sm89(tmp_path / "model.onnx") > 10_000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch": 5}, "image_size 16×24 does not divide by patch 5"),
        ({"hidden": 0}, "hidden is 0"),
        ({"pool": "max"}, "pool is 'max'"),
        ({"head_width": 0}, "head_width is 0"),
    ],
)
def test_values_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        create_model("vit_pytorch", **{**TINY, **changes})
