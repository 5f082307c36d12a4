from __future__ import annotations

import re
from typing import Any

import pytest
import timm
from torch import nn

from vitdeploy.errors import UsageError
from vitdeploy.models import create_model
from vitdeploy.models.vit import VisionTransformer
from vitdeploy.training.groups import freeze, parameter_groups


def tiny() -> VisionTransformer:
    return VisionTransformer(image_size=8, patch=4, channels=1, num_classes=3, width=8, depth=2, heads=2)


def setting(module: nn.Module, **options: Any) -> dict[str, tuple[float, float]]:
    """Return each parameter's (weight decay, factor on the learning rate)."""
    names = {id(value): name for name, value in module.named_parameters()}
    groups = parameter_groups(module, **options)
    return {names[id(value)]: (g["weight_decay"], round(g["lr_scale"], 9)) for g in groups for value in g["params"]}


def test_biases_norms_and_positions_do_not_decay() -> None:
    found = setting(tiny(), weight_decay=0.3)
    assert set(found) == {name for name, _ in tiny().named_parameters()}
    decayed = {name for name, (decay, _) in found.items() if decay == 0.3}
    assert {name for name, (decay, _) in found.items() if decay == 0.0} | decayed == set(found)
    assert decayed == {name for name in found if name.endswith("weight") and "norm" not in name}


def test_layer_decay_shrinks_the_rate_by_each_layer_below_the_head() -> None:
    found = setting(tiny(), weight_decay=0.0, layer_decay=0.5)
    assert found["head.weight"][1] == 1.0
    assert found["blocks.1.mlp.fc1.weight"][1] == found["norm.bias"][1] == 0.5
    assert found["blocks.0.attn.qkv.weight"][1] == 0.25
    assert found["cls_token"][1] == found["patch_embed.proj.weight"][1] == 0.125


def settings_of_timm(module: nn.Module, layer_decay: float) -> dict[str, tuple[float, float]]:
    from timm.optim import param_groups_layer_decay

    names = {id(value): name for name, value in module.named_parameters()}
    kept: set[str] = getattr(module, "no_weight_decay", set)()
    groups = param_groups_layer_decay(module, 0.05, no_weight_decay_list=kept, layer_decay=layer_decay)
    return {names[id(value)]: (g["weight_decay"], round(g["lr_scale"], 9)) for g in groups for value in g["params"]}


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("vit_tiny_patch16_224", {"depth": 3}),
        ("deit_tiny_distilled_patch16_224", {"depth": 3}),
        ("swin_tiny_patch4_window7_224", {}),
        ("swinv2_tiny_window8_256", {"depths": (1, 2), "num_heads": (2, 2), "embed_dim": 12}),
        ("pvt_v2_b0", {}),
        ("resnet10t", {}),
    ],
)
def test_models_of_timm_have_timms_own_groups(name: str, size: dict[str, Any]) -> None:
    module = timm.create_model(name, num_classes=3, **size)
    assert setting(module, weight_decay=0.05, layer_decay=0.75) == settings_of_timm(module, 0.75)


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "swin_tiny_patch4_window7_224"]
)
def test_models_of_the_catalogue_have_the_groups_of_the_same_in_timm(name: str) -> None:
    def as_ours(key: str) -> str:
        key = re.sub(r"layers\.(\d)\.downsample", lambda found: f"layers.{int(found[1]) - 1}.downsample", key)
        return key.replace("head.fc.", "head.")

    theirs = {as_ours(key): value for key, value in settings_of_timm(timm.create_model(name), 0.75).items()}
    assert setting(create_model(name), weight_decay=0.05, layer_decay=0.75) == theirs


def test_layer_decay_needs_layers_in_order() -> None:
    with pytest.raises(UsageError, match="layer_decay needs a model with layers in order, and Linear"):
        parameter_groups(nn.Linear(2, 2), weight_decay=0.0, layer_decay=0.5)


def test_frozen_parameters_are_in_no_group() -> None:
    module = tiny()
    frozen = freeze(module, ["blocks.0.*", "patch_embed.*"])
    assert frozen
    assert all(name.startswith(("blocks.0.", "patch_embed.")) for name in frozen)
    assert set(setting(module, weight_decay=0.1)) == {name for name, _ in tiny().named_parameters()} - set(frozen)


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["block.0.*"], r"freeze 'block.0.\*' matches no parameter: the model has names such as 'cls_token'"),
        (["*"], "matches every parameter: nothing is left to train"),
    ],
)
def test_a_useless_freeze_is_refused(patterns: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        freeze(tiny(), patterns)
