"""Every constructor argument of timm's families is carried out, told by keys, or refused by name."""

from __future__ import annotations

import argparse
import inspect
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.tnt import TNT
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vitdeploy.errors import CheckpointError
from vitdeploy.sources.load import load_source

pytestmark = pytest.mark.slow

NO_LOGITS = re.compile(r".*drop.*|weight_init|fix_init|device|dtype|(strict|dynamic)_img_(size|pad)|legacy")
"""Without effect on the logits of a trained model at its own image size; ``legacy`` follows from the name."""

SAME, REFUSED = "", "refused"


@dataclass(frozen=True)
class Family:
    """A family of timm: its class, a model of it, and a small one's arguments.

    ``without`` maps an argument to others that timm wants beside it.
    ``asked`` is what ours asks of bare weights, ``never`` what even timm's script does not state. ``told`` maps
    arguments that keys, shapes or tables show to a value and what becomes of it; ``stated`` those that a file must
    state; ``classes`` are arguments that take modules, which no file can state.
    """

    kind: type[nn.Module]
    name: str
    small: dict[str, Any]
    asked: dict[str, Any]
    told: dict[str, tuple[Any, str]]
    stated: dict[str, tuple[Any, str]]
    classes: tuple[str, ...] = ()
    without: dict[str, Any] = field(default_factory=dict)
    never: dict[str, Any] = field(default_factory=dict)


VIT_TOLD: dict[str, tuple[Any, str]] = {
    "patch_size": (16, SAME),
    "in_chans": (1, SAME),
    "num_classes": (3, SAME),
    "embed_dim": (48, SAME),
    "depth": (1, SAME),
    "mlp_ratio": (2.0, SAME),
    "qk_norm": (True, REFUSED),
    "scale_attn_norm": (True, REFUSED),
    "scale_mlp_norm": (True, REFUSED),
    "proj_bias": (False, REFUSED),
    "reg_tokens": (2, REFUSED),
    "pre_norm": (True, REFUSED),
    "final_norm": (False, REFUSED),
    "norm_layer": ("rmsnorm", REFUSED),
    "embed_norm_layer": ("layernorm", REFUSED),
}
VIT_STATED: dict[str, tuple[Any, str]] = {
    "num_heads": (4, SAME),
    "img_size": ((32, 48), SAME),  # 24 patches and a token are as many as 5×5 patches
    "act_layer": ("relu", REFUSED),
    "pool_include_prefix": (True, REFUSED),
}
VIT_CLASSES = ("embed_layer", "block_fn", "mlp_layer", "attn_layer")
VIT_SMALL: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
SWIN_SMALL: dict[str, Any] = {
    "img_size": 64, "embed_dim": 12, "depths": (1, 2), "num_heads": (1, 2), "window_size": 4,
}  # fmt: skip
SWIN_TOLD: dict[str, tuple[Any, str]] = {
    "patch_size": (2, SAME),
    "in_chans": (1, SAME),
    "num_classes": (3, SAME),
    "embed_dim": (24, SAME),
    "depths": ((1, 1), SAME),
    "num_heads": ((2, 4), SAME),
    "mlp_ratio": (2.0, SAME),
    "qkv_bias": (False, SAME),
}
SWIN_STATED: dict[str, tuple[Any, str]] = {
    "img_size": (128, SAME),
    "window_size": (8, SAME),
    "global_pool": ("max", REFUSED),
    "always_partition": (True, REFUSED),
}

FAMILIES = {
    "vit": Family(
        VisionTransformer,
        "vit_tiny_patch16_224",
        VIT_SMALL,
        {"heads": 3},
        {
            **VIT_TOLD,
            "qkv_bias": (False, SAME),
            "init_values": (0.1, SAME),
            "no_embed_class": (True, SAME),
            "pos_embed": ("none", REFUSED),
        },
        {**VIT_STATED, "global_pool": ("max", REFUSED), "fc_norm": (True, REFUSED), "class_token": (False, SAME)},
        VIT_CLASSES,
        {"class_token": {"global_pool": "avg", "fc_norm": False}},
    ),
    "deit": Family(
        VisionTransformerDistilled,
        "deit_tiny_distilled_patch16_224",
        VIT_SMALL,
        {"heads": 3},
        {
            **VIT_TOLD,
            "qkv_bias": (False, REFUSED),
            "init_values": (0.1, REFUSED),
            "fc_norm": (True, REFUSED),
        },
        VIT_STATED,
        (*VIT_CLASSES, "global_pool", "class_token", "no_embed_class", "pos_embed"),  # timm runs no other
    ),
    "swin": Family(
        SwinTransformer,
        "swin_tiny_patch4_window7_224",
        SWIN_SMALL,
        {"image_size": 64},
        SWIN_TOLD,
        {**SWIN_STATED, "head_dim": (8, REFUSED)},
        ("embed_layer", "norm_layer"),
    ),
    "swin_v2": Family(
        SwinTransformerV2,
        "swinv2_tiny_window8_256",
        SWIN_SMALL,
        {"image_size": 64, "window": 4, "pretrained_windows": [0, 0]},
        SWIN_TOLD,
        {**SWIN_STATED, "act_layer": ("relu", REFUSED), "pretrained_window_sizes": ((8, 4), SAME)},
        ("norm_layer",),
        never={"pretrained_windows": [0, 0]},
    ),
    "pvt_v2": Family(
        PyramidVisionTransformerV2,
        "pvt_v2_b0",
        {"embed_dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1), "num_heads": (1, 2, 3, 4)},
        {"heads": [1, 2, 3, 4], "image_size": 64},
        {
            "in_chans": (1, SAME),
            "num_classes": (3, SAME),
            "embed_dims": ((16, 16, 24, 32), SAME),
            "depths": ((1, 1, 2, 1), SAME),
            "sr_ratios": ((4, 4, 2, 1), SAME),
            "mlp_ratios": ((4.0, 4.0, 2.0, 2.0), SAME),
            "qkv_bias": (False, SAME),
            "linear": (True, SAME),
        },
        {"num_heads": ((2, 2, 3, 4), SAME)},
        ("norm_layer", "global_pool"),
        never={"image_size": 64},
    ),
    "tnt": Family(
        TNT,
        "tnt_s_patch16_224",
        {
            "img_size": 32, "patch_size": 16, "embed_dim": 24, "inner_dim": 8, "depth": 2, "num_heads_inner": 2,
            "num_heads_outer": 3,
        },
        {"heads": 3, "inner_heads": 2},
        {
            "in_chans": (1, SAME),
            "num_classes": (3, SAME),
            "img_size": (48, SAME),
            "embed_dim": (48, SAME),
            "inner_dim": (16, SAME),
            "depth": (1, SAME),
            "mlp_ratio": (2.0, REFUSED),
            "qkv_bias": (True, SAME),
        },
        {
            "patch_size": (8, SAME),
            "global_pool": ("avg", REFUSED),
            "num_heads_inner": (4, SAME),
            "num_heads_outer": (4, SAME),
            "first_stride": (2, SAME),
        },
        ("norm_layer",),
    ),
}  # fmt: skip
CASES = [
    (family, key, how)
    for family, one in FAMILIES.items()
    for how, table in (("told", one.told), ("stated", one.stated))
    for key in table
]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_argument_of_this_timm_is_sorted(family: str) -> None:
    one = FAMILIES[family]
    kind = VisionTransformer if one.kind is VisionTransformerDistilled else one.kind  # which takes any
    names = set(inspect.signature(kind).parameters)
    sorted_ = [*one.told, *one.stated, *one.classes, *filter(NO_LOGITS.fullmatch, names)]
    assert set(sorted_) == names
    assert len(sorted_) == len(names)


def built(family: str, changes: dict[str, Any]) -> nn.Module:
    one = FAMILIES[family]
    torch.manual_seed(0)
    module: nn.Module = timm.create_model(one.name, **{"num_classes": 5, **one.small, **changes})
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.3)
    return module.eval()


def assert_loads(
    path: Path, family: str, arguments: dict[str, Any], module: nn.Module, changes: dict[str, Any]
) -> None:
    size = changes.get("img_size", FAMILIES[family].small.get("img_size", 64))
    channels = changes.get("in_chans", 3)
    x = torch.randn(2, channels, *((size, size) if isinstance(size, int) else size))
    loaded = load_source(family, weights=path, arguments=arguments)
    with torch.no_grad():
        expected = module(x)
        torch.testing.assert_close(loaded.module(x), expected, atol=1e-3 * float(expected.std()), rtol=1e-3)


@pytest.mark.parametrize(("family", "key", "how"), CASES)
def test_an_argument_of_timm(tmp_path: Path, family: str, key: str, how: str) -> None:
    """As a bare state dict where keys tell it, and as timm's script writes it, which states it."""
    one = FAMILIES[family]
    value, outcome = getattr(one, how)[key]
    changes = {**one.without.get(key, {}), key: value}
    module = built(family, changes)
    kwargs = {**one.small, **changes}
    args = argparse.Namespace(model=one.name, gp=kwargs.pop("global_pool", None), model_kwargs=kwargs)
    stated = {"state_dict": module.state_dict(), "args": args, "arch": one.name}
    beside = {} if key == "pretrained_window_sizes" else one.never
    files = [(stated, beside)] if how == "stated" else [(stated, beside), (module.state_dict(), one.asked)]
    for content, arguments in files:
        torch.save(content, tmp_path / "w.pth")
        if outcome == SAME:
            assert_loads(tmp_path / "w.pth", family, arguments, module, changes)
            continue
        with pytest.raises(CheckpointError, match=r"'?timm:\w+'?"):
            load_source(family, weights=tmp_path / "w.pth", arguments=arguments)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_has_no_effect_is_no_reason_to_refuse(tmp_path: Path, family: str) -> None:
    one = FAMILIES[family]
    names = set(inspect.signature(one.kind).parameters) | {"drop_path_rate"}
    rates = {name: 0.1 for name in names if "drop" in name and name != "patch_drop_rate"}
    module = built(family, rates)
    args = argparse.Namespace(model=one.name, gp=None, model_kwargs={**one.small, **rates, "weight_init": "skip"})
    torch.save({"state_dict": module.state_dict(), "args": args}, tmp_path / "w.pth")
    assert_loads(tmp_path / "w.pth", family, one.never, module, {})


@pytest.mark.parametrize("heads", [2, 4])
def test_heads_that_a_file_states_are_not_replaced(tmp_path: Path, heads: int) -> None:
    module = built("vit", {})
    args = argparse.Namespace(model="vit_tiny_patch16_224", gp=None, model_kwargs=VIT_SMALL)
    torch.save({"state_dict": module.state_dict(), "args": args}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=f"built with heads=3, and heads is {heads}: leave it out of arguments="):
        load_source("vit", weights=tmp_path / "w.pth", arguments={"heads": heads})
    assert_loads(tmp_path / "w.pth", "vit", {"heads": 3}, module, {})
