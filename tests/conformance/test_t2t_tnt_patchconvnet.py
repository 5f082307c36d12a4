"""T2T-ViT and PatchConvNet against stored outputs of their references; TNT against timm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from proof import (
    CLOSE,
    assert_equal,
    assert_equal_eps,
    exported,
    gmacs,
    logits_of,
    relative_difference,
    unnoticed,
)
from redrawing import redraw
from safetensors.torch import load_file
from torch import nn

from vitdeploy.catalog import list_models
from vitdeploy.catalog.variant import Variant
from vitdeploy.models import create_model

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parents[1] / "golden"
TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "t2t performer": (
        "t2t",
        {"image_size": 32, "token_width": 16, "width": 24, "depth": 2, "heads": 3, "num_classes": 7},
    ),
    "t2t transformer": (
        "t2t",
        {
            "image_size": 32,
            "token_width": 16,
            "width": 24,
            "depth": 2,
            "heads": 3,
            "num_classes": 7,
            "token_module": "transformer",
        },
    ),
    "tnt": (
        "tnt",
        {
            "image_size": 32,
            "width": 24,
            "depth": 2,
            "heads": 3,
            "inner_width": 8,
            "inner_heads": 2,
            "num_classes": 7,
        },
    ),
    "patchconvnet": ("patchconvnet", {"image_size": 32, "width": 32, "depth": 3, "num_classes": 7}),
    "patchconvnet multi": (
        "patchconvnet",
        {"image_size": 32, "width": 32, "depth": 3, "num_classes": 7, "multi_token": True},
    ),
}


def tiny(name: str) -> nn.Module:
    torch.manual_seed(0)
    family, arguments = TINY[name]
    model = create_model(family, **arguments)
    redraw(model)
    return model


@pytest.mark.parametrize("kind", ["performer", "transformer"])
def test_t2t_equals_its_reference(kind: str) -> None:
    stored = load_file(GOLDEN / f"t2t_{kind}.safetensors")
    model = create_model("t2t", image_size=64, width=64, depth=3, heads=4, num_classes=11, token_module=kind)
    model.load_state_dict({name[6:]: value for name, value in stored.items() if name.startswith("param.")})
    assert relative_difference(logits_of(model, stored["x"]), stored["logits"]) <= CLOSE


def test_t2t_with_another_qk_scale_is_another_model() -> None:
    stored = load_file(GOLDEN / "t2t_performer.safetensors")
    model = create_model("t2t", image_size=64, width=64, depth=3, heads=4, num_classes=11, qk_scale=64**-0.5)
    model.load_state_dict({name[6:]: value for name, value in stored.items() if name.startswith("param.")})
    assert relative_difference(logits_of(model, stored["x"]), stored["logits"]) > 100 * CLOSE


def test_patchconvnet_equals_its_reference() -> None:
    stored = load_file(GOLDEN / "patchconvnet.safetensors")
    model = create_model("patchconvnet", image_size=64, width=64, depth=4, num_classes=11)
    model.load_state_dict({name[6:]: value for name, value in stored.items() if name.startswith("param.")})
    assert relative_difference(logits_of(model, stored["x"]), stored["logits"]) <= CLOSE


def tnt_pair() -> tuple[nn.Module, nn.Module]:
    from vitdeploy.checkpoints.layouts.tnt import from_timm

    reference = timm.models.tnt.TNT(
        img_size=32, embed_dim=24, inner_dim=8, depth=2, num_heads_inner=2, num_heads_outer=3, num_classes=7
    )
    redraw(reference)
    ours = tiny("tnt")
    state = {name: value.numpy() for name, value in reference.state_dict().items()}
    ours.load_state_dict({name: torch.from_numpy(value) for name, value in from_timm(state).items()})
    return ours, reference


def test_tnt_equals_timm() -> None:
    ours, reference = tnt_pair()
    assert_equal(ours, reference, torch.randn(2, 3, 32, 32))


def test_tnt_has_the_layer_norm_eps_of_timm() -> None:
    ours, reference = tnt_pair()
    assert_equal_eps(ours, reference, torch.randn(2, 3, 32, 32), wrong=1e-6)


@pytest.mark.parametrize(("family", "eps"), [("t2t", 1e-5), ("tnt", 1e-5), ("patchconvnet", 1e-6)])
def test_layer_norm_eps_is_the_published_one(family: str, eps: float) -> None:
    with torch.device("meta"):
        model = create_model(family)
    assert {module.eps for module in model.modules() if isinstance(module, nn.LayerNorm)} == {eps}


@pytest.mark.parametrize("name", TINY)
def test_the_comparison_notices_every_parameter(name: str) -> None:
    model = tiny(name)
    x = torch.randn(2, 3, 32, 32)
    expected = set()
    if name.startswith("patchconvnet"):
        # A constant added to every score of a query leaves its softmax unchanged.
        expected = {"blocks_token_only.0.attn.k.bias"}
    assert unnoticed(model, x) == expected


@pytest.mark.parametrize(
    "variant", [*list_models("t2t"), *list_models("tnt"), *list_models("patchconvnet")], ids=lambda v: v.name
)
def test_variant_has_the_published_size(variant: Variant) -> None:
    with torch.device("meta"):
        model = create_model(variant.name)
        assert sum(p.numel() for p in model.parameters()) == variant.parameters
        assert gmacs(model, 3, variant.preprocess.size) == pytest.approx(variant.gmacs, abs=0.0006)


@pytest.mark.parametrize("name", TINY)
def test_graph_is_small_and_right_at_every_batch(name: str, tmp_path: Path) -> None:
    operators = exported(tiny(name), torch.randn(2, 3, 32, 32), tmp_path / "model.onnx")
    assert len(operators) < 200


def test_performer_keeps_its_small_constant_through_the_exporter(tmp_path: Path) -> None:
    """With weights that make the denominator tiny, dropping the 1e-8 changes the logits."""
    model = tiny("t2t performer")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "kqv" in name:
                parameter.mul_(4)
    exported(model, torch.randn(2, 3, 32, 32), tmp_path / "model.onnx")
