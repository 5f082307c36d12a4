"""The standard ViT against timm and Hugging Face; torchvision is in tests/models/test_vit.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from proof import assert_equal, assert_equal_eps, exported, unnoticed
from redrawing import redraw
from torch import nn

from vitdeploy.checkpoints.layouts.vit import from_huggingface
from vitdeploy.models import create_model

pytestmark = pytest.mark.slow

TINY = {"image_size": 32, "patch": 8, "width": 24, "depth": 2, "heads": 3, "num_classes": 7}


def with_timm() -> tuple[nn.Module, nn.Module]:
    reference = timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=7
    )
    redraw(reference)
    ours = create_model("vit", **TINY)
    ours.load_state_dict(reference.state_dict())
    return ours, reference


def with_hugging_face(eps: float = 1e-12) -> tuple[nn.Module, nn.Module]:
    """Names as transformers has them in memory; q, k and v are three there and one here."""
    from transformers import ViTConfig, ViTForImageClassification

    configuration: Any = ViTConfig
    reference = ViTForImageClassification(
        configuration(
            image_size=32, patch_size=8, hidden_size=24, num_hidden_layers=2, num_attention_heads=3,
            intermediate_size=96, num_labels=7, layer_norm_eps=eps,
        )
    )  # fmt: skip
    redraw(reference)
    state = {name: value.numpy() for name, value in reference.state_dict().items()}
    ours = create_model("vit", **TINY, eps=eps)
    ours.load_state_dict({name: torch.from_numpy(value) for name, value in from_huggingface(state).items()})
    return ours, reference


@pytest.mark.parametrize("make", [with_timm, with_hugging_face])
def test_logits_are_those_of_the_reference(make: Callable[..., Any]) -> None:
    ours, reference = make()
    assert_equal(ours, reference, torch.randn(2, 3, 32, 32))


@pytest.mark.parametrize("make", [with_timm, lambda: with_hugging_face(1e-6)])
def test_layer_norm_eps_is_that_of_the_reference(make: Callable[..., Any]) -> None:
    ours, reference = make()
    assert_equal_eps(ours, reference, torch.randn(2, 3, 32, 32), wrong=1e-5)


def test_the_comparison_notices_every_parameter() -> None:
    ours, _ = with_timm()
    assert unnoticed(ours, torch.randn(2, 3, 32, 32)) == set()


def test_the_comparison_notices_every_parameter_of_parallel_and_scaled_blocks() -> None:
    ours = create_model("vit", **TINY, parallel=2, layer_scale=0.1, representation_size=12)
    redraw(ours)
    assert unnoticed(ours, torch.randn(2, 3, 32, 32)) == set()


def test_parallel_blocks_export_to_the_nodes_of_the_mathematics(tmp_path: Path) -> None:
    """Stem 5; per block two attention branches of 20 and two MLP branches of 8; five from class token to logits."""
    ours = create_model("vit", **TINY, parallel=2, layer_scale=0.1, representation_size=12)
    redraw(ours)
    assert len(exported(ours, torch.randn(2, 3, 32, 32), tmp_path / "vit.onnx")) == 5 + 2 * 2 * (20 + 8) + 5
