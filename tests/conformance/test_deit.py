"""DeiT's distilled model against timm and Hugging Face."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from proof import assert_equal, assert_equal_eps, exported, gmacs, logits_of, unnoticed
from redrawing import redraw
from torch import nn

from vitdeploy.catalog import list_models
from vitdeploy.catalog.deit import VARIANTS
from vitdeploy.catalog.variant import Variant
from vitdeploy.models import create_model

pytestmark = pytest.mark.slow

TINY = {"image_size": 32, "patch": 8, "width": 24, "depth": 2, "heads": 3, "num_classes": 7}


def pair() -> tuple[nn.Module, nn.Module]:
    """Distilled models with the same redrawn weights; timm's keys are ours."""
    reference = timm.models.deit.VisionTransformerDistilled(
        img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=7
    )
    redraw(reference)
    ours = create_model("deit", **TINY)
    ours.load_state_dict(reference.state_dict())
    return ours, reference


def test_distilled_model_equals_timm() -> None:
    ours, reference = pair()
    assert_equal(ours, reference, torch.randn(2, 3, 32, 32))


def test_distilled_model_has_the_layer_norm_eps_of_timm() -> None:
    ours, reference = pair()
    assert_equal_eps(ours, reference, torch.randn(2, 3, 32, 32), wrong=1e-5)


def test_training_gives_both_heads_and_inference_their_mean() -> None:
    ours, _ = pair()
    x = torch.randn(2, 3, 32, 32)
    ours.train()
    logits, distilled = ours(x)
    torch.testing.assert_close((logits + distilled) / 2, logits_of(ours, x))


def test_the_comparison_notices_every_parameter() -> None:
    ours, _ = pair()
    assert unnoticed(ours, torch.randn(2, 3, 32, 32)) == set()


def test_graph_is_small_and_right_at_every_batch(tmp_path: Path) -> None:
    ours, _ = pair()
    assert len(exported(ours, torch.randn(2, 3, 32, 32), tmp_path / "model.onnx")) <= 70


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_variant_has_the_published_size(variant: Variant) -> None:
    with torch.device("meta"):
        model = create_model(variant.name)
        assert sum(p.numel() for p in model.parameters()) == variant.parameters
        assert gmacs(model, 3, variant.preprocess.size) == pytest.approx(variant.gmacs, abs=0.0006)


def test_catalogue_lists_plain_and_distilled_models() -> None:
    assert {variant.family for variant in list_models("deit_*")} == {"vit", "deit"}
