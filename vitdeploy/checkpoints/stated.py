"""Constructor arguments that a file of timm states, for what no key shows: pooling, heads, the image's size."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from vitdeploy.checkpoints.converted import Converted

# What changes no logit of a trained model, or is read off shapes, names and tables.
_SHOWN = re.compile(
    r"num_classes|in_chans|img_size|patch_size|embed_dims?|depths?|mlp_ratios?|qkv_bias|class_token|no_embed_class|fc_norm"
    r"|final_norm|init_values|window_size|dynamic_img_size|dynamic_img_pad|strict_img_size|weight_init|fix_init"
    r"|sr_ratios|linear|inner_dim|legacy|device|dtype"
    r"|pretrained.*|.*drop.*"
)
_RENAMED = {
    "num_heads": "heads", "num_heads_outer": "heads", "num_heads_inner": "inner_heads", "first_stride": "inner_stride",
}  # fmt: skip
_MEAN_FAMILIES = ("swin", "swin_v2", "pvt_v2")


def stated_arguments(
    stated: Mapping[str, Any], family: str, converted: Converted, names: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return our constructor arguments for what a file states, and what of it no model here has.

    Args:
        stated: Arguments under timm's names, such as ``{"global_pool": "avg", "num_heads": 6}``.
        family: That of the weights.
        converted: The weights in our names.
        names: The tensors under timm's names.
    """
    ours: dict[str, Any] = {}
    foreign: dict[str, Any] = {}
    for key, value in stated.items():
        if key in _RENAMED and isinstance(value, int | list | tuple):
            ours[_RENAMED[key]] = value if isinstance(value, int) else list(value)
        elif key == "global_pool":
            pooling = _pooling(value, family, converted, names)
            if pooling is None:
                foreign[key] = value
            else:
                ours |= pooling
        elif key == "fc_norm" and value and "global_pool" not in stated:
            foreign[key] = value  # beside any pooling, so that the norm no longer tells a mean
        elif key == "window_size" and family == "swin_v2" and isinstance(value, int):  # no table of timm's proves it
            ours["window"] = value
        elif key == "pretrained_window_sizes" and family == "swin_v2" and isinstance(value, list | tuple):
            ours["pretrained_windows"] = list(value)
        elif key == "img_size" and "image_size" not in converted.proven:
            ours |= {name: size for name, size in read_with(stated).items() if name == "image_size"}
        elif _SHOWN.fullmatch(key) is None:
            foreign[key] = value
    return ours, foreign


def read_with(stated: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of our arguments that tensors are read with: the image's size, and TNT's stride between words."""
    size, stride = stated.get("img_size"), stated.get("first_stride")
    ours: dict[str, Any] = {}
    if isinstance(size, int | list | tuple) and not isinstance(size, bool):
        ours["image_size"] = size if isinstance(size, int) else list(size)
    if isinstance(stride, int):
        ours["inner_stride"] = stride
    return ours


def _pooling(value: Any, family: str, converted: Converted, names: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the arguments for one of timm's ``global_pool``, None where the family has no such pooling."""
    if family in _MEAN_FAMILIES:
        return {} if value == "avg" else None
    if value == "token":
        return {} if "fc_norm.weight" not in names and converted.arguments.get("pool", "cls") == "cls" else None
    if value == "avg" and family == "vit":
        return {"pool": "mean", "class_token": "cls_token" in names, "norm_after_pool": "fc_norm.weight" in names}
    return None
